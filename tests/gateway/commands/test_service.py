"""`tollgate check-config`, `migrate` and `verify`; `serve` has scenarios of its own."""

from pathlib import Path

import asyncpg
import pytest

from tests.gateway.command_line import CommandLine, operator


@pytest.fixture
def terminal(tmp_path: Path, postgres_url: str, redis_url: str) -> CommandLine:
    return operator(tmp_path, postgres_url, redis_url)


async def test_a_good_configuration_is_ok(terminal: CommandLine) -> None:
    ran = await terminal.done("check-config")
    assert ran.out.startswith("config.yaml: OK\n")
    assert ran.err == ""


async def test_a_bad_one_is_listed_on_stderr_and_exit_code_1(terminal: CommandLine) -> None:
    (terminal.folder / "config.yaml").write_text("nonsense: 1\nlistners: {}\n")
    ran = await terminal.run("check-config")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("config.yaml: 2 mistakes\n")


async def test_migrating_needs_postgres(terminal: CommandLine) -> None:
    terminal.environ["TOLLGATE_POSTGRES__URL"] = "postgresql://me:hush@127.0.0.1:1/db"
    ran = await terminal.run("migrate")
    assert ran.code == 1
    assert ran.err.startswith("tollgate: Postgres at 127.0.0.1 cannot be reached")
    assert "hush" not in ran.err
    assert len(ran.err.splitlines()) == 1


async def test_a_sound_ledger_has_no_difference(terminal: CommandLine) -> None:
    await terminal.done("org", "create", "Acme")
    await terminal.done("credit", "grant", "Acme", "10", "--reason", "hi")
    await terminal.done("key", "create", "Acme", "k")
    await terminal.done("key", "revoke", "k")
    assert (await terminal.done("verify")).out == "No difference.\n"


async def test_every_difference_is_printed_and_exit_code_1(
    terminal: CommandLine, postgres_url: str
) -> None:
    await terminal.done("org", "create", "Acme")
    connection = await asyncpg.connect(postgres_url)
    await connection.execute("UPDATE wallet SET base = base + 7")
    await connection.close()
    ran = await terminal.run("verify")
    assert ran.code == 1
    assert "expected 0, found 7" in ran.out
    assert ran.err.endswith("differences.\n")
