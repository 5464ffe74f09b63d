"""Postgres away for long: memory is bounded, nothing is dropped, and what waits is soon there."""

import asyncio
import re
from pathlib import Path

import pytest

from tests.scenarios.deployment import Deployment
from tests.scenarios.outages import Pulse, Server, assert_exact, checks, told, until
from tests.scenarios.scale import LONG
from tests.vendor import Vendor

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(1_800 if LONG else 120)]
INPUT, OUTPUT = 100, 10
CHARGE = INPUT * 3_000 + OUTPUT * 15_000
ENTRIES_MAX = 260_000 if LONG else 3_000
PER_S = 300.0 if LONG else 500.0
FILLED_S_MAX = 1_200.0 if LONG else 40.0
BYTES_AN_ENTRY_MAX = (
    800  # about 350 in the stream, and the call that is remembered until it is there
)
GROWTH_MIB_MAX = 100
DRAINED_PER_S_MIN = 5_000 if LONG else 1_000  # of a short backlog most of the time is its last look


def resident_mib(pid: int) -> float:
    """The memory a process uses."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 2**20


def shown(page: str, metric: str) -> float:
    """The highest value of a metric on the page."""
    return max(
        float(value) for value in re.findall(rf"^{metric}(?:{{.*}})? (\S+)$", page, re.MULTILINE)
    )


async def redis_bytes(tollgate: Deployment) -> int:
    """The memory that Redis uses."""
    async with tollgate.redis() as redis:
        return int((await redis.info("memory"))["used_memory"])


async def has_records(tollgate: Deployment, count: int) -> bool:
    """Whether Postgres has so many."""
    connection = await tollgate.postgres()
    try:
        return bool(await connection.fetchval("SELECT count(*) FROM usage_record") >= count)
    finally:
        await connection.close()


async def test_a_backlog_is_bounded_and_drained(folder: Path, vendor_apart: Vendor) -> None:
    loop = asyncio.get_running_loop()
    limits = {"ledger": {"backlog_entries_max": ENTRIES_MAX, "partitions": 2}}
    started = Deployment.started(folder, vendor_port=vendor_apart.port, workers=2, changes=limits)
    async with started as tollgate:
        keys = [await tollgate.new_key(credit_usd="10000") for _ in range(4)]
        model = await vendor_apart.script("c4", input_tokens=INPUT, output_tokens=OUTPUT)
        pulse = Pulse(tollgate, keys, model)

        async def is_closed() -> bool:
            return sum(one.code == "ledger_backlog" for one in pulse.seen[-20:]) == 20

        async def worries() -> bool:
            return (await checks(tollgate, "control"))["backlog"] != "ok"

        async with pulse.running(per_s=PER_S, callers=16):
            await pulse.until_answered(loop.time(), within_s=10)
            pids = [*tollgate.pids("worker"), *tollgate.pids("control")]
            async with Server(tollgate, "postgres").paused():
                before, used, answered = (
                    [resident_mib(pid) for pid in pids],
                    await redis_bytes(tollgate),
                    pulse.answered,
                )
                began_s = loop.time()
                await until(worries, within_s=FILLED_S_MAX)
                assert not await is_closed(), "closed before anybody was warned"
                await until(is_closed, within_s=FILLED_S_MAX)
                filled_s = loop.time() - began_s
                waiting = pulse.answered - answered
                each = (await redis_bytes(tollgate) - used) / waiting
                grown = max(
                    now - then for now, then in zip(map(resident_mib, pids), before, strict=True)
                )
                await asyncio.sleep(1.1)  # the page is a second old
                page = tollgate.metrics()
                assert shown(page, "tollgate_backlog_share") > 1
                lag_s = shown(page, "tollgate_flush_lag_seconds")
            healed_s, owed = loop.time(), pulse.answered
            drained_s = await until(lambda: has_records(tollgate, owed), within_s=120)
            back_s = await pulse.until_answered(healed_s, within_s=5)
        books_s = await assert_exact(tollgate, answered=pulse.answered, charge=CHARGE)
    assert set(told(pulse.seen)) == {"200", "503 ledger_backlog"}, told(pulse.seen)
    drained_per_s = waiting / drained_s
    assert drained_per_s >= DRAINED_PER_S_MIN
    assert grown < GROWTH_MIB_MAX
    assert each < BYTES_AN_ENTRY_MAX
    assert lag_s > filled_s / 2
    print(
        f"C4: {waiting:,} ends waited after {filled_s:.0f} s, {each:.0f} bytes each in Redis, no"
        f" process grew by more than {grown:.0f} MiB, lag shown {lag_s:.0f} s; then 503"
        f" ledger_backlog; drained at {drained_per_s:,.0f} a second, calls back {back_s:.2f} s"
        f" after healing, exact {books_s:.1f} s after the last"
    )
