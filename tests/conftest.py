"""Real servers for tests: one Postgres and one Valkey per test process, a fresh state per test."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
import redis.asyncio

from gateway.embedded import Embedded, Urls
from ledger.migrate import migrate
from tests.vendor import Vendor

_TEMPLATE = "migrated"


def _at(url: str, database: str) -> str:
    """The URL of another database of the same server."""
    return url.replace("/tollgate?", f"/{database}?")


async def _administer(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture(scope="session")
def servers() -> Iterator[Urls]:
    """Both servers, for the whole run of this test process."""
    # Nothing here outlives the run, so nothing waits for a disk.
    fast = {"fsync": "off", "full_page_writes": "off", "max_connections": "200"}
    with tempfile.TemporaryDirectory(prefix="tg-") as folder:
        embedded = Embedded(Path(folder), postgres_settings=fast)
        asyncio.run(embedded.__aenter__())
        yield embedded.urls
        asyncio.run(embedded.__aexit__(None, None, None))


@pytest.fixture(scope="session")
def template(servers: Urls) -> str:
    """The name of a migrated database to clone: cheaper than migrating one per test."""

    async def make() -> None:
        await _administer(servers.postgres_admin, f"CREATE DATABASE {_TEMPLATE} OWNER tollgate")
        await migrate(_at(servers.postgres, _TEMPLATE))

    asyncio.run(make())
    return _TEMPLATE


@pytest.fixture
async def postgres_empty_url(servers: Urls) -> AsyncIterator[str]:
    """A fresh, empty database."""
    name = f"test_{uuid4().hex}"
    await _administer(servers.postgres_admin, f"CREATE DATABASE {name} OWNER tollgate")
    yield _at(servers.postgres, name)
    await _administer(servers.postgres_admin, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def postgres_url(servers: Urls, template: str) -> AsyncIterator[str]:
    """A fresh, migrated database."""
    name = f"test_{uuid4().hex}"
    create = f"CREATE DATABASE {name} OWNER tollgate TEMPLATE {template}"
    await _administer(servers.postgres_admin, create)
    yield _at(servers.postgres, name)
    await _administer(servers.postgres_admin, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def redis_url(servers: Urls) -> AsyncIterator[str]:
    """An empty Valkey without any function library, with every right."""
    client = redis.asyncio.Redis.from_url(servers.redis_admin)
    try:
        await client.flushall()
        await client.function_flush("SYNC")
        yield servers.redis_admin
    finally:
        await client.aclose()


@pytest.fixture
async def vendor() -> AsyncIterator[Vendor]:
    """A scripted vendor in this process; its log is the oracle of what was sent and is owed."""
    async with Vendor.here() as ours:
        yield ours


@pytest.fixture(scope="session")
def vendor_apart() -> Iterator[Vendor]:
    """One in a process of its own, for load and whole-process scenarios; its log goes on."""
    with Vendor.apart() as ours:
        yield ours
