"""Loads a wallet that Redis does not know yet: the one place where a call may wait for Postgres."""

import asyncio
from collections.abc import Callable

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisError

from ledger.bases import Loading, ensure_loaded
from ledger.functions import Epoch, Partition
from ledger.postgres import AWAY

_WAIT_S = 0.5  # some milliseconds while Postgres is well; a call that waits longer is refused


class WalletsUnavailable(Exception):
    """Nobody can tell now what the wallet holds."""


class Wallets:
    """Each wallet is looked up once, however many calls wait for it."""

    def __init__(self, pool: asyncpg.Pool, redis: Redis, *, on_lost: Callable[[int], None]) -> None:
        self._pool, self._redis, self._on_lost = pool, redis, on_lost
        self._lookups: dict[str, asyncio.Future[Loading | WalletsUnavailable]] = {}

    async def load(self, partition: int, wallet: str) -> bool:
        """True if Redis has the wallet now; raises `WalletsUnavailable`."""
        lookup = self._lookups.get(wallet)
        if lookup is None:
            loading = await self._lead(partition, wallet)
        else:
            loading = await asyncio.shield(lookup)
        if isinstance(loading, WalletsUnavailable):
            raise loading
        return loading is Loading.LOADED

    async def _lead(self, partition: int, wallet: str) -> Loading | WalletsUnavailable:
        """Look it up for all who ask meanwhile."""
        lookup = asyncio.get_running_loop().create_future()
        self._lookups[wallet] = lookup
        answer: Loading | WalletsUnavailable = WalletsUnavailable("interrupted")
        try:
            answer = await self._look_up(partition, wallet)
            if answer is Loading.LOST:
                self._on_lost(partition)
                answer = WalletsUnavailable("recovering")
        except (asyncpg.PostgresError, *AWAY, RedisError) as error:
            answer = WalletsUnavailable(type(error).__name__)
        except Epoch:
            answer = WalletsUnavailable("recovering")
        finally:
            del self._lookups[wallet]
            lookup.set_result(answer)
        return answer

    async def _look_up(self, partition: int, wallet: str) -> Loading:
        async with asyncio.timeout(_WAIT_S), self._pool.acquire() as connection:
            return await ensure_loaded(connection, Partition(self._redis, partition), wallet)
