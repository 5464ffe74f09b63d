"""How the ledger's own processes connect to Postgres: a connection each, every wait bounded.

A flusher that shared a pool with requests would wait for them when it is needed most.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from asyncpg.pool import PoolConnectionProxy

Connection = asyncpg.Connection | PoolConnectionProxy

# An attempt that a paused server has in its queue is served when it goes on, so it is worth waiting
# for; one that a broken network swallowed is repeated by TCP, after a second or some at first.
CONNECT_TIMEOUT_S = 15.0
COMMAND_TIMEOUT_S = 20.0  # the client's own limit, above the server's, for a server that is gone

_SETTINGS = {
    "lock_timeout": "2000",
    "statement_timeout": "15000",
    "idle_in_transaction_session_timeout": "15000",  # a stopped flusher must not keep its partition
    "jit": "off",  # compiling a statement would take longer than running it
    "timezone": "UTC",
}

# What says that a server is away or broke off, and nothing about what was asked of it.
AWAY = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a connection that broke in the middle of an answer
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    OSError,
    TimeoutError,
)


async def connect(url: str, *, name: str) -> asyncpg.Connection:
    """A connection for a long-lived job; `name` is shown in pg_stat_activity."""
    return await asyncpg.connect(
        url,
        timeout=CONNECT_TIMEOUT_S,
        command_timeout=COMMAND_TIMEOUT_S,
        server_settings={**_SETTINGS, "application_name": f"tollgate {name}"},
    )


class _Doorstep:
    """Connects for a pool, once at a time, and goes on when nobody waits for it any more.

    A server that is paused would otherwise find an attempt of every request that gave up meanwhile,
    and be greeted by all of them when it goes on.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._attempt: asyncio.Future[asyncpg.Connection] | None = None

    async def __call__(self, *arguments: Any, **keywords: Any) -> asyncpg.Connection:
        """The next connection, by an attempt of ours or by one that was left here."""
        async with self._turn:
            attempt = self._attempt
            if attempt is None or _is_spent(attempt):
                attempt = asyncio.ensure_future(asyncpg.connect(*arguments, **keywords))
                attempt.add_done_callback(
                    _is_spent
                )  # or a failure that nobody met is complained of
                self._attempt = attempt
            connection = await asyncio.shield(attempt)
            self._attempt = None
            return connection

    async def close(self) -> None:
        """Give up what is under way."""
        attempt, self._attempt = self._attempt, None
        if attempt is None:
            return
        attempt.cancel()
        await asyncio.wait({attempt})
        if not _is_spent(attempt):
            attempt.result().terminate()


def _is_spent(attempt: "asyncio.Future[asyncpg.Connection]") -> bool:
    """Whether nothing can come of it any more."""
    if not attempt.done():
        return False
    return attempt.cancelled() or attempt.exception() is not None or attempt.result().is_closed()


@asynccontextmanager
async def pooled(
    url: str, *, name: str, size: int, command_timeout_s: float = COMMAND_TIMEOUT_S
) -> AsyncIterator[asyncpg.Pool]:
    """A pool of `size` connections at most, for a job that does several things at once.

    None is opened yet. Those that were stay open: Postgres has a fixed number of us.
    """
    doorstep = _Doorstep()
    pool = await asyncpg.create_pool(
        url,
        connect=doorstep,
        min_size=0,
        max_size=size,
        max_inactive_connection_lifetime=0,
        timeout=CONNECT_TIMEOUT_S,
        command_timeout=command_timeout_s,
        server_settings={**_SETTINGS, "application_name": f"tollgate {name}"},
    )
    try:
        yield pool
    finally:
        pool.terminate()  # to close them in order would wait for a server that may be away
        await doorstep.close()


async def one_row(connection: Connection, query: str, *arguments: object) -> asyncpg.Record:
    """The row of a query that always finds one."""
    row = await connection.fetchrow(query, *arguments)
    assert row is not None, query
    return row
