"""How the ledger's own processes connect to Postgres: a connection each, every wait bounded.

A flusher that shared a pool with requests would wait for them when it is needed most.
"""

import asyncpg
from asyncpg.pool import PoolConnectionProxy

Connection = asyncpg.Connection | PoolConnectionProxy

CONNECT_TIMEOUT_S = 5.0
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


async def open_pool(url: str, *, name: str, size: int) -> asyncpg.Pool:
    """A pool of connections for a job that does several things at once; none is opened yet."""
    return await asyncpg.create_pool(
        url,
        min_size=0,
        max_size=size,
        max_inactive_connection_lifetime=30.0,
        timeout=CONNECT_TIMEOUT_S,
        command_timeout=COMMAND_TIMEOUT_S,
        server_settings={**_SETTINGS, "application_name": f"tollgate {name}"},
    )


async def one_row(connection: Connection, query: str, *arguments: object) -> asyncpg.Record:
    """The row of a query that always finds one."""
    row = await connection.fetchrow(query, *arguments)
    assert row is not None, query
    return row
