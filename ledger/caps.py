"""A budget gets another limit: its window under way moves with it, exactly, whatever is spent.

A window is made in Redis by its first hold, with the limit that the call carries, so a new limit
alone would be obeyed from the next window on, and never by a budget that has but one. Here Postgres
decides the window's base, as it decides a wallet's, and tells Redis: repeated, reordered or late,
the newer version wins.
"""

import asyncpg
from redis.asyncio import Redis

from ledger.bases import tell
from ledger.book import Wallet
from ledger.money import NANOS_MAX, Nanos
from ledger.postgres import Connection
from ledger.posting import lock_parts

# What was charged late or corrected is part of the base already and stays.
_SET = """
    INSERT INTO cap_window (id, cap_id, starts_ms, partition, cap_limit, base, version)
    SELECT $1 || '@' || starts_ms, $1, starts_ms, $2, $3, $3, $4
    FROM unnest($5::bigint[]) AS s (starts_ms)
    ON CONFLICT (id) DO UPDATE SET
        base = cap_window.base + (EXCLUDED.cap_limit - cap_window.cap_limit),
        cap_limit = EXCLUDED.cap_limit,
        cap_id = EXCLUDED.cap_id,
        version = EXCLUDED.version
"""
# Windows of another period that began later would make the one under way look as if it were over:
# it would be told to Redis no more, and be forgotten with it.
_SET_ASIDE = """
    UPDATE cap_window SET cap_id = $1 || ' before' WHERE cap_id = $1 AND starts_ms > $2
"""
_RAISE_VERSION = "UPDATE part SET version = $2 WHERE number = $1"


async def set_limit(
    connection: Connection, cap_id: str, limit: Nanos, *, partition: int, starts_ms: list[int]
) -> int:
    """Give these windows of a cap, in order, this limit; the version to tell Redis of.

    The transaction must not have locked anything yet: the partition's row comes first.
    """
    assert 0 <= limit <= NANOS_MAX
    part = (await lock_parts(connection, [partition]))[partition]
    version = part.version + 1
    await connection.execute(_SET_ASIDE, cap_id, starts_ms[-1])
    await connection.execute(_SET, cap_id, partition, limit, version, starts_ms)
    await connection.execute(_RAISE_VERSION, partition, version)
    return version


async def tell_limit(pool: asyncpg.Pool, redis: Redis, *, partition: int, version: int) -> bool:
    """Push what was set, once it is committed. False: Redis was not told; the flusher does it."""
    return await tell(pool, redis, Wallet("", "", partition, 0, 0, version))
