"""An organization with keys, and authenticators in front of them, for the tests that need some."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

import asyncpg
from redis.asyncio import Redis

from gateway.auth import Authenticator, AuthLimits, Clock
from gateway.key_cache import KeyCache
from gateway.keys import issue, key_digester
from gateway.management import api_keys, known_keys, organizations
from gateway.management.api_keys import ApiKey, KeyLabel, KeyTerms
from gateway.management.organizations import OrganizationTerms
from gateway.principal import KnownKey
from ledger.clients import open_redis
from ledger.functions import Partition, install
from providers.adapter import Secret

PEPPER = Secret("the pepper of the tests, which is no secret")
digest_of = key_digester(PEPPER)


def new_key() -> str:
    """The text of a key that nobody has."""
    return issue(secrets.token_bytes(32)).secret.reveal()


def clock() -> Clock:
    """The clocks of this machine."""
    return Clock(time.time, time.monotonic)  # noqa: TID251 - a test is its own composition root


async def until(happens: Callable[[], Awaitable[bool]], *, within_s: float = 10.0) -> float:
    """Wait for it and say how long that took; `TimeoutError` if it takes too long."""
    started_s = time.monotonic()
    async with asyncio.timeout(within_s):
        while not await happens():
            await asyncio.sleep(0.005)
    return time.monotonic() - started_s


class Tenancy:
    """One organization in Postgres, with Redis beside it."""

    def __init__(self, pool: asyncpg.Pool, redis: Redis) -> None:
        self.pool, self.redis = pool, redis
        self.cache = KeyCache(redis, clock().unix_s)
        self.organization_id = UUID(int=0)

    async def make_key(self, text: str, terms: KeyTerms | None = None) -> ApiKey:
        """The key of this text, published as every new one is."""
        return await api_keys.create(
            self.pool,
            self.cache,
            organization_id=self.organization_id,
            label=KeyLabel(digest_of(text), text[47:51]),
            terms=terms or KeyTerms(name="key"),
        )

    async def listeners(self) -> int:
        """How many processes hear of changes."""
        ((_, count),) = await self.redis.pubsub_numsub("tg:keys")
        return int(count)


class Lookups:
    """The way to Postgres, counting what is asked."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self.asked: list[int] = []  # the number of keys in each query

    async def __call__(self, digests: Sequence[bytes]) -> dict[bytes, KnownKey]:
        self.asked.append(len(digests))
        return await known_keys.find(self._pool, digests)


@asynccontextmanager
async def tenancy(postgres_url: str, redis_url: str) -> AsyncIterator[Tenancy]:
    """A migrated database and a Redis with its functions, with one organization in them."""
    async with asyncpg.create_pool(postgres_url, min_size=0, max_size=4) as pool:
        redis = open_redis(redis_url)
        await install(redis)
        stage = Tenancy(pool, redis)
        try:
            terms = OrganizationTerms(name="Acme")
            stage.organization_id = (await organizations.create(pool, redis, terms)).id
            yield stage
        finally:
            await redis.aclose()


@asynccontextmanager
async def authenticating(
    stage: Tenancy,
    find: Callable[[Sequence[bytes]], Awaitable[dict[bytes, KnownKey]]],
    *,
    limits: AuthLimits | None = None,
    clocks: Clock | None = None,
) -> AsyncIterator[Authenticator]:
    """A running authenticator that hears of changes."""
    authenticator = Authenticator(
        digest=digest_of,
        cache=stage.cache,
        find=find,
        clock=clocks or clock(),
        limits=limits,
    )
    before = await stage.listeners()

    async def listens() -> bool:
        return await stage.listeners() > before

    async with running(authenticator):
        await until(listens)
        yield authenticator


@asynccontextmanager
async def running(authenticator: Authenticator) -> AsyncIterator[None]:
    """The authenticator's own tasks run meanwhile."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(authenticator.run(), name="the authenticator")
        try:
            yield
        finally:
            task.cancel()


async def activate(stage: Tenancy, *partitions: int) -> None:
    """Make partitions ready for holds and credits, as a recovery leaves them."""
    for number in partitions:
        partition = Partition(stage.redis, number)
        await partition.freeze(1)
        await partition.activate(1, 0)
    await stage.pool.execute(
        "UPDATE part SET state = 'active', generation = 1, watermark_generation = 1"
    )
