"""API key in, principal out: a process cache in front of Redis in front of Postgres.

A valid key is never answered with 401 and an invalid one never passes: when neither store can tell,
the answer is 503. Lookups of one key are one lookup; lookups of many keys are one query, and the
queries of a process have a rate, so no flood of invented keys reaches Postgres as a flood.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, assert_never

from gateway.credential import AuthError, AuthUnavailable, Reason, Shown, key_in
from gateway.key_cache import CacheAway, CachedKey, KeyCache, KeyChange
from gateway.principal import KnownKey, Principal
from ledger.cancelled import raise_if_cancelled
from ledger.outage import REDIS, outage

log = logging.getLogger(__name__)

_ROUNDS_MAX = 4  # a key that changes during its own lookup this often is answered with 503


class StoreAway(Exception):
    """Postgres did not answer; raised by what the authenticator is given to read keys with."""


Find = Callable[[Sequence[bytes]], Awaitable[Mapping[bytes, KnownKey]]]
"""Reads the keys of these digests from Postgres; raises `StoreAway`."""


class Clock(NamedTuple):
    """The two clocks of a process, in seconds."""

    unix_s: Callable[[], float]
    monotonic_s: Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthLimits:
    """How long an answer is believed and how much is asked at once."""

    fresh_s: float = 10.0  # an entry of the process is served without asking for this long
    stale_s: float = 30.0  # and for this long when neither Redis nor Postgres answers
    refused_s: float = 1.0  # a refusal is repeated without asking; news of the key ends it sooner
    recheck_s: float = 15.0  # an entry of Redis older than this is checked against Postgres
    entries_max: int = 100_000
    refused_max: int = 20_000
    waiting_max: int = 5_000  # keys being looked up; more are answered with 503
    batch_max: int = 500  # keys in one query
    queries_per_s: float = 4.0  # of one process; divide by the number of workers
    queries_burst: int = 3
    redis_s: float = 0.25
    postgres_s: float = 0.5
    answer_s: float = 2.0  # the whole lookup, as its caller sees it


class _Entry(NamedTuple):
    principal: Principal
    fresh_until: float
    stale_until: float


class _Flight:
    """One key being looked up, for all who wait for it."""

    __slots__ = ("answer", "cached", "is_stale", "rounds")

    def __init__(self, answer: asyncio.Future[Principal | Reason | None]) -> None:
        self.answer = answer  # None: nobody can tell
        self.cached: CachedKey | None = None  # what Redis had
        self.is_stale = False  # the key changed after it was read
        self.rounds = 1


class Authenticator:
    """Who is behind a key. `run` must be running for `lookup` to be answered."""

    def __init__(
        self,
        *,
        digest: Callable[[str], bytes],
        cache: KeyCache,
        find: Find,
        clock: Clock,
        limits: AuthLimits | None = None,
    ) -> None:
        self._digest, self._cache, self._find = digest, cache, find
        self._unix_s, self._monotonic = clock.unix_s, clock.monotonic_s
        self._limits = limits or AuthLimits()
        # Both in the order of their filling, which for entries this short-lived is as good as LRU.
        self._known: dict[bytes, _Entry] = {}
        self._refused: dict[bytes, tuple[Reason, float]] = {}
        self._flights: dict[bytes, _Flight] = {}
        self._for_redis: list[bytes] = []
        self._for_postgres: list[bytes] = []
        self._redis_wanted, self._postgres_wanted = asyncio.Event(), asyncio.Event()
        self._redis_away_until = self._postgres_away_until = 0.0
        self._asked: asyncio.Task[Mapping[bytes, KnownKey] | None] | None = None
        self._tokens, self._tokens_at = float(self._limits.queries_burst), clock.monotonic_s()
        # For the metrics: the queries of Postgres, and where keys were found.
        self.queries = 0
        self.found = {"process": 0, "redis": 0, "postgres": 0, "unknown": 0}

    def cached(self, header: str | None, shown: Shown | None = None) -> Principal | None:
        """The principal, if this process knows it; `None`: ask `lookup`. `AuthError` if refused.

        `header` is the value of Authorization or of x-api-key, `shown` what its connection showed
        before. This is the hot path: no await.
        """
        digest = None if shown is None else shown.digest_of(header)
        if digest is None:
            digest = self._digest(key_in(header))
            if shown is not None and header is not None:
                shown.add(header, digest)
        entry = self._known.get(digest)
        now = self._monotonic()
        if entry is not None and now < entry.fresh_until:
            self.found["process"] += 1
            return entry.principal
        refused = self._refused.get(digest)
        if refused is not None and now < refused[1]:
            raise AuthError(refused[0])
        return None

    async def lookup(self, header: str | None) -> Principal:
        """The principal, from Redis or Postgres; raises `AuthError` or `AuthUnavailable`."""
        digest = self._digest(key_in(header))
        flight = self._flights.get(digest) or self._depart(digest)
        answer: Principal | Reason | None = None
        if flight is not None:
            try:
                async with asyncio.timeout(self._limits.answer_s):
                    answer = await asyncio.shield(flight.answer)
            except TimeoutError:
                log.warning("a key lookup took too long", extra={"cause": "key lookups"})
        if isinstance(answer, Reason):
            raise AuthError(answer)
        if answer is None:
            return self._remembered(digest)
        return answer

    async def principal(self, header: str | None) -> Principal:
        """The principal, wherever it is known; raises `AuthError` or `AuthUnavailable`."""
        return self.cached(header) or await self.lookup(header)

    async def run(self) -> None:
        """Look up what is asked and hear what changes, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._hear(), name="auth: changes of keys")
            group.create_task(self._read_redis(), name="auth: keys from Redis")
            group.create_task(self._read_postgres(), name="auth: keys from Postgres")

    def _depart(self, digest: bytes) -> _Flight | None:
        if len(self._flights) >= self._limits.waiting_max:
            return None
        flight = _Flight(asyncio.get_running_loop().create_future())
        self._flights[digest] = flight
        self._ask_redis(digest)
        return flight

    def _remembered(self, digest: bytes) -> Principal:
        """What this process knew a short while ago, when nobody can tell more."""
        entry, now = self._known.get(digest), self._monotonic()
        if entry is None or now >= entry.stale_until:
            raise AuthUnavailable
        # Or every call of this key would wait for silent stores.
        fresh_until = min(now + self._limits.refused_s, entry.stale_until)
        self._known[digest] = entry._replace(fresh_until=fresh_until)
        return entry.principal

    # -- Redis

    def _ask_redis(self, digest: bytes) -> None:
        self._for_redis.append(digest)
        self._redis_wanted.set()

    async def _read_redis(self) -> None:
        while True:
            await self._redis_wanted.wait()
            digests = self._take(self._for_redis, self._redis_wanted)
            found: Mapping[bytes, CachedKey] = {}
            if not self.is_redis_away:
                try:
                    async with asyncio.timeout(self._limits.redis_s):
                        found = await self._cache.read(digests)
                except (CacheAway, TimeoutError):
                    raise_if_cancelled()
                    self._redis_did_not_answer()
            self._sort(digests, found)

    @property
    def is_redis_away(self) -> bool:
        """Whether a lookup waited for it in vain, no longer ago than a refusal is repeated."""
        return self._monotonic() < self._redis_away_until

    def _redis_did_not_answer(self) -> None:
        """For a while nobody waits for it, twice in one lookup least of all."""
        self._redis_away_until = self._monotonic() + self._limits.refused_s

    def _sort(self, digests: Sequence[bytes], found: Mapping[bytes, CachedKey]) -> None:
        """Answer what Redis knows well enough; ask Postgres for the rest."""
        young_ms = int((self._unix_s() - self._limits.recheck_s) * 1000)
        for digest in digests:
            flight = self._flights[digest]
            flight.cached = found.get(digest)
            if flight.cached is not None and flight.cached.read_ms >= young_ms:
                self.found["redis"] += 1
                self._land(digest, self._verdict(flight.cached))
            elif self._is_postgres_away():
                self._land_without_postgres([digest])
            else:
                self._for_postgres.append(digest)
                self._postgres_wanted.set()

    # -- Postgres

    async def _read_postgres(self) -> None:
        """A query at a time. While one hangs, nobody waits for another: Postgres counts as away.

        It is not cut short: to cancel a query takes an answer of the server, too.
        """
        async with asyncio.TaskGroup() as group:
            while True:
                await self._postgres_wanted.wait()
                await self._wait_for_token()
                digests = self._take(self._for_postgres, self._postgres_wanted)
                if self._is_postgres_away():
                    self._land_without_postgres(digests)
                    continue
                self.queries += 1
                self._asked = group.create_task(self._ask_postgres(digests), name="auth: a query")
                await asyncio.wait({self._asked}, timeout=self._limits.postgres_s)
                found = self._asked.result() if self._asked.done() else None
                if found is None:
                    self._postgres_away_until = self._monotonic() + self._limits.refused_s
                    self._land_without_postgres(digests)
                else:
                    await self._fill(digests, found)

    async def _ask_postgres(self, digests: Sequence[bytes]) -> Mapping[bytes, KnownKey] | None:
        """What Postgres says; None if it says nothing."""
        try:
            return await self._find(digests)
        except (StoreAway, TimeoutError) as error:
            log.warning("keys cannot be read from Postgres", extra=outage(error))
        except Exception:  # one row we cannot read must not leave every caller waiting for ever
            log.exception("keys read from Postgres make no sense")
        return None

    def _is_postgres_away(self) -> bool:
        hangs = self._asked is not None and not self._asked.done()
        return hangs or self._monotonic() < self._postgres_away_until

    async def _fill(self, digests: Sequence[bytes], found: Mapping[bytes, KnownKey]) -> None:
        """Write what Postgres said to Redis, then answer it, or what Redis has that is newer."""
        newer: Mapping[bytes, CachedKey] = {}
        # A key that Redis has and Postgres has not is gone for good.
        gone = {
            digest: KnownKey(cached.principal._replace(version=cached.version), is_revoked=True)
            for digest in digests
            if digest not in found
            and (cached := self._flights[digest].cached) is not None
            and cached.principal is not None
        }
        if not self.is_redis_away:
            try:
                async with asyncio.timeout(self._limits.redis_s):
                    refused = await self._cache.put({**found, **gone})
                    newer = await self._cache.read(list(refused)) if refused else {}
            except (CacheAway, TimeoutError) as error:
                log.warning("keys cannot be written to Redis", extra=outage(error, of=REDIS))
                self._redis_did_not_answer()
        for digest in digests:
            key = newer.get(digest) or found.get(digest)
            self.found["unknown" if key is None else "postgres"] += 1
            self._land(digest, self._verdict(key))

    async def _wait_for_token(self) -> None:
        limits, now = self._limits, self._monotonic()
        gained = (now - self._tokens_at) * limits.queries_per_s
        self._tokens = min(self._tokens + gained, float(limits.queries_burst)) - 1
        self._tokens_at = now
        if self._tokens < 0:
            await asyncio.sleep(-self._tokens / limits.queries_per_s)

    # -- answers

    def _take(self, waiting: list[bytes], wanted: asyncio.Event) -> list[bytes]:
        taken = waiting[: self._limits.batch_max]
        del waiting[: self._limits.batch_max]
        if not waiting:
            wanted.clear()
        return taken

    def _land_without_postgres(self, digests: Sequence[bytes]) -> None:
        for digest in digests:
            cached = self._flights[digest].cached
            if cached is not None:
                self.found["redis"] += 1
                self._land(digest, self._verdict(cached))
            else:
                self._answer(digest, None)

    def _land(self, digest: bytes, answer: Principal | Reason) -> None:
        """Answer what was read, unless the key changed meanwhile: then read it again."""
        flight = self._flights[digest]
        if flight.is_stale:
            if flight.rounds >= _ROUNDS_MAX:
                self._answer(digest, None)
                return
            flight.is_stale, flight.rounds = False, flight.rounds + 1
            self._ask_redis(digest)
            return
        self._remember(digest, answer)
        self._answer(digest, answer)

    def _answer(self, digest: bytes, answer: Principal | Reason | None) -> None:
        flight = self._flights.pop(digest)
        if not flight.answer.done():
            flight.answer.set_result(answer)

    def _verdict(self, key: KnownKey | CachedKey | None) -> Principal | Reason:
        match key:
            case None:
                return Reason.UNKNOWN
            case CachedKey(principal=None) | KnownKey(is_revoked=True):
                return Reason.REVOKED
            case CachedKey(principal=principal) | KnownKey(principal=principal):
                assert principal is not None
                return principal if self._seconds_left(principal) > 0 else Reason.EXPIRED
            case _:
                assert_never(key)

    def _remember(self, digest: bytes, answer: Principal | Reason) -> None:
        now, limits = self._monotonic(), self._limits
        self._known.pop(digest, None)
        self._refused.pop(digest, None)
        if isinstance(answer, Reason):
            _make_room(self._refused, limits.refused_max)
            self._refused[digest] = (answer, now + limits.refused_s)
            return
        _make_room(self._known, limits.entries_max)
        left_s = self._seconds_left(answer)
        self._known[digest] = _Entry(
            answer,
            now + min(limits.fresh_s, limits.stale_s, left_s),
            now + min(limits.stale_s, left_s),
        )

    def _seconds_left(self, principal: Principal) -> float:
        if principal.expires_at_ms is None:
            return float("inf")
        return principal.expires_at_ms / 1000 - self._unix_s()

    # -- changes

    async def _hear(self) -> None:
        async for change in self._cache.changes():
            self._apply(change)

    def _apply(self, change: KeyChange) -> None:
        """Forget what may no longer be true, and distrust what is being read just now."""
        if change.digest is not None:
            self._known.pop(change.digest, None)
            self._refused.pop(change.digest, None)
            if (flight := self._flights.get(change.digest)) is not None:
                flight.is_stale = True
            return
        for flight in self._flights.values():
            flight.is_stale = True
        if change.organization_id is None:
            self._redis_away_until = 0.0  # it was just subscribed to
            self._known.clear()
            self._refused.clear()
            return
        gone = change.organization_id
        self._known = {
            digest: entry
            for digest, entry in self._known.items()
            if entry.principal.organization_id != gone
        }


def _make_room(
    entries: dict[bytes, _Entry] | dict[bytes, tuple[Reason, float]], entries_max: int
) -> None:
    while len(entries) >= entries_max:
        del entries[next(iter(entries))]
