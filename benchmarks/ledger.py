"""Holds and settlements per second by one process, through the conveyor; no flusher, no HTTP."""

import asyncio
import os
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from benchmarks.books import PARTITIONS, Books
from benchmarks.options import Options, Outcome
from benchmarks.processes import cpu_s, descendants, per_call_us, staying_on
from ledger.admission import Held
from ledger.conveyor import Conveyor

_HOLD_S_MAX = 2.0
_BLOCK = 2_000  # calls between two looks at the clock, of 64 callers
_CALLERS = 64


async def measure(options: Options, folder: Path) -> Outcome:
    """Pairs per second with as many callers as the load has connections, and alone."""
    callers = options.connections
    async with Books.opened(folder / "books") as books, AsyncExitStack() as stack:
        stack.enter_context(staying_on(options.cores.measured))
        conveyor = await stack.enter_async_context(conveying(books))
        await pairs(books, conveyor, callers=callers, calls=_BLOCK)
        before = _cpu()
        rounds = [
            await _round(books, conveyor, callers=callers, seconds=options.seconds)
            for _ in range(options.repeats)
        ]
        spent = per_call_us(before, _cpu(), sum(calls for calls, _ in rounds))
        alone, alone_s = await _round(books, conveyor, callers=1, seconds=options.seconds / 4)
    rates = [calls / took_s for calls, took_s in rounds]
    return Outcome(
        figures={"pairs_per_s": round(statistics.median(rates))},
        details={
            "callers": callers,
            "cpu_us_per_pair_of": spent,
            "pair_alone_us": round(alone_s / alone * 1e6, 1),
            "rounds": [round(one) for one in rates],
        },
        objections=() if options.cores.are_apart else ("there is one core only",),
    )


@asynccontextmanager
async def conveying(books: Books) -> AsyncIterator[Conveyor]:
    """A conveyor at work."""
    conveyor = Conveyor(books.urls.redis, partitions=PARTITIONS)
    task = asyncio.get_running_loop().create_task(conveyor.run(), name="conveyor")
    try:
        yield conveyor
    finally:
        task.cancel()
        await asyncio.wait({task})


async def pairs(books: Books, conveyor: Conveyor, *, callers: int, calls: int) -> int:
    """Hold and settle that often; how often it was."""
    each = -(-calls // callers)

    async def caller() -> None:
        for _ in range(each):
            hold, end = books.call()
            answer = await conveyor.hold(hold, deadline_s=_HOLD_S_MAX)
            assert isinstance(answer, Held), answer
            conveyor.settle(end)

    async with asyncio.TaskGroup() as group:
        for number in range(callers):
            group.create_task(caller(), name=f"caller {number}")
    assert not await conveyor.drain(10), "ends are left"
    return each * callers


async def _round(
    books: Books, conveyor: Conveyor, *, callers: int, seconds: float
) -> tuple[int, float]:
    """How many pairs were made, and in what time."""
    began_s, calls = time.monotonic(), 0
    while time.monotonic() < began_s + seconds:
        calls += await pairs(
            books, conveyor, callers=callers, calls=max(1, _BLOCK * callers // _CALLERS)
        )
    return calls, time.monotonic() - began_s


def _cpu() -> dict[str, float]:
    valkey = [pid for pid, command in descendants(os.getpid()).items() if "valkey" in command]
    return {"conveyor": time.process_time(), "valkey": cpu_s(valkey)}
