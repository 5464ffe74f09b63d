"""Postgres put back to an older state under a Redis that went on: the streams bring it forward."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest

from gateway.embedded import Urls
from ledger.admission import Cap
from ledger.book import Organization
from ledger.money import Nanos
from tests.ledger.deployment import Deployment, deployed

CAP = Cap("key-1", Nanos(50_000), (0,))


@asynccontextmanager
async def backup(servers: Urls, url: str) -> AsyncIterator[str]:
    """The database as it is now, under another name; nobody may be connected to it."""
    source, name = urlsplit(url).path[1:], f"backup_{uuid4().hex}"
    admin = await asyncpg.connect(servers.postgres_admin)
    try:
        await admin.execute(f"CREATE DATABASE {name} OWNER tollgate TEMPLATE {source}")
        yield url.replace(source, name)
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()


async def breaks(deployment: Deployment, acme: Organization) -> None:
    """The fence opens, and a recovery closes it in the next generation."""
    await deployment.redis.hset(f"tg:{{p{acme.partition:02d}}}:meta", "seq", "5")
    assert await deployment.recover(acme) is not None


async def assert_exact(deployment: Deployment, acme: Organization, charges: int) -> None:
    """Both stores say that so much was charged, in wallet and cap, and the books agree."""
    await deployment.flush(acme)
    generation = await deployment.generation(acme)
    image = await deployment.partition(acme).snap(generation, [acme.id, "key-1@0"])
    assert [(there.free, there.held) for there in image.wallets] == [
        (1_000_000 - charges, 0),
        (50_000 - charges, 0),
    ]
    assert await deployment.balance(acme) == 1_000_000 - charges
    window = await deployment.pool.fetchrow("SELECT base, spent FROM cap_window")
    assert window is not None
    assert window["base"] - window["spent"] == 50_000 - charges
    assert await deployment.pool.fetchval("SELECT sum(charge) FROM usage_hourly") == charges
    assert await deployment.differences() == []


@pytest.mark.parametrize("generations", [0, 1, 3])
async def test_records_and_charges_since_the_backup_come_back(
    servers: Urls, postgres_url: str, redis_url: str, generations: int
) -> None:
    async with deployed(postgres_url, redis_url) as first:
        acme = await first.active()
        await first.call(acme, 100, (CAP,))
        await first.flush(acme)
        await first.call(acme, 7, (CAP,))  # in the stream alone when the backup is made
    async with backup(servers, postgres_url) as older:
        charges, records = 107, 2
        async with deployed(postgres_url, redis_url) as later:
            for generation in range(generations + 1):
                for charge in range(20):
                    await later.call(acme, charge, (CAP,))
                    charges, records = charges + charge, records + 1
                await later.flush(acme)
                if generation < generations:
                    await breaks(later, acme)
            await assert_exact(later, acme, charges)
        async with deployed(older, redis_url) as restored:
            recovered = await restored.recover(acme)
            if generations:
                assert recovered is not None
                assert recovered.cause == f"redis is in generation {generations + 1}"
                assert recovered.generation == generations + 2
            await assert_exact(restored, acme, charges)
            assert await restored.count("usage_record") == records
            await restored.call(acme, 3, (CAP,))
            await assert_exact(restored, acme, charges + 3)


async def test_late_ends_since_the_backup_are_debited_once_again_and_no_more(
    servers: Urls, postgres_url: str, redis_url: str
) -> None:
    async with deployed(postgres_url, redis_url) as first:
        acme = await first.active()
        await first.call(acme, 100, (CAP,))
        await first.flush(acme)
    async with backup(servers, postgres_url) as older:
        async with deployed(postgres_url, redis_url) as later:
            lost = await later.hold(acme, caps=(CAP,))
            await later.redis.zadd(f"tg:{{p{acme.partition:02d}}}:due", {lost: 1})
            swept = await later.partition(acme).sweep(await later.generation(acme), 10)
            assert swept == 1
            await later.flush(acme)
            assert await later.late(acme, lost, 40, (CAP,)) == "late"
            await later.flush(acme)
            await breaks(later, acme)
            await assert_exact(later, acme, 140)
        async with deployed(older, redis_url) as restored:
            assert await restored.recover(acme) is not None
            await assert_exact(restored, acme, 140)
