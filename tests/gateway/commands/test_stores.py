"""Where a command finds its stores, and what it says when it does not."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.embedded import Embedded
from tests.gateway.command_line import CommandLine, operator


@pytest.fixture
def folder() -> Iterator[Path]:
    # Short, because unix sockets have short names.
    with tempfile.TemporaryDirectory(prefix="tg-") as made:
        yield Path(made)


async def test_without_any_stores_the_operator_is_told_what_to_start(folder: Path) -> None:
    (folder / "config.yaml").write_text("{}\n")
    ran = await CommandLine(folder, {}).run("org", "list")
    assert ran.code == 1
    assert ran.err.startswith("tollgate: no Postgres and Redis are configured")
    assert "tollgate serve" in ran.err
    assert len(ran.err.splitlines()) == 1


async def test_a_postgres_that_is_away_is_one_line_without_its_password(folder: Path) -> None:
    terminal = operator(folder, "postgresql://me:hush@127.0.0.1:1/db", "redis://127.0.0.1:1")
    ran = await terminal.run("org", "list")
    assert ran.code == 1
    assert ran.err.startswith("tollgate: Postgres at 127.0.0.1 cannot be reached")
    assert "hush" not in ran.err
    assert len(ran.err.splitlines()) == 1


async def test_a_database_that_is_not_there_is_one_line(
    folder: Path, postgres_url: str, redis_url: str
) -> None:
    name = postgres_url.rpartition("/")[2].partition("?")[0]
    elsewhere = postgres_url.replace(f"/{name}?", "/elsewhere?")
    ran = await operator(folder, elsewhere, redis_url).run("org", "list")
    assert ran.code == 1
    assert 'database "elsewhere" does not exist' in ran.err
    assert len(ran.err.splitlines()) == 1


async def test_a_database_without_tables_is_to_be_migrated(
    folder: Path, postgres_empty_url: str, redis_url: str
) -> None:
    terminal = operator(folder, postgres_empty_url, redis_url)
    ran = await terminal.run("org", "list")
    assert ran.code == 1
    assert "tollgate migrate" in ran.err
    assert "applied" in (await terminal.done("migrate")).out
    assert (await terminal.done("migrate")).out == "Nothing to do.\n"
    assert (await terminal.done("org", "list")).err == "None.\n"


async def test_without_configured_stores_those_of_the_data_folder_are_used(folder: Path) -> None:
    (folder / "config.yaml").write_text("{}\n")
    terminal = CommandLine(folder, {})
    async with Embedded(folder / "data"):
        await terminal.done("migrate")
        await terminal.done("org", "create", "Acme")
        assert [row["name"] for row in (await terminal.done("org", "list", "--json")).json()] == [
            "Acme"
        ]
    ran = await terminal.run("org", "list")
    assert ran.code == 1
    assert "Is `tollgate serve` or `tollgate up` running?" in ran.err
    assert len(ran.err.splitlines()) == 1
