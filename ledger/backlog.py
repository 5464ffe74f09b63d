"""How much of the streams Postgres has not got yet, and which partitions must wait for it.

Entries are counted and never read: Redis knows how many a stream ever got, the flusher how many of
them it wrote. A partition of which that is not known yet counts with all that its stream holds.
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from ledger.fcall import execute, key_names, obeyed

BACKLOG_CHANNEL = "tg:backlog"  # the partitions that are over, once a second: "0 7 12"
EVERY_S = 1.0

_META, _DUE = 0, 7  # where `key_names` has them

_log = logging.getLogger(__name__)


class Count(NamedTuple):
    """What is to be known of a partition's stream and holds."""

    unflushed: int
    open_holds: int


class _Flushed(NamedTuple):
    generation: int
    entries: int | None  # of this generation's stream, in Postgres; None: not known yet


class _Stream(NamedTuple):
    added: int  # entries it ever got
    length: int  # entries it has


class Backlog:
    """Counts some partitions once a second and tells the gateways which are to admit nothing.

    Together they may hold `entries_max` unflushed entries. When they hold more, those wait that are
    above their equal share, so that a busy partition does not close the others.
    """

    def __init__(self, redis: Redis, *, partitions: Sequence[int], entries_max: int) -> None:
        self._redis, self._partitions, self._entries_max = redis, partitions, entries_max
        self._flushed: dict[int, _Flushed] = {}
        self.counts: dict[int, Count] = {}

    async def added(self, partition: int, generation: int) -> int:
        """How many entries the stream ever got; ask before it is read."""
        try:
            return _stream(await execute(self._redis, *_info(partition, generation))).added
        except ResponseError:
            return 0  # it is made with its first entry

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
                await self.count()
                over = " ".join(map(str, self.over()))
                await obeyed(self._redis.publish(BACKLOG_CHANNEL, over))
            except (RedisError, OSError) as error:
                _log.warning("backlog not counted", extra={"reason": str(error)})
            await asyncio.sleep(EVERY_S)

    async def count(self) -> None:
        """Bring `counts` up to date."""
        names = {number: key_names(number, 0) for number in self._partitions}
        found = await self._each(("HGET", names[number][_META], "gen") for number in names)
        generations = {number: int(one or 0) for number, one in zip(names, found, strict=True)}
        streams = await self._each(_info(number, generations[number]) for number in names)
        held = await self._each(("ZCARD", names[number][_DUE]) for number in names)
        for number, told, open_holds in zip(names, streams, held, strict=True):
            stream = _Stream(0, 0) if isinstance(told, ResponseError) else _stream(told)
            unflushed = self._unflushed(number, generations[number], stream)
            self.counts[number] = Count(unflushed, int(open_holds))

    def over(self) -> list[int]:
        """The partitions that are to admit nothing."""
        if sum(count.unflushed for count in self.counts.values()) <= self._entries_max:
            return []
        share = self._entries_max // len(self._partitions)
        return [number for number, count in self.counts.items() if count.unflushed > share]

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


def _stream(told: Any) -> _Stream:
    """What XINFO STREAM says: pairs, or a dict where the client has made one of them."""
    pairs = told.items() if isinstance(told, dict) else zip(told[::2], told[1::2], strict=True)
    named = {key if isinstance(key, str) else key.decode(): value for key, value in pairs}
    return _Stream(int(named["entries-added"]), int(named["length"]))


def read_over(message: bytes) -> frozenset[int]:
    """What a message on `BACKLOG_CHANNEL` says."""
    return frozenset(map(int, message.split()))
