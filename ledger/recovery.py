"""Bring a partition's Redis back to what Postgres says: after loss, restart, failover, restore.

One path for all of them, the first start included. The partition's row in Postgres says who
recovers it and in which generation; every step checks that this still holds, in Postgres or in
Redis, so a recovery that was overtaken changes nothing more.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisError

from ledger.commit import Position, Superseded
from ledger.drain import BATCH_MAX, Drain, acknowledge
from ledger.fcall import PartitionState, execute, heard, obeyed
from ledger.functions import Epoch, Partition, WalletState
from ledger.postgres import AWAY, Connection, one_row, open_pool

EPOCH_CHANNEL = "tg:epoch"  # a gateway's notice: the number of a partition that refused a call
GENERATION_CHANNEL = "tg:generation"  # our answer: "<partition> <generation>", look at it now
GATEWAYS_KEY = "tg:gateways"  # zset: gateway id -> unix ms of Redis of its last heartbeat
ROLL_CALL_S = 1.5
ALIVE_MS = 1_500  # a gateway whose heartbeat is older is not waited for

_CONNECTIONS_MAX = 4  # more would not make sixteen recoveries at once any faster
_RETRY_S_MIN, _RETRY_S_MAX = 0.1, 1.0
_STEP_S = 10.0  # no single recovery step takes this long while its servers answer
_BUSY_S = 0.01  # the row is locked for a credit: try again
_LOAD_MAX = 500  # wallets in one step of Redis
_WINDOW_MS_MAX = 40 * 86_400_000  # no cap has windows longer than a month

_LOCK = """
    SELECT generation, state, owner, lease_until < now() AS lapsed, version FROM part
    WHERE number = $1 FOR UPDATE
"""
_CLAIM = """
    UPDATE part SET state = 'recovering', owner = $2, generation = $3,
        version = greatest(version, $4),
        claimed_version = CASE WHEN state = 'recovering' THEN claimed_version ELSE version END,
        lease_until = now() + interval '5 seconds'
    WHERE number = $1
    RETURNING watermark_generation, watermark_id, (SELECT id::text FROM installation) AS install
"""
_LOG = """
    INSERT INTO recovery_log (partition, generation, cause, owner, started_at)
    VALUES ($1, $2, $3, $4, now())
"""
_LOG_END = """
    UPDATE recovery_log SET ended_at = now(), drained = $3, wallets = $4, open_holds = $5
    WHERE partition = $1 AND generation = $2
"""
_WATERMARK = "SELECT watermark_generation, watermark_id FROM part WHERE number = $1"
_NEXT_STREAM = """
    UPDATE part SET watermark_generation = $4, watermark_id = '0-0',
        lease_until = now() + interval '5 seconds'
    WHERE number = $1 AND generation = $2 AND owner = $3 AND state = 'recovering'
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
    generation: int
    owner: str
    install: str
    cause: str


def roll_key(partition: int, generation: int) -> str:
    """The set in which gateways sign that they have sent and held again what they have."""
    return f"tg:{{p{partition:02d}}}:roll:{generation}"


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
        self._pool: asyncpg.Pool | None = None
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
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.terminate()

    async def recover(self, number: int, *, skip: int = 0) -> Recovered | None:
        """Recover the partition now; None if it is healthy or somebody else is at it.

        `skip` leaves out that many generations, for a Redis that remembers more than it shows.
        """
        began_s = asyncio.get_running_loop().time()
        partition = Partition(self._redis, number)
        async with self._connected() as connection:
            claimed = await self._claim(connection, partition, skip)
            if claimed is None:
                return None
            claim, position = claimed
            # Renewed by freezing: whatever moved money before this line is in an older stream.
            await partition.freeze(claim.generation, install=claim.install)
            drained = await _drain_older(connection, partition, claim, position)
        await self._roll_call(number, claim.generation)
        async with self._connected() as connection:
            drained += await _drain(connection, partition, claim, Position(claim.generation, "0-0"))
            wallets, version = await _load(connection, partition, claim)
            open_holds = await partition.activate(claim.generation, version)
            fence = (number, claim.generation, claim.owner)
            if await connection.execute(_ACTIVE, *fence, version) != "UPDATE 1":
                raise Superseded(f"partition {number}: generation {claim.generation}")
            await connection.execute(
                _LOG_END, number, claim.generation, drained, wallets, open_holds
            )
        seconds = asyncio.get_running_loop().time() - began_s
        return Recovered(
            number, claim.generation, claim.cause, drained, wallets, open_holds, seconds
        )

    async def _until_healthy(self, number: int) -> None:
        retry_s, skip = _RETRY_S_MIN, 0
        try:
            while True:
                try:
                    self._note(await self.recover(number, skip=skip))
                # A job's loop: whatever failed, the partition stays closed until this succeeds.
                except Exception as error:  # noqa: BLE001 - see above
                    self._note_failure(number, error)
                    skip = skip * 2 + 1 if isinstance(error, Epoch) else skip
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
        _log.warning("partition recovered", extra=recovered._asdict())
        if self._on_recovered is not None:
            self._on_recovered(recovered)

    def _note_failure(self, number: int, error: Exception) -> None:
        self.failures += 1
        is_known = isinstance(error, (*AWAY, RedisError, Epoch, Superseded))
        _log.warning(
            "recovery failed, trying again",
            extra={"partition": number, "error": repr(error)},
            exc_info=None if is_known else error,
        )

    async def _listen(self) -> None:
        """Hear the gateways' notices. A lost one does no harm: the flusher notices as well."""
        while True:
            try:
                await self._hear()
            except (RedisError, OSError):
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
            self._pool = await open_pool(self._url, name="recovery", size=_CONNECTIONS_MAX)
        async with self._pool.acquire(timeout=_STEP_S) as connection:
            yield connection

    async def _claim(
        self, connection: Connection, partition: Partition, skip: int
    ) -> tuple[_Claim, Position] | None:
        """Take the partition over, in a new generation; None if there is no need or no right."""
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
            generation = max(part["generation"], state.generation) + 1 + skip
            row = await one_row(connection, _CLAIM, number, self._owner, generation, state.version)
            await connection.execute(_LOG, number, generation, cause, self._owner)
        watermark = Position(row["watermark_generation"], row["watermark_id"])
        return _Claim(generation, self._owner, row["install"], cause), watermark

    async def _roll_call(self, number: int, generation: int) -> None:
        """Let live gateways hold again what is open and send what Postgres may not have.

        Each signs when it has. One that does not is not waited for longer than `ROLL_CALL_S`: what
        it still has comes as late, and what it holds is held afterwards.
        """
        await execute(self._redis, "PUBLISH", GENERATION_CHANNEL, f"{number} {generation}")
        loop = asyncio.get_running_loop()
        until_s = loop.time() + ROLL_CALL_S
        while loop.time() < until_s:
            if not await self._missing(number, generation):
                return
            await asyncio.sleep(_BUSY_S)
        _log.warning("gateways missing at roll call", extra={"partition": number})

    async def _missing(self, number: int, generation: int) -> bool:
        seconds, _ = await execute(self._redis, "TIME")
        since_ms = int(seconds) * 1000 - ALIVE_MS
        alive = await execute(self._redis, "ZRANGEBYSCORE", GATEWAYS_KEY, since_ms, "+inf")
        if not alive:
            return False
        signed = await execute(self._redis, "SMEMBERS", roll_key(number, generation))
        return not set(alive) <= set(signed)


async def _drain_older(
    connection: Connection, partition: Partition, claim: _Claim, position: Position
) -> int:
    """Bring the streams of every generation before this one into Postgres; how many entries."""
    drained = 0
    fence = (partition.number, claim.generation, claim.owner)
    while position.generation < claim.generation:
        drained += await _drain(connection, partition, claim, position)
        position = Position(position.generation + 1, "0-0")
        moved = await connection.execute(_NEXT_STREAM, *fence, position.generation)
        if moved != "UPDATE 1":
            raise Superseded(f"partition {partition.number}: generation {claim.generation}")
    return drained


async def _drain(
    connection: Connection, partition: Partition, claim: _Claim, position: Position
) -> int:
    """Bring the rest of one stream into Postgres; how many entries it were."""
    drain, drained = Drain(connection), 0
    while True:
        step = await drain.step(partition, position, recovering=(claim.generation, claim.owner))
        await acknowledge(partition, claim.generation, step.committed)
        drained += sum(committed.entries for committed in step.committed)
        if step.position is not None:
            position = step.position
        elif step.read:  # a credit has the row at this moment
            await asyncio.sleep(_BUSY_S)
            row = await one_row(connection, _WATERMARK, partition.number)
            if row[0] != position.generation:
                raise Superseded(f"partition {partition.number}: generation {claim.generation}")
            position = Position(*row)
        if step.read < BATCH_MAX and (step.position is not None or not step.read):
            return drained


async def _load(connection: Connection, partition: Partition, claim: _Claim) -> tuple[int, int]:
    """Load every wallet and open cap window; how many, and the newest version among them."""
    async with connection.transaction():
        # Whoever changes a wallet holds the partition's row, which this statement locks.
        fence = (partition.number, claim.generation, claim.owner)
        row = await connection.fetchrow(_EXTEND, *fence)
        if row is None:
            raise Superseded(f"partition {partition.number}: generation {claim.generation}")
        wallets = await connection.fetch(_WALLETS, partition.number, _WINDOW_MS_MAX)
    states = [WalletState(*wallet) for wallet in wallets]
    for start in range(0, len(states), _LOAD_MAX):
        await partition.load(claim.generation, states[start : start + _LOAD_MAX])
    return len(states), row["version"]
