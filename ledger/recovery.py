"""Bring a partition's Redis back to what Postgres says: after loss, restart, failover, restore.

One path for all of them, the first start included. The partition's row in Postgres says who
recovers it and in which generation; every step checks that this still holds, in Postgres or in
Redis, so a recovery that was overtaken changes nothing more.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisError

from ledger.cancelled import obeyed, raise_if_cancelled
from ledger.clients import holder, is_cluster, is_watched
from ledger.commit import Position, Superseded
from ledger.drain import PROVEN_CHANNEL, NewerRelease, acknowledge, proof_lines
from ledger.fcall import PartitionState, execute, heard, key_names
from ledger.functions import Epoch, Partition, WalletState, install
from ledger.outage import outage
from ledger.postgres import AWAY, Connection, one_row, pooled
from ledger.remainder import Fence, drain_older, drain_stream
from ledger.rollcall import ROSTER_S, call_roll
from ledger.sentinels import MOVED_S
from ledger.stream import WINDOW_MS_MAX

EPOCH_CHANNEL = "tg:epoch"  # a gateway's notice: the number of a partition that refused a call

_CONNECTIONS_MAX = 4  # more would not make sixteen recoveries at once any faster
_RETRY_S_MIN, _RETRY_S_MAX = 0.1, 1.0
_STEP_S = 10.0  # no single recovery step takes this long while its servers answer
_LOAD_MAX = 500  # wallets in one step of Redis

_LOCK = """
    SELECT generation, state, owner, lease_until < now() AS lapsed, version,
           (SELECT id::text FROM installation) AS install
    FROM part WHERE number = $1 FOR UPDATE
"""
_CLAIM = """
    UPDATE part SET state = 'recovering', owner = $2, generation = $3,
        version = greatest(version, $4),
        claimed_version = CASE WHEN state = 'recovering' THEN claimed_version ELSE version END,
        lease_until = now() + interval '5 seconds'
    WHERE number = $1
    RETURNING watermark_generation, watermark_id
"""
_LOG = """
    INSERT INTO recovery_log (partition, generation, cause, owner, started_at)
    VALUES ($1, $2, $3, $4, now())
"""
_LOG_AGAIN = """
    UPDATE recovery_log SET started_at = now() WHERE partition = $1 AND generation = $2
    RETURNING cause
"""
_LOG_END = """
    UPDATE recovery_log SET ended_at = now(), drained = $3, wallets = $4, open_holds = $5
    WHERE partition = $1 AND generation = $2
"""
_EXTEND = """
    UPDATE part SET lease_until = now() + interval '5 seconds'
    WHERE number = $1 AND generation = $2 AND owner = $3 AND state = 'recovering'
    RETURNING version
"""
_WALLETS = """
    SELECT id::text, base, spent, version FROM wallet WHERE partition = $1
    UNION ALL
    SELECT id, base, spent, version FROM (
        SELECT id, base, spent, version,
               row_number() OVER (PARTITION BY cap_id ORDER BY starts_ms DESC) AS recency
        FROM cap_window
        WHERE partition = $1
          AND (starts_ms = 0 OR starts_ms > extract(epoch FROM now()) * 1000 - $2::bigint)
    ) AS latest
    WHERE recency <= 2
"""
_ACTIVE = """
    UPDATE part SET state = 'active', owner = NULL, lease_until = NULL, activated_version = $4
    WHERE number = $1 AND generation = $2 AND owner = $3 AND state = 'recovering'
"""

_CAUSES = {
    "new": "first start",
    "damaged": "redis lost a wallet",
    "recovering": "a recovery was left half-way",
}

_log = logging.getLogger(__name__)


class Recovered(NamedTuple):
    """A recovery that ended with an active partition."""

    partition: int
    generation: int
    cause: str
    drained: int
    wallets: int
    open_holds: int
    seconds: float


class _Claim(NamedTuple):
    fence: Fence
    install: str
    cause: str
    known_s: float  # from when on, of the loop's clock, heartbeats tell of all live gateways


def ailment(state: PartitionState, *, generation: int, version: int) -> str:
    """Why a partition that Postgres calls active must be recovered; "" if it need not be."""
    if not state.generation:
        return "redis is empty"
    if not state.sequence_matches:
        return "redis restarted or was changed"
    if state.generation != generation:
        return f"redis is in generation {state.generation}"
    if not state.is_active():
        return "a recovery was left half-way"
    if state.version > version:
        return "postgres went back"
    return ""


class Recovery:
    """Recovers the partitions that are reported to it; several at a time.

    `owner` must be unique to this object, or two of them would take each other for themselves.
    """

    def __init__(
        self,
        url: str,
        redis: Redis,
        *,
        owner: str,
        on_recovered: Callable[[Recovered], None] | None = None,
    ) -> None:
        self._url, self._redis, self._owner = url, redis, owner
        self._on_recovered = on_recovered
        self._requested: set[int] = set()
        self._underway: set[int] = set()
        self._has_requests = asyncio.Event()
        self._unsent: dict[int, int] = {}  # partition -> our claim's generation; Redis was not told
        self._pool: asyncpg.Pool | None = None
        self._stack = AsyncExitStack()  # closes it
        self.recoveries = 0
        self.failures = 0

    def request(self, partition: int) -> None:
        """Have the partition looked at, and recovered if it needs it. Repeating it is harmless."""
        self._requested.add(partition)
        self._has_requests.set()

    async def run(self) -> None:
        """Recover what is reported, until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._listen(), name="recovery notices")
                while True:
                    await self._has_requests.wait()
                    self._has_requests.clear()
                    for partition in self._requested - self._underway:
                        self._underway.add(partition)
                        group.create_task(
                            self._until_healthy(partition), name=f"recovery {partition}"
                        )
                    self._requested.clear()
        finally:
            await self.close()

    async def close(self) -> None:
        """Close the connections to Postgres."""
        self._pool = None
        await self._stack.aclose()

    async def recover(self, number: int, *, above: int = 0) -> Recovered | None:
        """Recover the partition now; None if it is healthy or somebody else is at it.

        `above`: a generation that Redis remembers though its data don't show it.
        """
        began_s = asyncio.get_running_loop().time()
        partition = Partition(self._redis, number)
        # A server that came back empty has no functions either.
        await install(await holder(self._redis, key_names(number, 0)[0]))
        async with self._connected() as connection:
            claimed = await self._claim(connection, partition, above)
            if claimed is None:
                return None
            claim, position = claimed
            fence = claim.fence
            # Before the gateways see the new generation, so that they need not send this again.
            ahead = await drain_stream(connection, partition, fence, position, acks=False)
            await self._prove(number, ahead.position)
            await partition.check_freeze()
            if self._unsent.get(number) != fence.generation:
                raise fence.superseded()
            del self._unsent[number]  # from here on some Redis may have it
            # Renewed by freezing: whatever moved money before this line is in an older stream.
            await partition.freeze(fence.generation, install=claim.install, proven=ahead.position)
            await acknowledge(partition, fence.generation, ahead.committed)
            older = await drain_older(connection, partition, fence, ahead.position)
            drained = ahead.entries + older
        await call_roll(self._redis, number, fence.generation, known_s=claim.known_s)
        async with self._connected() as connection:
            start = Position(fence.generation, "0-0")
            drained += (await drain_stream(connection, partition, fence, start)).entries
            wallets, version = await _load(connection, partition, fence)
            open_holds = await partition.activate(fence.generation, version)
            if await connection.execute(_ACTIVE, *fence, version) != "UPDATE 1":
                raise fence.superseded()
            await connection.execute(
                _LOG_END, number, fence.generation, drained, wallets, open_holds
            )
        seconds = asyncio.get_running_loop().time() - began_s
        return Recovered(
            number, fence.generation, claim.cause, drained, wallets, open_holds, seconds
        )

    async def _prove(self, number: int, position: Position) -> None:
        await execute(self._redis, "PUBLISH", PROVEN_CHANNEL, proof_lines({number: position}))

    async def _until_healthy(self, number: int) -> None:
        retry_s, above = _RETRY_S_MIN, 0
        try:
            while True:
                try:
                    self._note(await self.recover(number, above=above))
                except NewerRelease as error:
                    self._note_failure(number, error)
                    return  # our lease lapses, and the newer release may have the partition
                # A job's loop: whatever failed, the partition stays closed until this succeeds.
                except Exception as error:  # noqa: BLE001 - see above
                    raise_if_cancelled()
                    self._note_failure(number, error)
                    above = error.generation if isinstance(error, Epoch) else above
                else:
                    return
                await asyncio.sleep(retry_s)
                retry_s = min(_RETRY_S_MAX, retry_s * 2)
        finally:
            self._underway.discard(number)

    def _note(self, recovered: Recovered | None) -> None:
        if recovered is None:
            return
        self.recoveries += 1
        said = {**recovered._asdict(), "why": recovered.cause, "cause": "partition recovered"}
        _log.warning("partition recovered", extra=said)
        if self._on_recovered is not None:
            self._on_recovered(recovered)

    def _note_failure(self, number: int, error: Exception) -> None:
        self.failures += 1
        is_known = isinstance(error, (*AWAY, RedisError, Epoch, Superseded, NewerRelease))
        _log.warning(
            "recovery failed, trying again",
            extra={"partition": number, **outage(error)},
            exc_info=None if is_known else error,
        )

    async def _listen(self) -> None:
        """Hear the gateways' notices. A lost one does no harm: the flusher notices as well."""
        while True:
            try:
                await self._hear()
            except (RedisError, OSError):
                raise_if_cancelled()
                await asyncio.sleep(_RETRY_S_MAX)

    async def _hear(self) -> None:
        async with self._redis.pubsub(ignore_subscribe_messages=True) as pubsub:
            await obeyed(pubsub.subscribe(EPOCH_CHANNEL))
            async for message in heard(pubsub):
                if message["data"].isdigit():
                    self.request(int(message["data"]))

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Connection]:
        if self._pool is None:
            pool = pooled(self._url, name="recovery", size=_CONNECTIONS_MAX)
            self._pool = await self._stack.enter_async_context(pool)
        async with self._pool.acquire(timeout=_STEP_S) as connection:
            yield connection

    async def _claim(
        self, connection: Connection, partition: Partition, above: int
    ) -> tuple[_Claim, Position] | None:
        """Take the partition over, in a new generation; None if there is no need or no right.

        A generation that a claim of ours took, and that was never sent to any Redis, is as good as
        new: no stream, hold, sum or signature can be of it, and no gateway has heard of it. It is
        taken again, or an outage would leave one behind with every attempt, each to be walked over.
        One that was sent is not, whatever came back: it may have been frozen by a server that was
        lost since, and gateways that met it there would not hold again in it.
        """
        number = partition.number
        async with connection.transaction():
            part = await one_row(connection, _LOCK, number)
            is_taken = part["state"] == "recovering" and part["owner"] != self._owner
            if is_taken and not part["lapsed"]:
                return None
            # Asked under the lock: nobody can have finished a recovery in between.
            async with asyncio.timeout(_STEP_S):
                state = await partition.state()
            cause = _CAUSES.get(part["state"], "")
            if not cause:
                cause = ailment(state, generation=part["generation"], version=part["version"])
                if not cause:
                    return None
            if state.install not in {"", part["install"]}:
                raise ValueError(f"the data belongs to deployment {state.install}")
            generation, seen = part["generation"], max(state.generation, above)
            # Ours still, and nobody else's since: the row says so.
            is_ours = part["state"] == "recovering" and part["owner"] == self._owner
            if is_ours and self._unsent.get(number) == generation > seen:
                cause = await connection.fetchval(_LOG_AGAIN, number, generation)
            else:
                generation = max(generation, seen) + 1
                await connection.execute(_LOG, number, generation, cause, self._owner)
            row = await one_row(connection, _CLAIM, number, self._owner, generation, state.version)
        self._unsent[number] = generation
        is_first = part["state"] == "new"
        # One that matches was written by this very server, which has every heartbeat since; after
        # a recovery left half-way it may be that recovery that it remembers.
        is_intact = state.sequence_matches and part["state"] != "recovering"
        is_intact = is_intact and not is_cluster(self._redis)  # there another node has them
        # Whatever was lost was lost by now; what is drained meanwhile costs no time.
        now_s = asyncio.get_running_loop().time()
        # Where somebody may still be at the master that was replaced, and beats there.
        roster_s = ROSTER_S + MOVED_S if is_watched(self._redis) else ROSTER_S
        known_s = now_s if is_first or is_intact else now_s + roster_s
        fence = Fence(number, generation, self._owner)
        return _Claim(fence, part["install"], cause, known_s), Position(*row)


async def _load(connection: Connection, partition: Partition, fence: Fence) -> tuple[int, int]:
    """Load every wallet and open cap window; how many, and the newest version among them."""
    async with connection.transaction():
        # Whoever changes a wallet holds the partition's row, which this statement locks.
        row = await connection.fetchrow(_EXTEND, *fence)
        if row is None:
            raise fence.superseded()
        wallets = await connection.fetch(_WALLETS, partition.number, WINDOW_MS_MAX)
    states = [WalletState(*wallet) for wallet in wallets]
    for start in range(0, len(states), _LOAD_MAX):
        await partition.load(fence.generation, states[start : start + _LOAD_MAX])
    return len(states), row["version"]
