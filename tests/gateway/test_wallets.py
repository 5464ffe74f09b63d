"""Wallets that Redis does not know yet."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest
from redis.asyncio import Redis

from gateway.wallets import Wallets, WalletsUnavailable
from ledger.book import Book
from ledger.clients import open_redis
from ledger.functions import Partition, install
from tests.ledger.by_hand import dying_postgres


@pytest.fixture
async def pool(postgres_url: str) -> AsyncIterator[asyncpg.Pool]:
    async with asyncpg.create_pool(postgres_url, min_size=1, max_size=2) as made:
        yield made


@pytest.fixture
async def redis(redis_url: str, pool: asyncpg.Pool) -> AsyncIterator[Redis]:
    """A Valkey in which every partition is active and holds no wallet."""
    client = open_redis(redis_url)
    await install(client)
    for number in range(16):
        partition = Partition(client, number)
        await partition.freeze(1)
        await partition.activate(1, 0)
    await pool.execute("UPDATE part SET state = 'active', generation = 1")
    yield client
    await client.aclose()


async def test_a_new_wallet_is_loaded_once_for_all_who_wait(
    pool: asyncpg.Pool, redis: Redis
) -> None:
    made = await Book(pool).create_organization("o", actor="test")
    wallets = Wallets(pool, redis, on_lost=lambda _: None)

    loads = [wallets.load(made.partition, str(made.id)) for _ in range(50)]

    assert all(await asyncio.gather(*loads))
    image = await Partition(redis, made.partition).snap(1, [str(made.id)])
    assert image.wallets[0].free == 0


async def test_a_wallet_that_nobody_knows_is_not_made(pool: asyncpg.Pool, redis: Redis) -> None:
    wallets = Wallets(pool, redis, on_lost=lambda _: None)

    assert not await wallets.load(3, str(UUID(int=1)))


async def test_a_wallet_that_redis_had_and_lost_asks_for_a_recovery(
    pool: asyncpg.Pool, redis: Redis
) -> None:
    made = await Book(pool).create_organization("o", actor="test")
    lost: list[int] = []
    wallets = Wallets(pool, redis, on_lost=lost.append)
    await wallets.load(made.partition, str(made.id))
    await redis.hdel(f"tg:{{p{made.partition:02d}}}:free", str(made.id))
    await redis.hdel(f"tg:{{p{made.partition:02d}}}:base", str(made.id))

    with pytest.raises(WalletsUnavailable):
        await wallets.load(made.partition, str(made.id))

    assert lost == [made.partition]


async def test_without_postgres_nobody_can_tell(redis: Redis) -> None:
    pool = asyncpg.create_pool("postgresql://nobody@127.0.0.1:1/none", min_size=0)
    async with pool:
        wallets = Wallets(pool, redis, on_lost=lambda _: None)

        with pytest.raises(WalletsUnavailable):
            await wallets.load(0, str(UUID(int=1)))


async def test_a_postgres_that_dies_at_work_tells_nothing(redis: Redis, tmp_path: Path) -> None:
    async with dying_postgres(tmp_path) as url, asyncpg.create_pool(url, min_size=0) as pool:
        wallets = Wallets(pool, redis, on_lost=lambda _: None)

        with pytest.raises(WalletsUnavailable):
            await wallets.load(0, str(UUID(int=1)))
