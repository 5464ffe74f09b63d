"""A gateway process reduced to its authenticator: uses a key 50 times a second until it is refused.

`python -m tests.gateway.key_prober POSTGRES_URL REDIS_URL KEY` prints "ready" once the key works
and at last the unix times of the last success and of the first refusal, and the reason.
"""

import asyncio
import sys
import time

import asyncpg

from gateway.auth import Authenticator
from gateway.credential import AuthError
from gateway.key_cache import KeyCache
from ledger.clients import open_redis
from tests.gateway.tenancy import Lookups, clock, digest_of, running


async def probe(postgres_url: str, redis_url: str, key: str) -> None:
    """Print what the docstring of the module says."""
    async with asyncpg.create_pool(postgres_url, min_size=0) as pool:
        redis = open_redis(redis_url)
        authenticator = Authenticator(
            digest=digest_of,
            cache=KeyCache(redis, clock().unix_s),
            find=Lookups(pool),
            clock=clock(),
        )
        async with running(authenticator):
            await authenticator.principal(key)
            print("ready", flush=True)
            last_s = 0.0
            try:
                while True:
                    await authenticator.principal(key)
                    last_s = time.time()  # noqa: TID251 - compared with other processes
                    await asyncio.sleep(0.02)
            except AuthError as error:
                print(last_s, time.time(), error.reason, flush=True)  # noqa: TID251 - as above
        await redis.aclose()


if __name__ == "__main__":
    asyncio.run(probe(*sys.argv[1:]))
