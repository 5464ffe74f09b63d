"""Connections to vendors come back, whoever leaves or stalls; nobody waits for one without end.

Short form: 300 streams left at random and 30 readers that stall; LONG=1: 5,000 and 500, and nobody
closes in the stalled readers' stead.
"""

import asyncio
import random
import re
import socket
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from tests.scenarios.caller import CHAT, asks, caller, post, request
from tests.scenarios.deployment import Deployment, Key
from tests.scenarios.invariants import assert_books
from tests.scenarios.measured import handles, p99_s, until_calm
from tests.scenarios.scale import LONG, SEED
from tests.scenarios.vendors import many_names
from tests.vendor import Vendor

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(900 if LONG else 180)]

LEFT, STALLED = (5_000, 500) if LONG else (300, 30)
AT_ONCE = 50
PAIRS = 3 if LONG else 1
HANDLES_MORE_MAX = 10
_POOL_ERRORS = re.compile(r'upstream_errors_total\{[^}]*phase="pool"')
BACK_S_MAX = 120.0 if LONG else 60.0  # a reader that stalls is cut after 60 s


@pytest.fixture
async def tollgate(folder: Path, vendor_apart: Vendor) -> AsyncIterator[Deployment]:
    """One worker of our own, whose handles are counted."""
    await vendor_apart.forget()
    names = many_names(vendor_apart.port)
    changes = {**names, "limits": {"connections_per_address_max": 10_000}}
    started = Deployment.started(folder, vendor_port=vendor_apart.port, changes=changes)
    async with started as deployment:
        yield deployment


def upstream(tollgate: Deployment) -> dict[str, int]:
    """The metrics page: connections to vendors, by their state."""
    found = {"busy": 0, "idle": 0, "waiting": 0}
    for line in tollgate.metrics().splitlines():
        if line.startswith("tollgate_upstream_connections{"):
            state = line.split('state="')[1].split('"')[0]
            found[state] += int(float(line.rsplit(" ", 1)[1]))
    return found


async def leave_at_random(tollgate: Deployment, key: Key, model: str) -> None:
    """Streams left after any number of bytes; half of them are cancelled at the vendor."""
    chance = random.Random(SEED)  # noqa: S311 - a test that can be repeated
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(number: int, count: int) -> None:
        async with turn, caller(tollgate) as line:
            name = f"cancel/{model}" if number % 2 else model
            await line.send(request(CHAT, key.secret, asks(CHAT, name, stream=True)))
            await line.some(count)

    async with asyncio.TaskGroup() as group:
        for number in range(LEFT):
            group.create_task(one(number, chance.randrange(5_000)))


@asynccontextmanager
async def stalled(tollgate: Deployment, key: Key, model: str) -> AsyncIterator[None]:
    """Readers that read nothing and stay."""
    asked = request(CHAT, key.secret, asks(CHAT, model, stream=True, max_tokens=500))
    async with AsyncExitStack() as stack:
        for _ in range(STALLED):
            made = stack.enter_context(socket.socket())
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            made.connect(("127.0.0.1", tollgate.ports["data"]))
            made.sendall(asked)
        yield


async def until_back(tollgate: Deployment, vendor: Vendor, pids: list[int], most: int) -> float:
    """Wait until only idle connections and so many handles are left; how long it took, seconds."""
    began_s = time.monotonic()
    async with asyncio.timeout(BACK_S_MAX):
        while True:
            shown = await asyncio.to_thread(upstream, tollgate)
            state = await vendor.state()
            ours = state.connections - 1  # the one that asks
            is_idle = not shown["busy"] and ours == shown["idle"]
            if is_idle and handles(pids) - shown["idle"] <= most:
                return time.monotonic() - began_s
            await asyncio.sleep(0.2)


async def test_connections_come_back_from_streams_left_and_readers_that_stall(
    tollgate: Deployment, vendor_apart: Vendor
) -> None:
    key, theirs = await tollgate.new_key(), await tollgate.new_key(credit_usd="1000")
    left = await vendor_apart.script("left", output_tokens=40, interval_s=0.002)
    large = await vendor_apart.script("large", text="x" * 4_000, output_tokens=500)
    pids = tollgate.pids("worker")
    await p99_s(tollgate, key)
    await until_calm(pids)
    before = handles(pids) - upstream(tollgate)["idle"]

    await leave_at_random(tollgate, theirs, left)
    await until_back(tollgate, vendor_apart, pids, before + HANDLES_MORE_MAX)
    alone, beside, back_s = [], [], 0.0
    for _ in range(PAIRS):
        await until_calm(pids)
        alone.append(await p99_s(tollgate, key))
        async with stalled(tollgate, theirs, large):
            await until_calm(pids)
            beside.append(await p99_s(tollgate, key))
            if LONG and len(beside) == PAIRS:
                back_s = await until_back(tollgate, vendor_apart, pids, before + HANDLES_MORE_MAX)
    if not LONG:
        back_s = await until_back(tollgate, vendor_apart, pids, before + HANDLES_MORE_MAX)

    more = handles(pids) - upstream(tollgate)["idle"] - before
    assert tollgate.pids("worker") == pids
    ratio = statistics.median(b / a for a, b in zip(alone, beside, strict=True))
    more_ms = statistics.median(1000 * (b - a) for a, b in zip(alone, beside, strict=True))
    # One pair on a machine with other work says little.
    assert not LONG or ratio <= 1.5 or more_ms <= 2.0
    print(
        f"D4, seed {SEED}: {LEFT:,} streams left at a random byte, {STALLED} stalled readers"
        f" ({PAIRS} times): all connections to the vendor idle {back_s:.1f} s later, handles"
        f" {more:+d}; healthy p99 x {ratio:.2f}, {more_ms:+.1f} ms beside them"
    )


async def test_who_waits_for_a_connection_to_a_vendor_is_counted_and_told_in_time(
    folder: Path, vendor_apart: Vendor
) -> None:
    await vendor_apart.forget()
    vendor = {"connections_max": 4, "timeouts": {"connect_s": 1}}
    changes = {"providers": {"vendor": vendor}}
    async with Deployment.started(
        folder, vendor_port=vendor_apart.port, changes=changes
    ) as tollgate:
        key = await tollgate.new_key()
        held = await vendor_apart.script("starved", hold_at=-1)
        body = asks(CHAT, held, max_tokens=5)
        began_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(post(tollgate, key, CHAT, body)) for _ in range(12)]
            await vendor_apart.held(4)
            while (await asyncio.to_thread(upstream, tollgate))["waiting"] < 8:
                assert not any(task.done() for task in tasks), "nobody was seen waiting"
            while sum(task.done() for task in tasks) < 8:
                await asyncio.sleep(0.01)
            waited_s = time.monotonic() - began_s
            assert (await vendor_apart.state()).held == 4
            await vendor_apart.release()
        answers = [task.result() for task in tasks]
        refused = [answer for answer in answers if answer.status != 200]
        assert len(refused) == 8
        assert {(answer.status, answer.error["code"]) for answer in refused} == {
            (504, "upstream_timeout")
        }
        assert (await post(tollgate, key, CHAT, asks(CHAT, "gpt-4o-mini"))).status == 200
        records = await assert_books(tollgate, key, records=13)
        assert sum(record["charge"] == 0 for record in records) == 8
        async with asyncio.timeout(10):
            while not _POOL_ERRORS.search(await asyncio.to_thread(tollgate.metrics)):
                await asyncio.sleep(0.1)
    print(
        f"D4 starvation: 12 calls for 4 connections: 8 seen waiting, told after {waited_s:.1f} s"
        " (limit 1 s), 0 nano; the next call is answered"
    )
