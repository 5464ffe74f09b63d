"""Postgres and Redis for one command: those configured, else those of a running `serve`.

A store that cannot be reached is one clear line that says which and what to do.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import parse_qs, urlsplit

import asyncpg
from redis.asyncio import Redis

from gateway.config import load, pepper
from gateway.embedded import EmbeddedFailed, urls
from gateway.key_cache import KeyCache
from gateway.keys import key_digester
from gateway.settings import Config
from ledger.clients import open_redis
from ledger.postgres import AWAY

Result = TypeVar("Result")

CONNECT_S, _COMMAND_S = 5.0, 60.0


class StoresUnreachable(Exception):
    """A store does not answer; the message says which, and what to do."""


class StoreUrls(NamedTuple):
    """Where the two stores are."""

    postgres: str
    redis: str


class Stores(NamedTuple):
    """What a command works on."""

    config: Config
    pool: asyncpg.Pool
    redis: Redis
    cache: KeyCache

    def key_digest(self) -> Callable[[str], bytes]:
        """The digest of keys, under the pepper of the gateways."""
        return key_digester(pepper(self.config, secrets.token_urlsafe(32)))


def store_urls(config: Config) -> StoreUrls:
    """Where the stores are; raises `StoresUnreachable` if they were never started."""
    postgres, redis = config.postgres.url, config.redis.url
    if postgres is not None and redis is not None:
        return StoreUrls(postgres.reveal(), redis.reveal())
    try:
        embedded = urls(config.data_dir)
    except EmbeddedFailed as error:
        raise StoresUnreachable(
            f"no Postgres and Redis are configured, and none were ever started in"
            f" {config.data_dir}/. Start `tollgate serve` or `tollgate up`, or set"
            " TOLLGATE_POSTGRES__URL and TOLLGATE_REDIS__URL."
        ) from error
    return StoreUrls(
        embedded.postgres if postgres is None else postgres.reveal(),
        embedded.redis if redis is None else redis.reveal(),
    )


def run(config_path: str, work: Callable[[Stores], Awaitable[Result]]) -> Result:
    """Do this with the stores that the configuration names; raises `StoresUnreachable`."""

    async def with_stores() -> Result:
        async with opened(load(Path(config_path))) as stores:
            return await work(stores)

    return asyncio.run(with_stores())


@contextmanager
def explained(config: Config, url: str) -> Iterator[None]:
    """What Postgres at `url` does not do is said in words: `StoresUnreachable`."""
    try:
        yield
    except (
        *AWAY,
        asyncpg.InvalidAuthorizationSpecificationError,
        asyncpg.InvalidCatalogNameError,
    ) as error:
        raise StoresUnreachable(_unreachable(config, url, error)) from error
    except asyncpg.UndefinedTableError as error:
        raise StoresUnreachable(
            "the database has not this release's tables. Run `tollgate migrate`."
        ) from error


@asynccontextmanager
async def opened(config: Config) -> AsyncIterator[Stores]:
    """Connections to the stores of this configuration, closed in the end."""
    where = store_urls(config)
    redis = open_redis(where.redis)
    try:
        with explained(config, where.postgres):
            async with asyncpg.create_pool(
                where.postgres,
                min_size=1,
                max_size=2,
                timeout=CONNECT_S,
                command_timeout=_COMMAND_S,
            ) as pool:
                cache = KeyCache(redis, time.time)  # noqa: TID251 - a command is its own root
                yield Stores(config, pool, redis, cache)
    finally:
        await redis.aclose()


def _unreachable(config: Config, url: str, error: Exception) -> str:
    why = str(error) or type(error).__name__
    if config.postgres.url is None:
        return (
            f"the Postgres of {config.data_dir}/ does not answer ({why})."
            " Is `tollgate serve` or `tollgate up` running?"
        )
    parts = urlsplit(url)
    host = parts.hostname or parse_qs(parts.query).get("host", ["localhost"])[0]
    return f"Postgres at {host} cannot be reached ({why})."
