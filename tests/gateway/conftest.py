"""The gateway's tests run on the event loop that the gateway runs on."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest
import uvloop
from redis.asyncio import Redis

from ledger.clients import open_redis
from ledger.functions import Partition, WalletState, install
from tests.gateway.management.office import Office, open_office
from tests.gateway.proxy.gatehouse import CREDIT, WALLET


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The hook of pytest-asyncio; the key becomes part of the test's id."""
    del config, item
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def office(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Office]:
    """The management API in this process, on a socket."""
    async with open_office(postgres_url, redis_url, tmp_path) as opened:
        yield opened


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A Valkey with one active partition and one wallet."""
    client = open_redis(redis_url)
    await install(client)
    partition = Partition(client, 0)
    await partition.freeze(1)
    await partition.load(1, [WalletState(WALLET, CREDIT, 0, 1)])
    await partition.activate(1, 1)
    yield client
    await client.aclose()
