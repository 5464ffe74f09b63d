"""Rules of the ledger's own connections."""

import asyncpg
import pytest

from ledger.postgres import AWAY, connect, one_row, open_pool


async def test_every_wait_in_the_server_is_bounded(postgres_url: str) -> None:
    connection = await connect(postgres_url, name="test")
    try:
        for setting in ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"):
            value = await connection.fetchval("SELECT current_setting($1)", setting)
            assert value not in {"0", ""}, setting
        assert await connection.fetchval("SHOW application_name") == "tollgate test"
    finally:
        await connection.close()


async def test_a_query_that_must_find_a_row_says_when_it_does_not(postgres_url: str) -> None:
    pool = await open_pool(postgres_url, name="test", size=1)
    async with pool, pool.acquire() as connection:
        assert (await one_row(connection, "SELECT 1 AS n"))["n"] == 1
        with pytest.raises(AssertionError):
            await one_row(connection, "SELECT 1 WHERE false")


async def test_a_terminated_connection_counts_as_away(postgres_url: str) -> None:
    victim = await connect(postgres_url, name="victim")
    killer = await asyncpg.connect(postgres_url)
    try:
        await killer.execute("SELECT pg_terminate_backend($1)", victim.get_server_pid())
        with pytest.raises(AWAY):
            await victim.execute("SELECT 1")
    finally:
        await killer.close()
        victim.terminate()


async def test_a_server_that_is_not_there_counts_as_away() -> None:
    with pytest.raises(AWAY):
        await connect("postgresql://nobody@127.0.0.1:1/none", name="test")
