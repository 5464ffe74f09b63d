"""A ledger on the real servers, and its Redis side alone."""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from ledger.functions import Partition
from tests.ledger.deployment import Deployment, deployed
from tests.ledger.partitions import ready


@pytest.fixture
async def deployment(postgres_url: str, redis_url: str) -> AsyncIterator[Deployment]:
    async with deployed(postgres_url, redis_url) as made:
        yield made


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Redis]:
    """An ordinary client of an empty server."""
    client = Redis.from_url(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
async def partition(client: Redis) -> Partition:
    """Active in generation 1, with 1,000 nano-USD in one wallet."""
    return await ready(client)
