"""Records per second into Postgres by one flusher, from streams that were filled before."""

import asyncio
import os
import statistics
import time
from pathlib import Path

from benchmarks.books import Books
from benchmarks.ledger import conveying, pairs
from benchmarks.options import Options, Outcome
from benchmarks.processes import cpu_s, descendants, per_call_us, staying_on
from ledger.flusher import Flusher

_CALLERS = 64
_LOOK_EVERY_S = 0.02
_ROUND_S_MAX = 120.0


async def measure(options: Options, folder: Path) -> Outcome:
    """Fill the stream, then let the flusher empty it; again and again."""
    rates: list[float] = []
    async with Books.opened(folder / "books") as books:
        before, records = _cpu(), 0
        spent_s = dict.fromkeys(before, 0.0)
        for _ in range(options.repeats):
            async with conveying(books) as conveyor:
                count = await pairs(books, conveyor, callers=_CALLERS, calls=options.records)
            before = _cpu()
            with staying_on(options.cores.measured):
                rates.append(count / await _flushed_s(books, count))
            for role, used in _cpu().items():
                spent_s[role] += used - before[role]
            records += count
    return Outcome(
        figures={"records_per_s": round(statistics.median(rates))},
        details={
            "records": records,
            "cpu_us_per_record_of": per_call_us(dict.fromkeys(spent_s, 0.0), spent_s, records),
            "rounds": [round(one) for one in rates],
        },
        objections=() if options.cores.are_apart else ("there is one core only",),
    )


async def _flushed_s(books: Books, count: int) -> float:
    """How long a flusher takes for so many records, from its first look to its last commit."""
    flusher = Flusher(
        books.urls.postgres,
        books.redis,
        partitions=[books.partition],
        clock=time.time,  # noqa: TID251 - a root: the flusher's lag is told by this clock
        on_epoch=_unexpected,
    )
    began_s = time.monotonic()
    task = asyncio.get_running_loop().create_task(flusher.run(), name="flusher")
    try:
        async with asyncio.timeout(_ROUND_S_MAX):
            while flusher.tallies.records < count:  # noqa: ASYNC110 - the flusher tells nobody
                await asyncio.sleep(_LOOK_EVERY_S)
        return time.monotonic() - began_s
    finally:
        task.cancel()
        await asyncio.wait({task})


def _unexpected(partition: int) -> None:
    raise AssertionError(f"partition {partition} lost its data")


def _cpu() -> dict[str, float]:
    below = descendants(os.getpid())
    roles = {
        role: [pid for pid, command in below.items() if role in command]
        for role in ("postgres", "valkey")
    }
    return {"flusher": time.process_time(), **{role: cpu_s(pids) for role, pids in roles.items()}}
