"""Redis silent, gone, slow or full: refused in time, nothing lost, and well again by itself."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.scenarios.caller import CHAT, Answer, asks, post
from tests.scenarios.deployment import Deployment, Key
from tests.scenarios.outages import (
    Pulse,
    Server,
    assert_exact,
    checks,
    data_plane_is_ready,
    now_s,
    said,
    slowest_s,
    told,
    until,
    until_streaming,
)
from tests.scenarios.scale import LONG
from tests.vendor import Vendor

pytestmark = pytest.mark.scenario
OUTAGE_S = 60.0 if LONG else 2.0
PER_S = 100.0
INPUT, OUTPUT = 100, 10
CHARGE = INPUT * 3_000 + OUTPUT * 15_000
REFUSED_S_MAX = 0.3
SLACK_S = 0.2  # for the caller's own side on a busy machine
RECOVERED_S_MAX = 5.0
WAITED_S_MAX = 5.0
TOLD_S_MAX = 5.0  # silence is told from slowness after 2 s, and looked for once a second


@asynccontextmanager
async def slow(tollgate: Deployment) -> AsyncIterator[None]:
    """Every command waits for up to 200 ms."""

    over = asyncio.Event()

    async def brake() -> None:
        while not over.is_set():
            await redis.execute_command("CLIENT", "PAUSE", 200, "ALL")  # type: ignore[no-untyped-call]  # redis-py's

    async with tollgate.redis() as redis, asyncio.TaskGroup() as group:
        group.create_task(brake())
        try:
            yield
        finally:
            over.set()


@asynccontextmanager
async def full(tollgate: Deployment) -> AsyncIterator[None]:
    """It may use no more memory than it does."""
    async with tollgate.redis() as redis:
        limit = (await redis.config_get("maxmemory"))["maxmemory"]
        await redis.config_set("maxmemory", "1mb")
        try:
            yield
        finally:
            await redis.config_set("maxmemory", str(limit))


async def is_told(tollgate: Deployment) -> bool:
    """Whether both ways of asking say that calls are not served, and every worker knows why."""
    if await data_plane_is_ready(tollgate) or await tollgate.is_ready():
        return False
    workers = [await checks(tollgate, f"worker-{number}") for number in range(tollgate.workers)]
    return all(worker["redis"] != "ok" for worker in workers)


OUTAGES: dict[str, Callable[[Deployment], AbstractAsyncContextManager[None]]] = {
    "paused": lambda tollgate: Server(tollgate, "valkey").paused(),
    "away": lambda tollgate: Server(tollgate, "valkey").away(),
    "full": full,
}


async def test_calls_are_refused_in_time_and_open_streams_end_well(
    folder: Path, vendor_apart: Vendor
) -> None:
    loop = asyncio.get_running_loop()
    async with Deployment.started(folder, vendor_port=vendor_apart.port, workers=2) as tollgate:
        keys = [await tollgate.new_key(credit_usd="1000") for _ in range(2)]
        unknown = {
            name: [await tollgate.new_key() for _ in range(tollgate.workers)] for name in OUTAGES
        }
        model = await vendor_apart.script("g2", input_tokens=INPUT, output_tokens=OUTPUT)
        stream = await vendor_apart.script(
            "g2s", input_tokens=INPUT, output_tokens=OUTPUT, interval_s=0.15
        )
        asked = asks(CHAT, stream, stream=True, max_tokens=OUTPUT)
        ask = partial(post, tollgate, keys[0], CHAT, asked)
        pulse = Pulse(tollgate, keys, model)
        async with pulse.running(per_s=PER_S, callers=40):
            await pulse.until_answered(loop.time(), within_s=10)
            figures = [
                await _endured(tollgate, vendor_apart, name, pulse, unknown[name], ask)
                for name in OUTAGES
            ]
            async with slow(tollgate):
                since_s = loop.time()
                await asyncio.sleep(OUTAGE_S)
                hindered = pulse.since(since_s)
            assert {one.code for one in hindered} <= {"", "ledger_unavailable"}
            figures.append(f"200 ms {told(hindered)} p99 {slowest_s(hindered) * 1000:.0f} ms")
            await pulse.until_answered(loop.time(), within_s=RECOVERED_S_MAX)
        assert not [one for one in pulse.seen if not one.status], "a connection was cut"
        await assert_exact(tollgate, answered=pulse.answered + len(OUTAGES), charge=CHARGE)
    print(f"G2: {'; '.join(figures)}; {pulse.answered:,} answered and charged exactly")


async def _endured(
    tollgate: Deployment,
    vendor: Vendor,
    name: str,
    pulse: Pulse,
    unknown: list[Key],
    ask: Callable[[], Coroutine[None, None, Answer]],
) -> str:
    """One outage, with a stream open when it begins; its figure."""
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:
        stream = group.create_task(ask())
        await until_streaming(vendor, "g2s")
        async with OUTAGES[name](tollgate):
            since_s, logged_s = loop.time(), now_s()
            first = [await pulse.ask_first(key) for key in unknown]
            await asyncio.sleep(OUTAGE_S)
            async with asyncio.timeout(WAITED_S_MAX):  # not for Redis, which is still away
                await asyncio.wait({stream})
            refused = pulse.since(since_s)
            lines = said(tollgate.log_path, since_s=logged_s, until_s=now_s())
            if name != "full":  # which is told from nothing but the refusals
                await until(lambda: is_told(tollgate), within_s=TOLD_S_MAX)
        healed_s = loop.time()
    assert stream.result().body.endswith(b"data: [DONE]\n\n")
    back_s = await pulse.until_answered(healed_s, within_s=RECOVERED_S_MAX)
    await until(tollgate.is_ready, within_s=RECOVERED_S_MAX)
    assert {(one.status, one.code) for one in refused} == {(503, "ledger_unavailable")}
    assert all(one.retry_after for one in refused)
    p99_s, first_s = slowest_s(refused), slowest_s(first, share=1.0)
    assert p99_s <= REFUSED_S_MAX + SLACK_S, f"{name}: {p99_s}"
    assert first_s <= REFUSED_S_MAX + SLACK_S, f"{name}: a key's first call: {first_s}"
    assert lines.most <= 1, f"{name}: {lines}"
    return (
        f"{name} {len(refused)} x 503 p99 {p99_s * 1000:.0f} ms, with keys nobody knew"
        f" {first_s * 1000:.0f} ms, {lines.lines} log lines, back in {back_s:.1f} s"
    )
