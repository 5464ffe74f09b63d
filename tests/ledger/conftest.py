"""A ledger on the real servers, and its Redis side alone."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from ledger.conveyor import Conveyor
from ledger.functions import Partition
from ledger.lane import Lane
from tests.ledger.cluster import Cluster
from tests.ledger.deployment import Deployment, deployed
from tests.ledger.lanes import NOW_S, Told, state
from tests.ledger.line import Line
from tests.ledger.own_valkey import OwnValkey
from tests.ledger.partitions import NUMBER, ready


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


@pytest.fixture
def line(redis_url: str) -> Line:
    """A conveyor that nobody runs yet."""
    return Line(redis_url)


@pytest.fixture
async def conveyor(line: Line, partition: Partition) -> AsyncIterator[Conveyor]:
    """One at work, on an active partition."""
    assert partition.number < line.partitions
    async with line.running() as conveyor:
        yield conveyor


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[OwnValkey]:
    """A server that may be harmed."""
    server = OwnValkey(tmp_path / "own")
    await server.start()
    yield server
    server.kill()


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    """Two primaries with a replica each."""
    async with Cluster.started(primaries=2) as cluster:
        yield cluster


@pytest.fixture
async def apart(server: OwnValkey) -> AsyncIterator[Partition]:
    """Its partition, active in generation 1."""
    client = Redis.from_url(server.url)
    yield await ready(client)
    await client.aclose()


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def lane(told: Told) -> Lane:
    """One that knows that its partition is active in generation 3."""
    lane = Lane(NUMBER, told.tell)
    lane.doubt()
    (step,) = lane.steps(NOW_S)
    lane.answered(step, state(3), NOW_S)
    return lane
