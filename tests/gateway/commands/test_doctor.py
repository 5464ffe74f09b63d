"""`tollgate doctor`, as an operator types it."""

from pathlib import Path

import pytest

from tests.gateway.command_line import CommandLine, operator


@pytest.fixture
def terminal(tmp_path: Path, postgres_url: str, redis_url: str) -> CommandLine:
    return operator(tmp_path, postgres_url, redis_url)


async def test_it_says_one_line_per_check_and_a_problem_is_exit_code_1(
    terminal: CommandLine,
) -> None:
    ran = await terminal.run("doctor")
    lines = ran.out.splitlines()
    assert ran.code == 1
    assert {line.split()[0] for line in lines} == {"ok", "warning", "problem"}
    (settings,) = (line for line in lines if "postgres: settings" in line)
    assert settings.startswith("problem  postgres: settings  fsync is off; full_page_writes is off")
    assert " -> turn it on" in settings
    (summary,) = ran.err.splitlines()
    assert summary.startswith("Problems: ")


async def test_scripts_get_the_same_as_json(terminal: CommandLine) -> None:
    rows = (await terminal.run("doctor", "--json")).json()
    assert {row["check"] for row in rows} >= {"configuration", "books", "holds", "clocks"}
    assert {row["grade"] for row in rows} == {"ok", "warning", "problem"}


async def test_a_configuration_that_cannot_be_read_is_the_first_problem(
    terminal: CommandLine,
) -> None:
    (terminal.folder / "config.yaml").write_text("listeners: {metrics: {token: ${NOT_SET}}}\n")
    ran = await terminal.run("doctor")
    assert ran.code == 1
    assert ran.out.startswith(
        "problem  configuration       config.yaml has mistakes: 1 -> `tollgate"
    )


async def test_without_postgres_it_is_one_line(terminal: CommandLine) -> None:
    terminal.environ["TOLLGATE_POSTGRES__URL"] = "postgresql://me:hush@127.0.0.1:1/db"
    ran = await terminal.run("doctor")
    assert ran.code == 1
    assert ran.err.startswith("tollgate: Postgres at 127.0.0.1 cannot be reached")
    assert "hush" not in ran.out + ran.err
