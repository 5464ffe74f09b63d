"""Holds and settlements per second by one process, through the conveyor; no flusher, no HTTP."""

import asyncio
import os
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.books import PARTITIONS, Books
from benchmarks.options import Options, Outcome
from benchmarks.processes import cpu_s, descendants, per_call_us, staying_on
from ledger.admission import Held
from ledger.conveyor import Conveyor

_HOLD_S_MAX = 2.0
_WARM_CALLS = 2_000


async def measure(options: Options, folder: Path) -> Outcome:
    """Pairs per second with as many callers as the load has connections, and alone."""
    async with Books.opened(folder / "books") as books:
        rounds: list[float] = []
        with staying_on(options.cores.measured):
            async with conveying(books) as conveyor:
                await pairs(books, conveyor, callers=options.connections, calls=_WARM_CALLS)
                before = _cpu()
                calls = 0
                for _ in range(options.repeats):
                    until_s = time.monotonic() + options.seconds
                    began_s, done = time.monotonic(), 0
                    while time.monotonic() < until_s:
                        done += await pairs(
                            books, conveyor, callers=options.connections, calls=_WARM_CALLS
                        )
                    rounds.append(done / (time.monotonic() - began_s))
                    calls += done
                spent = per_call_us(before, _cpu(), calls)
                alone = await pairs(books, conveyor, callers=1, calls=_WARM_CALLS // 10)
                alone_s = await _timed(books, conveyor, calls=alone)
    return Outcome(
        figures={"pairs_per_s": round(statistics.median(rounds))},
        details={
            "callers": options.connections,
            "cpu_us_per_pair_of": spent,
            "pair_alone_us": round(alone_s * 1e6, 1),
            "rounds": [round(one) for one in rounds],
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


async def _timed(books: Books, conveyor: Conveyor, *, calls: int) -> float:
    began_s = time.monotonic()
    done = await pairs(books, conveyor, callers=1, calls=calls)
    return (time.monotonic() - began_s) / done


def _cpu() -> dict[str, float]:
    valkey = [pid for pid, command in descendants(os.getpid()).items() if "valkey" in command]
    return {"conveyor": time.process_time(), "valkey": cpu_s(valkey)}
