"""What a recovery brings into Postgres before it loads: the rest of each stream, to the last entry.

Nobody looks at an older generation's stream again once the watermark is in a newer one, so it moves
there only when all that was read is committed and there was no more to read.
"""

import asyncio
from typing import NamedTuple

from ledger.commit import Committed, Position, Superseded
from ledger.drain import BATCH_MAX, Drain, acknowledge
from ledger.functions import Partition
from ledger.postgres import Connection, one_row

_BUSY_S = 0.01  # the row is locked for a credit: try again
_WATERMARK = "SELECT watermark_generation, watermark_id FROM part WHERE number = $1"
_NEXT_STREAM = """
    UPDATE part SET watermark_generation = $4, watermark_id = '0-0',
        lease_until = now() + interval '5 seconds'
    WHERE number = $1 AND generation = $2 AND owner = $3 AND state = 'recovering'
"""


class Fence(NamedTuple):
    """Who recovers a partition, and in which generation: what its row in Postgres must say."""

    partition: int
    generation: int
    owner: str

    def superseded(self) -> Superseded:
        """The error for a row that says something else."""
        return Superseded(f"partition {self.partition}: generation {self.generation}")


class Drained(NamedTuple):
    """How far one stream was brought into Postgres."""

    entries: int
    position: Position
    committed: list[Committed]


async def drain_older(
    connection: Connection, partition: Partition, fence: Fence, position: Position
) -> int:
    """Bring the streams of every generation before this one into Postgres; how many entries."""
    drained = 0
    while position.generation < fence.generation:
        drained += (await drain_stream(connection, partition, fence, position)).entries
        # Frozen, an older generation gets no stream any more; attempts that failed left none.
        following = await partition.next_log(position.generation + 1, fence.generation)
        position = Position(following, "0-0")
        moved = await connection.execute(_NEXT_STREAM, *fence, following)
        if moved != "UPDATE 1":
            raise fence.superseded()
    return drained


async def drain_stream(
    connection: Connection,
    partition: Partition,
    fence: Fence,
    position: Position,
    *,
    acks: bool = True,
) -> Drained:
    """Bring the rest of one stream into Postgres. `acks`: tell Redis, which must be frozen."""
    drain, done = Drain(connection), Drained(0, position, [])
    while True:
        step = await drain.step(
            partition, done.position, recovering=(fence.generation, fence.owner)
        )
        if acks:
            await acknowledge(partition, fence.generation, step.committed)
        position = step.position or done.position
        entries = sum(committed.entries for committed in step.committed)
        done = Drained(done.entries + entries, position, [*done.committed, *step.committed])
        if entries == step.read < BATCH_MAX:
            return done
        if entries < step.read:  # somebody has the row at this moment, or had it between two parts
            await asyncio.sleep(_BUSY_S)
            done = done._replace(position=await _reread(connection, fence, position))


async def _reread(connection: Connection, fence: Fence, position: Position) -> Position:
    """The watermark, which somebody else may have moved within the same stream."""
    watermark = Position(*await one_row(connection, _WATERMARK, fence.partition))
    if watermark.generation != position.generation:
        raise fence.superseded()
    return watermark
