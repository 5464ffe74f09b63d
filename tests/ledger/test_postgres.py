"""Rules of the ledger's own connections."""

import asyncio
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import asyncpg
import pytest

from ledger.postgres import AWAY, connect, one_row, pooled
from tests.ledger.by_hand import Door


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
    pool = pooled(postgres_url, name="test", size=1)
    async with pool as opened, opened.acquire() as connection:
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


async def test_a_silent_server_sees_one_attempt_however_many_give_up_on_it(
    postgres_url: str, tmp_path: Path
) -> None:
    (real,) = parse_qs(urlsplit(postgres_url).query)["host"]
    door = Door(f"{real}/.s.PGSQL.5432")
    url = postgres_url.replace(quote(real, safe=""), quote(str(tmp_path), safe=""))
    assert url != postgres_url
    async with (
        door.standing(tmp_path / ".s.PGSQL.5432"),
        pooled(url, name="test", size=2) as pool,
    ):
        for _ in range(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await pool.fetchval("SELECT 1")
        assert door.came == 1

        door.opened.set()

        assert await pool.fetchval("SELECT 1") == 1
        assert door.came == 1


async def test_an_attempt_that_failed_is_followed_by_another(
    postgres_url: str, tmp_path: Path
) -> None:
    (real,) = parse_qs(urlsplit(postgres_url).query)["host"]
    url = postgres_url.replace(quote(real, safe=""), quote(str(tmp_path), safe=""))
    async with pooled(url, name="test", size=1) as pool:
        for _ in range(2):
            with pytest.raises(AWAY):
                await pool.fetchval("SELECT 1")
        door = Door(f"{real}/.s.PGSQL.5432")
        door.opened.set()
        async with door.standing(tmp_path / ".s.PGSQL.5432"):
            assert await pool.fetchval("SELECT 1") == 1
            pool.terminate()
