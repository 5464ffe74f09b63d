"""One step of a partition's stream into Postgres: read what follows the watermark, write it.

The flusher and the recovery both drain, each with a connection of its own.
"""

from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import NamedTuple

from ledger.commit import Committed, Position, Source, commit_all
from ledger.functions import Partition
from ledger.postgres import Connection
from ledger.stream import UNKNOWN_KIND, Ended, Poison, admitted_ms, parse, place_of

PROVEN_CHANNEL = "tg:proven"  # lines "<partition> <generation> <stream id>", as Postgres has them
BATCH_MAX = 5_000  # entries in a transaction: some 40 ms, which nobody waiting for the row minds
_DAYS_AHEAD = 2  # a gateway's clock may be this wrong before its calls go to the default partition
_ACK_MAX = 500  # call ids in one step of Redis
_DAY_MS = 86_400_000
_MAKE_DAY = """
    SELECT make_day_partitions(day, 1)
    FROM (SELECT to_timestamp($1::bigint / 1000)::date AS day) AS wanted, installation
    WHERE day BETWEEN records_from::date AND now()::date + $2::integer
"""


class Step(NamedTuple):
    """What one step did."""

    read: int  # entries that were in the stream; as many as asked for when there are more
    committed: list[Committed]
    oldest_ms: int | None  # Redis' time of the first entry read; None if there was none

    @property
    def position(self) -> Position | None:
        """The watermark after it; None if it did not move."""
        return self.committed[-1].position if self.committed else None


class NewerRelease(Exception):
    """The next entry was logged for a newer release, whose flusher must write it: none is lost."""


class Drain:
    """Writes entries to Postgres over one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._days: set[int] = set()  # whose partitions are made, or are not to be made

    async def step(
        self,
        partition: Partition,
        after: Position,
        *,
        limit: int = BATCH_MAX,
        recovering: tuple[int, str] | None = None,
    ) -> Step:
        """Write the entries that follow `after`, `limit` at most; see `commit_batch`.

        What a newer release logs in a way unknown here is left to it: what is before that is
        written, then `NewerRelease` is raised. A kind that no release can know is a dead letter.
        """
        entries = await partition.peek(after.generation, after.stream_id, limit)
        read = len(entries)
        if not read:
            return Step(0, [], None)
        sources = [Source(parse(entry.id, entry.fields), entry.fields) for entry in entries]
        if any(map(_is_unknown, sources)) and await partition.is_newer():
            sources = [*takewhile(lambda source: not _is_unknown(source), sources)]
            read = limit  # what is left is more: nobody may take the stream for drained
            if not sources:
                raise NewerRelease(f"partition {partition.number}: {entries[0].id}")
        await self.make_days(sources)
        committed = await commit_all(
            self._connection,
            partition.number,
            sources=sources,
            after=after,
            recovering=recovering,
        )
        return Step(read, committed, place_of(entries[0].id)[0])

    async def make_days(self, sources: Iterable[Source]) -> None:
        """Make the partitions that the records will go to; ahead of time that was done already."""
        ended = (source.parsed for source in sources)
        days = {admitted_ms(one.call_id) // _DAY_MS for one in ended if isinstance(one, Ended)}
        for day in days - self._days:
            await self._connection.execute(_MAKE_DAY, day * _DAY_MS, _DAYS_AHEAD)
            self._days.add(day)


async def acknowledge(partition: Partition, generation: int, batches: Sequence[Committed]) -> None:
    """Let Redis forget the ends that Postgres has."""
    for committed in batches:
        for start in range(0, len(committed.call_ids), _ACK_MAX):
            await partition.ack(generation, committed.call_ids[start : start + _ACK_MAX])


def _is_unknown(source: Source) -> bool:
    return isinstance(source.parsed, Poison) and source.parsed.error == UNKNOWN_KIND


def proof_lines(proven: dict[int, Position]) -> str:
    """The message on `PROVEN_CHANNEL`."""
    return "\n".join(f"{number} {at.generation} {at.stream_id}" for number, at in proven.items())


def read_proof(message: bytes) -> dict[int, Position]:
    """What a message on `PROVEN_CHANNEL` says."""
    lines = (line.split() for line in message.decode().splitlines())
    return {int(number): Position(int(gen), stream_id) for number, gen, stream_id in lines}
