"""Bring the streams into Postgres, for ever: each entry once, whoever is killed when.

Two flushers of one partition are correct and only waste work: the partition row's lock lets one of
them write. The loop runs at its own pace, so load makes batches longer, not transactions more.
It also ends overdue holds, pushes new bases, ends withdrawals that were cut and says how far the
proof in Postgres reaches.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisError

from ledger.backlog import Backlog
from ledger.bases import push_bases
from ledger.cancelled import raise_if_cancelled
from ledger.commit import Committed, Position
from ledger.drain import (
    BATCH_MAX,
    PROVEN_CHANNEL,
    Drain,
    NewerRelease,
    Step,
    acknowledge,
    proof_lines,
)
from ledger.fcall import execute
from ledger.functions import Epoch, Partition
from ledger.moved import Moved
from ledger.outage import outage
from ledger.postgres import AWAY, connect
from ledger.recovery import ailment
from ledger.trim import trim
from ledger.withheld import conclude

_COUNT_EVERY_S = 1.0
_IDLE_S = 0.4  # between looks at a stream that had nothing: sixteen idle ones must cost nothing
_SWEEP_EVERY_S = 1.0
_SWEEP_MAX = 500
_PROVE_EVERY_S = 1.0
_TRIM_EVERY_S = 60.0
_CONCLUDE_EVERY_S = 5.0  # a withdrawal that was cut keeps money back for this much longer
_BACKOFF_S_MAX = 1.0
_PARTS = """
    SELECT number, generation, state, lease_until < now() AS lapsed, watermark_generation,
           watermark_id, version, activated_version
    FROM part WHERE number = ANY ($1::smallint[]) ORDER BY number
"""
_log = logging.getLogger(__name__)


class _Part(NamedTuple):
    number: int
    generation: int
    state: str
    lapsed: bool | None
    watermark: Position
    version: int
    activated_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How a flusher works."""

    batch_max: int = BATCH_MAX  # entries in a transaction
    interval_s: float = 0.1  # between rounds: a credit is usable within half a second
    keep_bytes: int = 1 << 30  # of entries that are in Postgres, in all streams together


@dataclass(slots=True)
class FlusherTallies:
    """What the flusher did since it started, for the metrics page."""

    entries: int = 0
    records: int = 0
    corrections: int = 0
    late: int = 0
    dead_letters: int = 0
    batches: int = 0
    swept: int = 0
    reads: int = 0  # rounds that Postgres answered
    rounds: int = 0  # of them those without any trouble
    failures: int = 0
    trouble: Mapping[str, str] = field(default_factory=dict)  # the last failure: cause and reason
    # By partition: what ended before this, unix seconds, is in Postgres.
    as_of_s: dict[int, float] = field(default_factory=dict)


async def watermarks(connection: asyncpg.Connection) -> dict[int, Position]:
    """How far each partition's stream is in Postgres: what proves a journal's entries."""
    rows = await connection.fetch("SELECT number, watermark_generation, watermark_id FROM part")
    return {row[0]: Position(row[1], row[2]) for row in rows}


def _nothing(*_: object) -> None:
    """Nobody listens."""


class Flusher:
    """Drains some partitions over one connection of its own.

    `clock` is unix seconds, for the lag alone. `on_epoch` is told of every partition that needs a
    recovery, again and again until it had one. `on_flush`: how many seconds a batch took.
    """

    def __init__(
        self,
        url: str,
        redis: Redis,
        *,
        partitions: Sequence[int],
        clock: Callable[[], float],
        on_epoch: Callable[[int], None],
        on_flush: Callable[[float], None] = _nothing,
        backlog: Backlog | None = None,
        pace: Pace | None = None,
    ) -> None:
        self._url, self._redis, self._clock, self._on_epoch = url, redis, clock, on_epoch
        self._on_flush, self._backlog = on_flush, backlog
        self._pace = pace or Pace()
        self.moved = Moved()  # what committed batches have moved
        self._partitions = {number: Partition(redis, number) for number in partitions}
        self._keep_bytes = self._pace.keep_bytes // max(1, len(partitions))
        self._pushed: dict[int, tuple[int, int]] = {}  # partition -> (generation, version)
        self._done_at: dict[tuple[str, int], float] = {}  # (chore, partition) -> loop time
        self._proven: dict[int, Position] = {}
        self._unpublished: set[int] = set()  # partitions whose proof is not published yet
        self._idle: set[int] = set()  # partitions whose stream had nothing when last looked at
        self._trouble: Exception | None = None  # of this round, told when it is over
        self.tallies = FlusherTallies(as_of_s=dict.fromkeys(partitions, clock()))

    async def run(self) -> None:
        """Flush until cancelled; whatever fails is tried again within a second."""
        backoff_s = 0.05
        while True:
            try:
                connection = await connect(self._url, name="flusher")
                try:
                    backoff_s = 0.05
                    await self._rounds(connection)
                finally:
                    await _closed(connection)
            # A job's loop: any error, known or not, must leave it running.
            except Exception as error:  # noqa: BLE001 - see above
                raise_if_cancelled()
                self._note_failure(error)
            await asyncio.sleep(backoff_s)
            backoff_s = min(_BACKOFF_S_MAX, backoff_s * 2)

    async def flush_once(self, number: int, connection: asyncpg.Connection | None = None) -> int:
        """Flush a batch of one partition; how many entries it committed.

        0: there was nothing, or the partition is another process's now or in recovery.
        """
        if connection is None:
            own = await connect(self._url, name="flusher")
            try:
                return await self.flush_once(number, own)
            finally:
                await own.close()
        (part,) = await _read_parts(connection, [number])
        return await self._flush(Drain(connection), part)

    async def flush_rest(self, *, within_s: float) -> None:
        """Flush all that the streams have now, and leave to the next start what takes longer.

        It ends in time whatever the servers do, and at once when Postgres is away.
        """
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + within_s
        try:
            async with asyncio.timeout_at(deadline_s):
                connection = await connect(self._url, name="last flush")
                # Or a transaction that is given up would wait for its server to roll it back.
                cutting = loop.call_at(deadline_s, connection.terminate)
                try:
                    for number in self._partitions:
                        await self._flush_whole(number, connection)
                finally:
                    cutting.cancel()
                    connection.terminate()
        except (*AWAY, asyncpg.PostgresError) as error:
            _log.warning("streams are left for the next start", extra=outage(error))

    async def _flush_whole(self, number: int, connection: asyncpg.Connection) -> None:
        try:
            while await self.flush_once(number, connection):
                pass
        except (RedisError, Epoch, NewerRelease) as error:
            said = {"partition": number, **outage(error)}
            _log.warning("a stream is left for the next start", extra=said)

    async def _rounds(self, connection: asyncpg.Connection) -> None:
        drain = Drain(connection)
        while True:
            most = 0
            self._trouble = None
            parts = await _read_parts(connection, list(self._partitions))
            self.tallies.reads += 1
            for part in parts:
                most = max(most, await self._tend_safely(connection, drain, part))
            await self._prove()
            if self._trouble is not None:
                raise self._trouble  # a server that became read-only needs another connection
            self.tallies.rounds += 1
            if most < self._pace.batch_max:
                await asyncio.sleep(self._pace.interval_s)

    async def _tend_safely(self, connection: asyncpg.Connection, drain: Drain, part: _Part) -> int:
        """One round of one partition, whose trouble must not keep the others waiting."""
        try:
            return await self._tend(connection, drain, part)
        except Epoch:
            self._on_epoch(part.number)
        except (asyncpg.PostgresError, RedisError, ValueError) as error:
            raise_if_cancelled()
            if connection.is_closed():
                raise
            self._trouble = error
        return 0

    async def _tend(self, connection: asyncpg.Connection, drain: Drain, part: _Part) -> int:
        """One round of one partition; how many entries it committed."""
        if part.state != "active":
            if part.state != "recovering" or part.lapsed:
                self._on_epoch(part.number)
            return 0
        flushed = 0
        if part.number not in self._idle or self._is_due("look", part.number, _IDLE_S):
            flushed = await self._flush_known(drain, part)
            (self._idle.discard if flushed else self._idle.add)(part.number)
        await self._push(connection, part)
        partition = self._partitions[part.number]
        if self._is_due("sweep", part.number, _SWEEP_EVERY_S):
            state = await partition.state()
            if ailment(state, generation=part.generation, version=part.version):
                raise Epoch(part.number, state.generation, state.state)
            self.tallies.swept += await partition.sweep(part.generation, _SWEEP_MAX)
        if self._is_due("withdrawals", part.number, _CONCLUDE_EVERY_S):
            await conclude(connection, partition, generation=part.generation)
        if self._is_due("trim", part.number, _TRIM_EVERY_S):
            await trim(connection, partition, watermark=part.watermark, keep_bytes=self._keep_bytes)
        return flushed

    async def _flush_known(self, drain: Drain, part: _Part) -> int:
        """As `_flush`; where an entry of a newer release is next, only flushing waits for it."""
        try:
            return await self._flush(drain, part)
        except NewerRelease as error:
            self._note_failure(error)
            return 0

    async def _flush(self, drain: Drain, part: _Part) -> int:
        if part.state != "active":
            return 0
        partition, after = self._partitions[part.number], part.watermark
        self._proven[part.number] = after
        began_s = asyncio.get_running_loop().time()
        step = await self._step(drain, part, after)
        if step.oldest_ms is None:
            self.tallies.as_of_s[part.number] = self._clock()
            return 0
        self._on_flush(asyncio.get_running_loop().time() - began_s)
        self.tallies.as_of_s[part.number] = step.oldest_ms / 1000
        for committed in step.committed:
            self._tally(committed)
            self.moved.note(committed.wallets, committed.windows)
            self._proven[part.number] = committed.position
            self._unpublished.add(part.number)
        # Only what is committed is acknowledged; a crash here leaves rows that harm nobody.
        await acknowledge(partition, part.generation, step.committed)
        return sum(committed.entries for committed in step.committed)

    async def _step(self, drain: Drain, part: _Part, after: Position) -> Step:
        """One batch, counted."""
        number, generation, added = part.number, after.generation, None
        if self._backlog is not None and self._is_due("count", number, _COUNT_EVERY_S):
            added = await self._backlog.added(number, generation)
        step = await drain.step(self._partitions[number], after, limit=self._pace.batch_max)
        if self._backlog is not None:
            self._backlog.took(
                number,
                generation,
                read=step.read,
                wrote=sum(committed.entries for committed in step.committed),
                added=added if step.read < self._pace.batch_max else None,
            )
        return step

    async def _push(self, connection: asyncpg.Connection, part: _Part) -> None:
        """Push what is above what was pushed or loaded: a push lost in a crash heals here."""
        generation, above = self._pushed.get(part.number, (0, 0))
        is_first = generation != part.generation
        if is_first:
            above = part.activated_version
            self.moved.note_all()  # a recovery has drained the streams since, or another process
        if is_first or part.version > above:
            above = await push_bases(
                connection,
                self._partitions[part.number],
                generation=part.generation,
                above=above,
            )
            self._pushed[part.number] = part.generation, above

    async def _prove(self) -> None:
        """Tell the journals how far Postgres is, when it has moved, and to newcomers."""
        if self._is_due("prove", -1, _PROVE_EVERY_S):
            news = self._proven
        else:
            news = {number: self._proven[number] for number in self._unpublished}
        if news:
            await execute(self._redis, "PUBLISH", PROVEN_CHANNEL, proof_lines(news))
        self._unpublished.clear()

    def _is_due(self, chore: str, number: int, every_s: float) -> bool:
        now = asyncio.get_running_loop().time()
        if now - self._done_at.get((chore, number), float("-inf")) < every_s:
            return False
        self._done_at[chore, number] = now
        return True

    def _tally(self, committed: Committed) -> None:
        tallies = self.tallies
        tallies.batches += 1
        tallies.entries += committed.entries
        tallies.records += committed.records
        tallies.corrections += committed.corrections
        tallies.late += committed.late
        tallies.dead_letters += committed.dead_letters

    def _note_failure(self, error: Exception) -> None:
        self.tallies.failures += 1
        self.tallies.trouble = outage(error)
        expected = isinstance(error, (*AWAY, RedisError, Epoch, NewerRelease))
        _log.warning(
            "flusher failed, trying again", extra={**self.tallies.trouble}, exc_info=not expected
        )


async def _read_parts(connection: asyncpg.Connection, numbers: list[int]) -> list[_Part]:
    rows = await connection.fetch(_PARTS, numbers)
    return [
        _Part(
            row["number"],
            row["generation"],
            row["state"],
            row["lapsed"],
            Position(row["watermark_generation"], row["watermark_id"]),
            row["version"],
            row["activated_version"],
        )
        for row in rows
    ]


async def _closed(connection: asyncpg.Connection) -> None:
    """Close it, politely if the server listens."""
    try:
        await connection.close(timeout=1)
    except (*AWAY, asyncpg.PostgresError):
        connection.terminate()
