"""How long sessions of Postgres wait for each other, seen from outside."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

_LOCK_WAITS = """
    SELECT coalesce(extract(epoch FROM max(clock_timestamp() - waitstart)), 0)::float8
    FROM pg_locks WHERE NOT granted AND locktype <> 'advisory'
"""


class Waits:
    """How long anything has waited for a lock of the database."""

    longest_s = 0.0

    @classmethod
    @asynccontextmanager
    async def seen(cls, url: str) -> AsyncIterator["Waits"]:
        """Looked at again and again while the block runs."""
        waits, stop = cls(), asyncio.Event()

        async def look() -> None:
            connection = await asyncpg.connect(url)
            try:
                while not stop.is_set():
                    waits.longest_s = max(waits.longest_s, await connection.fetchval(_LOCK_WAITS))
                    await asyncio.sleep(0.005)
            finally:
                await connection.close()

        async with asyncio.TaskGroup() as group:
            group.create_task(look(), name="lock waits")
            try:
                yield waits
            finally:
                stop.set()
