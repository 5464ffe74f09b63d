"""Tell Redis what Postgres decided: the bases of wallets and cap windows, as states.

A base travels with its version and the newer one wins, so pushing may be repeated, reordered and
lost: whatever has a version above what Redis has is pushed again. A base never travels without the
withdrawals that are part of it: what is withheld for them must go back in the same step, or the
same money would be missing twice for a moment.

A base goes only where Postgres says, in the statement that reads it, that the partition is active
in that generation. Redis is active a moment before: a recovery killed in between is followed by one
that would find, in the stream, a base newer than the first one's claim, as if Postgres had lost it.
"""

import asyncio
from enum import StrEnum

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisError

from ledger.book import Wallet
from ledger.functions import Base, Epoch, Partition
from ledger.postgres import AWAY, Connection

_TELL_S = 2.0
_PUSH_MAX = 500  # wallets in one step of Redis
# One row without a wallet if nothing is above; none if the partition is not active.
_CHANGED = """
    SELECT wallet, base, spent, changed.version, ended FROM part LEFT JOIN (
        SELECT id::text AS wallet, base, spent, version, array(
            SELECT d.id::text FROM withdrawal AS d WHERE d.partition = $1 AND d.wallet_id = w.id
              AND d.released_at IS NULL AND d.state <> 'pending'
        ) AS ended
        FROM wallet AS w WHERE partition = $1 AND version > $2
        UNION ALL
        SELECT id, base, spent, version, '{}' FROM cap_window AS w
        WHERE partition = $1 AND version > $2
          AND NOT EXISTS (
              SELECT FROM cap_window AS later
              WHERE later.cap_id = w.cap_id AND later.starts_ms > w.starts_ms
                AND later.starts_ms <= extract(epoch FROM now()) * 1000
          )
    ) AS changed ON true
    WHERE part.number = $1 AND part.generation = $3 AND part.state = 'active'
    ORDER BY changed.version, wallet
"""
_LOADED = """
    UPDATE wallet SET loaded_generation = $2
    WHERE partition = $1 AND id = ANY ($3::uuid[])
      AND created_version > (SELECT activated_version FROM part WHERE number = $1)
      AND loaded_generation IS DISTINCT FROM $2
"""
_WALLET = """
    SELECT w.base, w.spent, w.version, w.loaded_generation, w.created_version, p.number,
           p.generation, p.activated_version, p.state = 'active' AS is_active
    FROM wallet AS w JOIN part AS p ON p.number = w.partition
    WHERE w.id = $1::uuid AND w.partition = $2
"""
_DAMAGED = """
    UPDATE part SET state = 'damaged' WHERE number = $1 AND generation = $2 AND state = 'active'
"""


class Loading(StrEnum):
    """What became of a wallet that Redis did not know."""

    LOADED = "loaded"  # it is there now
    UNKNOWN = "unknown"  # Postgres does not know it either
    LOST = "lost"  # Redis had it and lost it: the partition will be recovered


async def tell(pool: asyncpg.Pool, redis: Redis, *wallets: Wallet) -> bool:
    """Push the states of wallets that were just changed; False if Redis did not take them all.

    Then it takes them within a second of being there again: the flusher pushes what it lacks.
    """
    try:
        async with asyncio.timeout(_TELL_S), pool.acquire() as connection:
            for wallet in wallets:
                partition = Partition(redis, wallet.partition)
                state = await partition.state()
                above = min(state.version, wallet.version - 1)
                await push_bases(connection, partition, generation=state.generation, above=above)
    except (Epoch, RedisError, asyncpg.PostgresError, *AWAY):
        return False
    return True


async def push_bases(
    connection: Connection, partition: Partition, *, generation: int, above: int
) -> int:
    """Push every base whose version is above `above`; the highest version there was.

    Raises `Epoch` when Redis is not active in this generation, or Postgres does not say so yet: the
    recovery then loads them all. Cap windows that are over are left out.
    """
    rows = await connection.fetch(_CHANGED, partition.number, above, generation)
    if not rows:
        raise Epoch(partition.number, generation)
    rows = [row for row in rows if row["wallet"] is not None]
    for start in range(0, len(rows), _PUSH_MAX):
        chunk = rows[start : start + _PUSH_MAX]
        bases = [
            Base(
                row["wallet"],
                row["base"],
                row["version"],
                "postgres",
                row["spent"],
                tuple(row["ended"]),
            )
            for row in chunk
        ]
        await partition.set_bases(generation, bases)
        wallets = [base.wallet for base in bases if "@" not in base.wallet]
        await _mark_loaded(connection, partition.number, generation, wallets)
    return rows[-1]["version"] if rows else above


async def call_damaged(connection: Connection, partition: int, generation: int) -> None:
    """Have the partition recovered: Redis has lost a wallet, or has one that is not Postgres'."""
    await connection.execute(_DAMAGED, partition, generation)


async def ensure_loaded(connection: Connection, partition: Partition, wallet: str) -> Loading:
    """For a hold refused with `no_wallet`: load the wallet if it is new, or say that it was lost.

    Raises `Epoch` when the partition is not active, in Redis or in Postgres.
    """
    row = await connection.fetchrow(_WALLET, wallet, partition.number)
    if row is None:
        return Loading.UNKNOWN
    generation = row["generation"]
    image = await partition.snap(generation, [wallet])
    if image.wallets:
        return Loading.LOADED
    if not row["is_active"]:
        raise Epoch(partition.number, generation)
    was_loaded = row["created_version"] <= row["activated_version"]
    if was_loaded or row["loaded_generation"] == generation:
        await call_damaged(connection, partition.number, generation)
        return Loading.LOST
    await partition.set_base(
        generation,
        wallet,
        base=row["base"],
        version=row["version"],
        cause="new",
        spent=row["spent"],
    )
    await _mark_loaded(connection, partition.number, generation, [wallet])
    return Loading.LOADED


async def _mark_loaded(
    connection: Connection, partition: int, generation: int, wallets: list[str]
) -> None:
    """Note that these wallets are in Redis now, so that one that is missing later was lost."""
    async with connection.transaction():
        # The flusher locks wallets too; the partition's row keeps the two from crossing.
        await connection.execute("SELECT FROM part WHERE number = $1 FOR UPDATE", partition)
        await connection.execute(_LOADED, partition, generation, wallets)
