"""Many slow streams at once: what a chunk costs, how much later it comes, what a stream occupies.

The same vendor and client without the gateway between them are the yardstick of the delays.
"""

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any, NamedTuple

from benchmarks.load import Headers
from benchmarks.nginx import end
from benchmarks.options import Options, Outcome
from benchmarks.processes import cpu_s, rss_kb
from benchmarks.stand import Stand

CHUNKS_PER_S = 20
_WARM_S_MAX = 2.0
_FEW = 8  # streams that make the worker allocate what it needs in any case


class _Watched(NamedTuple):
    """What the client saw, and what was used meanwhile."""

    seen: dict[str, Any]
    cpu_s: dict[str, float]
    rss_kb: int


async def measure(options: Options, folder: Path) -> Outcome:
    """Open the streams directly, then through the gateway."""
    warm_s = min(_WARM_S_MAX, options.seconds)
    chunks = round((options.seconds + 4 * warm_s + 1) * CHUNKS_PER_S)
    async with AsyncExitStack() as stack:
        vendor, port = stack.enter_context(_vendor(chunks))
        started = Stand.started(folder / "gateway", vendor_port=port, cores=options.cores)
        stand = await stack.enter_async_context(started)
        direct = await _watched(options, f"http://127.0.0.1:{port}", {}, warm_s=warm_s)
        few = await _watched(
            options, stand.url, stand.headers[0], warm_s=warm_s, stand=stand, streams=_FEW
        )
        through = await _watched(options, stand.url, stand.headers[0], warm_s=warm_s, stand=stand)
        vendor_cpu_s = cpu_s([vendor.pid])
    seen, beside = through.seen, direct.seen
    streams = seen["streams"]
    per_chunk = 1e6 / max(1, seen["chunks"])
    per_stream = (through.rss_kb - few.rss_kb) / max(1, streams - _FEW)
    return Outcome(
        figures={
            "streams": streams,
            # Less the usual delay alone: the tail of vendor and client counts as ours.
            "chunk_added_p99_ms": round(seen["p99_ms"] - beside["p50_ms"], 3),
            "rss_per_stream_kb": round(per_stream, 1),
        },
        details={
            "chunks_per_s": round(seen["chunks"] / options.seconds),
            "cpu_us_per_chunk_of": {
                role: round(used * per_chunk, 1) for role, used in through.cpu_s.items()
            },
            "worker_busy": round(through.cpu_s["worker"] / options.seconds, 3),
            "through": seen,
            "direct": beside,
            "vendor_cpu_s": vendor_cpu_s,
        },
        objections=_objections(options, through, direct),
    )


def _objections(options: Options, through: _Watched, direct: _Watched) -> list[str]:
    found = [] if options.cores.are_apart else ["there is one core only"]
    expected = options.streams * CHUNKS_PER_S * options.seconds
    for name, seen in (("gateway", through.seen), ("direct", direct.seen)):
        if seen["streams"] < options.streams:
            found.append(f"{name}: only {seen['streams']} of {options.streams} streams stayed open")
        if seen["chunks"] < 0.9 * expected:
            found.append(f"{name}: {seen['chunks']} of {expected:.0f} chunks came in time")
    return found


async def _watched(
    options: Options,
    url: str,
    headers: Headers,
    *,
    warm_s: float,
    stand: Stand | None = None,
    streams: int | None = None,
) -> _Watched:
    lines = "\n".join(f"{name}: {value}" for name, value in headers.items())
    numbers = (streams or options.streams, options.seconds, warm_s)
    command = [sys.executable, "-m", "benchmarks.streams", "client", url, *map(str, numbers), lines]
    client = Popen(command, stdout=PIPE)
    assert client.stdout is not None
    try:
        opened = await asyncio.to_thread(client.stdout.readline)
        assert opened == b"open\n", "the client failed"
        before = stand.cpu_s() if stand else {}
        said = await asyncio.to_thread(client.stdout.readline)
        after = stand.cpu_s() if stand else {}
        rss = rss_kb(stand.worker) if stand else 0
    finally:
        client.stdout.close()
        end(client)
    return _Watched(json.loads(said), {role: after[role] - before[role] for role in after}, rss)


@contextmanager
def _vendor(chunks: int) -> Iterator[tuple[Popen[bytes], int]]:
    command = [sys.executable, "-m", "benchmarks.streams", "vendor", str(chunks)]
    process = Popen([*command, str(1 / CHUNKS_PER_S)], stdout=PIPE)
    assert process.stdout is not None
    try:
        yield process, int(process.stdout.readline())
    finally:
        process.stdout.close()
        end(process)
