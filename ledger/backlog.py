"""How much of the streams Postgres has not got yet, and which partitions must wait for it.

It is bounded twice: by a number of entries and by a share of the memory that Redis may use.

Entries are counted and never read: Redis knows how many a stream ever got, the flusher how many of
them it wrote. A partition of which that is not known yet counts with all that its stream holds.
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from ledger.cancelled import obeyed, raise_if_cancelled
from ledger.clients import ask_all
from ledger.fcall import execute, key_names
from ledger.outage import REDIS, outage

BACKLOG_CHANNEL = "tg:backlog"  # the partitions that are over, once a second: "0 7 12"
EVERY_S = 1.0

_FEW = 1_000  # unflushed entries that are no backlog: a flush or two

_META, _DUE = 0, 7  # where `key_names` has them

_log = logging.getLogger(__name__)


class Count(NamedTuple):
    """What is to be known of a partition's stream and holds."""

    unflushed: int
    open_holds: int


class Limits(NamedTuple):
    """How large a backlog may be before nothing more is admitted."""

    entries_max: int
    memory_share_max: float = 1.0  # of Redis' maxmemory, where it has one
    warn_share: float = 0.5  # of either: from there on it is told


class _Flushed(NamedTuple):
    generation: int
    entries: int | None  # of this generation's stream, in Postgres; None: not known yet


class _Stream(NamedTuple):
    added: int  # entries it ever got
    length: int  # entries it has


class Backlog:
    """Counts some partitions once a second and tells the gateways which are to admit nothing.

    When together they hold more than `limits` allow, those wait that are above their equal share,
    so that a busy partition does not close the others.
    """

    def __init__(self, redis: Redis, *, partitions: Sequence[int], limits: Limits) -> None:
        self._redis, self._partitions, self._limits = redis, partitions, limits
        self._memory_share = 0.0  # of what Redis may use
        self._flushed: dict[int, _Flushed] = {}
        self.counts: dict[int, Count] = {}
        self._told, self._trouble = False, ""

    async def added(self, partition: int, generation: int) -> int:
        """How many entries the stream ever got; ask before it is read."""
        try:
            return _stream(await execute(self._redis, *_info(partition, generation))).added
        except ResponseError as error:
            return _stream(error).added

    def took(
        self, partition: int, generation: int, *, read: int, wrote: int, added: int | None
    ) -> None:
        """The flusher has read `read` entries and committed `wrote` of them.

        `added`: it reached the end of the stream, which had this many before it was read.
        """
        before = self._flushed.get(partition)
        flushed = before.entries if before and before.generation == generation else None
        if added is not None:
            flushed = added - read
        if flushed is not None:
            flushed += wrote
        self._flushed[partition] = _Flushed(generation, flushed)

    async def watch(self) -> None:
        """Count and tell, until cancelled; Postgres is not asked, so it may be away."""
        while True:
            try:
                missing = await self.count()
                over = " ".join(map(str, self.over()))
                await obeyed(self._redis.publish(BACKLOG_CHANNEL, over))
                if missing is not None:
                    raise missing
                self._told = True
            except (RedisError, OSError) as error:
                raise_if_cancelled()
                said = outage(error, of=REDIS)
                self._trouble = said["reason"]
                _log.warning("backlog not counted", extra=said)
            await asyncio.sleep(EVERY_S)

    async def count(self) -> RedisError | None:
        """Bring `counts` up to date. What a node of a Cluster has that is away, or what Redis
        refuses to say, stays as it was counted last; returned is the first such error.
        """
        names = {number: key_names(number, 0) for number in self._partitions}
        found = await self._each(("HGET", names[number][_META], "gen") for number in names)
        generations = {
            number: int(one or 0)
            for number, one in zip(names, found, strict=True)
            if not isinstance(one, RedisError)
        }
        streams = await self._each(_info(*one) for one in generations.items())
        held = await self._each(("ZCARD", names[number][_DUE]) for number in generations)
        memory = await ask_all(self._redis, "INFO", "memory")
        self._memory_share = max(map(_share, memory), default=0.0)
        missing = [one for one in found if isinstance(one, RedisError)]
        for number, told, open_holds in zip(generations, streams, held, strict=True):
            try:
                stream = _stream(told)
                if isinstance(open_holds, RedisError):
                    raise open_holds
            except RedisError as error:
                missing.append(error)
            else:
                unflushed = self._unflushed(number, generations[number], stream)
                self.counts[number] = Count(unflushed, int(open_holds))
        return next(iter(missing), None)

    def take_news(self) -> str | None:
        """Since this was asked last: "" if it was counted, or why not; None: neither."""
        news = self._trouble or ("" if self._told else None)
        self._told, self._trouble = False, ""
        return news

    def over(self) -> list[int]:
        """The partitions that are to admit nothing."""
        if self.fill <= 1:
            return []
        # What would just be allowed, in equal parts: some partition is always above its own.
        share = int(self.unflushed / self.fill) // len(self._partitions)
        return [number for number, count in self.counts.items() if count.unflushed > share]

    @property
    def unflushed(self) -> int:
        """Entries that Postgres has not got, of all partitions."""
        return sum(count.unflushed for count in self.counts.values())

    @property
    def fill(self) -> float:
        """The share of what may wait that waits; above 1 nothing more is admitted.

        Memory counts once there is a backlog to speak of: what else fills Redis, no pause empties.
        """
        total, limits = self.unflushed, self._limits
        by_entries = total / limits.entries_max
        if total <= _FEW:
            return by_entries
        return max(by_entries, self._memory_share / limits.memory_share_max)

    @property
    def is_worrying(self) -> bool:
        """Whether somebody should see why Postgres does not take the entries."""
        return self.fill > self._limits.warn_share

    def _unflushed(self, number: int, generation: int, stream: _Stream) -> int:
        flushed = self._flushed.get(number)
        if flushed is None or flushed.generation != generation or flushed.entries is None:
            return stream.length
        return max(0, stream.added - flushed.entries)

    async def _each(self, commands: Iterable[tuple[str, ...]]) -> list[Any]:
        """The answers to all of them, in one round trip; an error is one, too."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            for command in commands:
                _ = pipeline.execute_command(*command)
            return await obeyed(pipeline.execute(raise_on_error=False))


def _info(partition: int, generation: int) -> tuple[str, ...]:
    return "XINFO STREAM", key_names(partition, generation)[-1]


def _share(told: Any) -> float:
    """What INFO says of memory; 0.0 if Redis has no limit, or this user may not ask."""
    if not isinstance(told, dict) or not told.get("maxmemory"):
        return 0.0
    return float(told["used_memory"]) / float(told["maxmemory"])


def _stream(told: Any) -> _Stream:
    """What XINFO STREAM says: pairs, or a dict where the client has made one of them.

    Raises what it was refused with, unless there is no stream: its first entry makes it.
    """
    if isinstance(told, ResponseError) and "no such key" in str(told):
        return _Stream(added=0, length=0)
    if isinstance(told, RedisError):
        raise told
    pairs = told.items() if isinstance(told, dict) else zip(told[::2], told[1::2], strict=True)
    named = {key if isinstance(key, str) else key.decode(): value for key, value in pairs}
    return _Stream(int(named["entries-added"]), int(named["length"]))


def read_over(message: bytes) -> frozenset[int]:
    """What a message on `BACKLOG_CHANNEL` says."""
    return frozenset(map(int, message.split()))
