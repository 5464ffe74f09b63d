"""Compare Redis with Postgres while both work, wallet by wallet, to the nano-USD.

Per partition, at one entry of its stream: free + held + unflushed = posted. The partition's row is
locked meanwhile, so that Postgres stands still while Redis is photographed.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisError

from ledger.bases import call_damaged, push_bases
from ledger.cancelled import raise_if_cancelled
from ledger.commit import Position
from ledger.functions import Epoch, Partition, WalletImage
from ledger.outage import outage
from ledger.postgres import AWAY, connect
from ledger.stream import WINDOW_MS_MAX, Ended, Poison, parse, place_of

EVERY_S = 60.0
_RETRY_S = 2.0
_PAGE = 500  # wallets at a time: the row is locked for one page only
_TAIL_MAX = 5_000  # entries that may be unflushed when a page is compared
_TRIES = 20  # to find the tail that short

_PART = "SELECT generation, state, version, activated_version FROM part WHERE number = $1"
_LOCK = """
    SELECT watermark_generation, watermark_id FROM part
    WHERE number = $1 AND generation = $2 AND state = 'active' FOR UPDATE
"""
_POSTED = """
    SELECT id::text AS wallet, base, spent, version FROM wallet WHERE id = ANY ($1::uuid[])
    UNION ALL
    SELECT id, base, spent, version FROM cap_window WHERE id = ANY ($2::text[])
"""
_LOADED = """
    SELECT id::text FROM wallet
    WHERE partition = $1 AND (created_version <= $2 OR loaded_generation = $3)
"""

# Redis has lost a wallet, or has a base that is not this Postgres': only a recovery helps. Other
# drift stays as it is, for somebody to look at: it is an error of ours.
_DAMAGE = frozenset({"missing", "ahead", "base"})

_log = logging.getLogger(__name__)


class Drift(NamedTuple):
    """A wallet of which Redis and Postgres do not say the same."""

    partition: int
    wallet: str
    nanos: int  # what Redis has too much
    cause: str


class _Posted(NamedTuple):
    base: int
    spent: int
    version: int


@dataclass(slots=True)
class AuditTallies:
    """What the audit found, for the metrics page."""

    audits: int = 0  # partitions compared
    wallets: int = 0  # wallets compared
    deferred: int = 0  # partitions left for the next round: not active, or far behind
    failures: int = 0
    drift_nanos: dict[int, int] = field(default_factory=dict)  # by partition, as last compared


class Audit:
    """Compares some partitions every minute, over one connection of its own.

    `only_looks`: what is stale or over is left as it is found.
    """

    def __init__(
        self,
        url: str,
        redis: Redis,
        *,
        partitions: Sequence[int],
        on_drift: Callable[[Drift], None],
        every_s: float = EVERY_S,
        only_looks: bool = False,
    ) -> None:
        self._only_looks = only_looks
        self._url, self._on_drift, self._every_s = url, on_drift, every_s
        self._partitions = [Partition(redis, number) for number in partitions]
        self.tallies = AuditTallies()

    async def run(self) -> None:
        """Audit until cancelled."""
        while True:
            try:
                connection = await connect(self._url, name="audit")
                try:
                    await self._rounds(connection)
                finally:
                    connection.terminate()
            # A job's loop: an audit that fails is one that is missing, and no reason to stop.
            except Exception as error:  # noqa: BLE001 - see above
                raise_if_cancelled()
                self.tallies.failures += 1
                is_known = isinstance(error, (*AWAY, RedisError, Epoch, asyncpg.PostgresError))
                _log.warning(
                    "audit failed, trying again",
                    extra=outage(error),
                    exc_info=None if is_known else error,
                )
            await asyncio.sleep(min(_RETRY_S, self._every_s))

    async def _rounds(self, connection: asyncpg.Connection) -> NoReturn:
        while True:
            for partition in self._partitions:
                await self.audit(connection, partition)
            await asyncio.sleep(self._every_s)

    async def audit(
        self, connection: asyncpg.Connection, partition: Partition
    ) -> list[Drift] | None:
        """Compare one partition now and see to what is found; None if it cannot be compared now."""
        part = await connection.fetchrow(_PART, partition.number)
        drifts = await self.compare(connection, partition, part)
        if drifts is None or part is None:
            self.tallies.deferred += 1
            return None
        self.tallies.audits += 1
        self.tallies.drift_nanos[partition.number] = sum(abs(drift.nanos) for drift in drifts)
        for drift in drifts:
            _log.error("ledger drift", extra=drift._asdict())
            self._on_drift(drift)
        if any(drift.cause in _DAMAGE for drift in drifts):
            await call_damaged(connection, partition.number, part["generation"])
        return drifts

    async def compare(
        self,
        connection: asyncpg.Connection,
        partition: Partition,
        part: asyncpg.Record | None,
    ) -> list[Drift] | None:
        """The differences in one partition, of which `part` is the row; None: it cannot be told."""
        if part is None or part["state"] != "active":
            return None
        try:
            return await self._compare_all(connection, partition, part)
        except Epoch:
            return None  # the flusher sees it too, and has it recovered

    async def _compare_all(
        self, connection: asyncpg.Connection, partition: Partition, part: asyncpg.Record
    ) -> list[Drift] | None:
        generation, number = part["generation"], partition.number
        rows = await connection.fetch(_LOADED, number, part["activated_version"], generation)
        missing = {row["id"] for row in rows}
        drifts: list[Drift] = []
        over: list[str] = []
        now_ms = (await partition.state()).now_ms
        cursor = "0"
        while True:
            page = await self._page(connection, partition, generation, cursor)
            if page is None:
                return None
            drifts += page.drifts
            missing -= page.wallets
            over += [wallet for wallet in page.wallets if _is_over(wallet, now_ms)]
            self.tallies.wallets += len(page.wallets)
            cursor = page.cursor
            if cursor == "0":
                break
        if over and not self._only_looks:
            await partition.forget(generation, over)
        return drifts + [Drift(number, wallet, 0, "missing") for wallet in sorted(missing)]

    async def _page(
        self, connection: asyncpg.Connection, partition: Partition, generation: int, cursor: str
    ) -> "_Page | None":
        """Compare one page of wallets; None if the stream is too far ahead of Postgres."""
        for _ in range(_TRIES):
            async with connection.transaction():
                row = await connection.fetchrow(_LOCK, partition.number, generation)
                if row is None:
                    return None
                watermark = Position(*row)
                if watermark.generation != generation:
                    return None
                image = await partition.scan(generation, cursor=cursor, count=_PAGE)
                tail = await _tail(partition, watermark, image.last_id)
                if tail is not None:
                    names = [wallet.wallet for wallet in image.wallets]
                    posted = await _posted(connection, names)
                    break
            await asyncio.sleep(0.05)  # the flusher is at work, and shortens it
        else:
            return None
        stale = [
            posted[one.wallet].version
            for one in image.wallets
            if one.wallet in posted and one.version < posted[one.wallet].version
        ]
        if stale and not self._only_looks:  # a push was lost, or is on its way
            await push_bases(connection, partition, generation=generation, above=min(stale) - 1)
        drifts = [
            drift
            for one in image.wallets
            if (drift := _drift(partition.number, one, posted.get(one.wallet), tail[one.wallet]))
        ]
        return _Page(drifts, {one.wallet for one in image.wallets}, image.cursor)


class _Page(NamedTuple):
    drifts: list[Drift]
    wallets: set[str]
    cursor: str


def _drift(number: int, image: WalletImage, posted: _Posted | None, unflushed: int) -> Drift | None:
    """What is wrong with a wallet; None if nothing."""
    within = image.free + image.held + image.spent - image.base
    if within:
        return Drift(number, image.wallet, within, "redis")
    if posted is None:
        # A cap window that is not in Postgres yet begins with its limit, spent by nobody.
        is_window = "@" in image.wallet
        nanos = image.free + image.held + unflushed - image.base
        return Drift(number, image.wallet, nanos, "unknown") if nanos or not is_window else None
    if image.version > posted.version:
        return Drift(number, image.wallet, image.base - posted.base, "ahead")
    if image.version == posted.version and image.base != posted.base:
        return Drift(number, image.wallet, image.base - posted.base, "base")
    # Compared without the base: one that is stale here has just been pushed.
    nanos = posted.spent + unflushed - image.spent
    return Drift(number, image.wallet, nanos, "spent") if nanos else None


async def _tail(partition: Partition, after: Position, last_id: str) -> Counter[str] | None:
    """What was charged by the entries that are not in Postgres, up to `last_id`, by wallet.

    None if they are too many to wait for.
    """
    entries = await partition.peek(after.generation, after.stream_id, _TAIL_MAX)
    unflushed: Counter[str] = Counter()
    for entry in entries:
        if place_of(entry.id) > place_of(last_id):
            return unflushed
        parsed = parse(entry.id, entry.fields)
        if isinstance(parsed, Ended) and parsed.moved:
            scopes, charge = [parsed.wallet, *(w.id for w in parsed.windows)], parsed.charge
        elif isinstance(parsed, Poison) and parsed.wallet is not None:
            scopes, charge = [parsed.wallet, *(w.id for w in parsed.windows)], parsed.spent
        else:
            continue
        for scope in scopes:
            unflushed[scope] += charge
    return unflushed if len(entries) < _TAIL_MAX else None


async def _posted(connection: asyncpg.Connection, names: list[str]) -> dict[str, _Posted]:
    wallets = [name for name in names if "@" not in name]
    windows = [name for name in names if "@" in name]
    rows = await connection.fetch(_POSTED, wallets, windows)
    return {row["wallet"]: _Posted(row["base"], row["spent"], row["version"]) for row in rows}


def _is_over(wallet: str, now_ms: int) -> bool:
    """Whether it is a cap window that no call can be charged to any more."""
    _, is_window, starts_ms = wallet.rpartition("@")
    return bool(is_window) and 0 < int(starts_ms) < now_ms - WINDOW_MS_MAX
