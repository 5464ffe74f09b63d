"""A pool of which nobody takes a second connection while they have one.

As many at once as there are connections would wait for each other, for as long as Postgres lets
them hold their locks. A larger pool only makes it rarer.
"""

import asyncio
from typing import Any

import asyncpg


class StrictPool(asyncpg.Pool):
    """Raises where a task asks for another connection."""

    def __init__(self, url: str, *, max_size: int = 8) -> None:
        super().__init__(
            url,
            connection_class=asyncpg.Connection,
            record_class=asyncpg.Record,
            min_size=0,
            max_size=max_size,
            max_queries=50_000,
            max_inactive_connection_lifetime=0,
            loop=None,
        )
        self._takers: dict[Any, asyncio.Task[Any] | None] = {}

    async def _acquire(self, timeout: float | None) -> Any:  # noqa: ASYNC109 - asyncpg's own
        task = asyncio.current_task()
        assert task not in self._takers.values(), "it has a connection already"
        connection = await super()._acquire(timeout)  # type: ignore[misc]  # the stubs lack it
        self._takers[connection] = task
        return connection

    async def release(self, connection: Any, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 - asyncpg's own
        self._takers.pop(connection, None)
        await super().release(connection, timeout=timeout)
