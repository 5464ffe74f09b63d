"""Shorten the streams behind the watermark: they are the redo log for a restored Postgres.

A day of them is kept, or `keep_bytes` in all partitions together, whichever is less. An entry that
is not in Postgres is never dropped, however long the stream.
"""

import asyncpg

from ledger.commit import Position
from ledger.functions import Partition
from ledger.stream import place_of

KEEP_MS = 24 * 3_600_000
# A stream gets entries until the next recovery begins; a week later it is long gone.
_OLDER = """
    SELECT generation, over_at < now() - interval '24 hours' AS is_over
    FROM (
        SELECT generation, lead(started_at, 1, now()) OVER (ORDER BY generation) AS over_at
        FROM recovery_log WHERE partition = $1 AND generation <= $2
    ) AS streams
    WHERE generation < $2 AND over_at > now() - interval '7 days'
    ORDER BY generation
"""


async def trim(
    connection: asyncpg.Connection, partition: Partition, *, watermark: Position, keep_bytes: int
) -> None:
    """Drop what need not be kept. `watermark` is Postgres' own; `keep_bytes` this partition's."""
    generation = watermark.generation
    kept_bytes = await partition.log_bytes(generation)
    older: list[tuple[int, int]] = []
    for row in await connection.fetch(_OLDER, partition.number, generation):
        if row["is_over"]:
            await partition.drop_log(row["generation"])
        else:
            older.append((row["generation"], await partition.log_bytes(row["generation"])))
    excess_bytes = kept_bytes + sum(size for _, size in older) - keep_bytes
    for old_generation, size in older:
        if excess_bytes <= 0:
            break
        await partition.drop_log(old_generation)
        excess_bytes -= size
    before = await _cut(partition, watermark, excess=max(0, excess_bytes), size=kept_bytes)
    if before is not None:
        await partition.trim(generation, before)


async def _cut(partition: Partition, watermark: Position, *, excess: int, size: int) -> str | None:
    """The id before which entries go; None if all stay.

    Entries are taken to be spread evenly in time, so that a few rounds end at the wanted size.
    """
    first = await partition.peek(watermark.generation, "0-0", 1)
    if not first:
        return None
    state = await partition.state()
    first_ms, flushed_ms = place_of(first[0].id)[0], place_of(watermark.stream_id)[0]
    cut_ms = state.now_ms - KEEP_MS
    if excess:
        cut_ms = max(cut_ms, first_ms + (flushed_ms - first_ms) * excess // max(size, 1))
    cut_ms = min(cut_ms, flushed_ms)
    return f"{cut_ms}-0" if cut_ms > first_ms else None
