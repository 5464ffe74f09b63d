"""Flushers, top-ups and audits at once never wait for each other in a circle; if anybody else makes
one, nothing is lost by it."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import asyncpg
import pytest

from ledger.book import Organization
from ledger.flusher import Flusher
from tests.ledger.deployment import Deployment, deployed, until
from tests.scenarios.scale import LONG

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(1_200 if LONG else 60)]
ORGANIZATIONS = 1_000 if LONG else 24
LASTS_S = 600.0 if LONG else 4.0
FLUSHERS = 4
CHARGE = 7
_WAITS_FOR = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE $1 = ANY(pg_blocking_pids(pid)))"
_DEADLOCKS = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"


@asynccontextmanager
async def flushing(deployment: Deployment) -> AsyncIterator[list[Flusher]]:
    """Several flushers of every partition, which is wasteful, and correct."""
    flushers = [
        Flusher(
            deployment.url,
            deployment.redis,
            partitions=range(16),
            clock=time.time,  # noqa: TID251 - a test is its own root
            on_epoch=lambda _: None,
        )
        for _ in range(FLUSHERS)
    ]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(flusher.run()) for flusher in flushers]
        try:
            yield flushers
        finally:
            for task in tasks:
                task.cancel()


async def deadlocks(deployment: Deployment, *, more_than: int = -1) -> int:
    """How many this database has had, once it knows of `more_than` so many: who meets one tells of
    it when it leaves, at the latest."""
    known = 0

    async def is_known() -> bool:
        nonlocal known
        known = int(await deployment.pool.fetchval(_DEADLOCKS))
        return known > more_than

    await until(is_known, within_s=15)
    return known


async def circle(deployment: Deployment, organization: Organization) -> None:
    """Lock what a flush needs last, then what it takes first; Postgres ends one of the two."""
    async with deployment.connected() as connection:
        with suppress(asyncpg.DeadlockDetectedError):
            await _lock_backwards(connection, deployment, organization)


async def _lock_backwards(
    connection: asyncpg.Connection, deployment: Deployment, organization: Organization
) -> None:
    async with connection.transaction():
        await connection.execute(
            "SELECT FROM wallet WHERE id = $1::uuid FOR UPDATE", organization.id
        )
        await deployment.call(organization, charge=CHARGE)
        own = connection.get_server_pid()
        async with asyncio.timeout(10):
            while not await deployment.pool.fetchval(_WAITS_FOR, own):
                await asyncio.sleep(0.02)
        await connection.execute(
            "SELECT FROM part WHERE number = $1 FOR UPDATE", organization.partition
        )


async def test_flushers_and_top_ups_never_deadlock(postgres_url: str, redis_url: str) -> None:
    async with deployed(postgres_url, redis_url) as deployment:
        organizations = [await deployment.organization() for _ in range(ORGANIZATIONS)]
        for organization in organizations:
            await deployment.recover(organization)  # None: its partition's first one has done it
        calls = credits_ = 0
        loop = asyncio.get_running_loop()

        async def call(share: list[Organization]) -> None:
            nonlocal calls
            while loop.time() < until_s:
                for organization in share:
                    await deployment.call(organization, charge=CHARGE)
                    calls += 1

        async def top_up() -> None:
            nonlocal credits_
            while loop.time() < until_s:
                for organization in reversed(organizations):
                    await deployment.credit(organization, 1_000)
                    credits_ += 1

        async def is_flushed() -> bool:
            return await deployment.count("usage_record") == calls

        before, until_s = await deadlocks(deployment), loop.time() + LASTS_S
        async with flushing(deployment) as flushers:
            async with asyncio.TaskGroup() as group:
                for number in range(4):
                    group.create_task(call(organizations[number::4]))
                group.create_task(top_up())
            await until(is_flushed, within_s=60)
            ours = sum(flusher.tallies.failures for flusher in flushers)

            await circle(deployment, organizations[0])
            calls += 1
            await until(is_flushed, within_s=30)
        made = await deadlocks(deployment, more_than=before) - before
        assert not await deployment.differences()
    assert ours == 0, "a flusher failed"
    assert made == 1, "there were others than the one made by hand"
    print(
        f"C3: {FLUSHERS} flushers, {calls:,} calls and {credits_:,} top-ups of {ORGANIZATIONS}"
        f" organizations in {LASTS_S:.0f} s: 0 deadlocks; {made} made by hand, retried, 0 lost"
    )
