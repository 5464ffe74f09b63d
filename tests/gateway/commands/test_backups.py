"""`tollgate backup` and `restore`, as an operator types them; the drill is a scenario."""

from pathlib import Path

import pytest

from tests.gateway.command_line import CommandLine, operator


@pytest.fixture
def terminal(tmp_path: Path, postgres_url: str, redis_url: str) -> CommandLine:
    return operator(tmp_path, postgres_url, redis_url)


@pytest.mark.parametrize("command", ["backup", "restore"])
async def test_a_postgres_of_ones_own_is_left_to_its_own_tools(
    terminal: CommandLine, command: str
) -> None:
    ran = await terminal.run(command, "somewhere")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("tollgate: Postgres is your own: back it up")


async def test_without_servers_there_is_nothing_to_back_up(terminal: CommandLine) -> None:
    del terminal.environ["TOLLGATE_POSTGRES__URL"]
    ran = await terminal.run("backup", "somewhere")
    assert (ran.code, "no servers were ever started" in ran.err) == (1, True)
    ran = await terminal.run("restore", "somewhere")
    assert (ran.code, "is no whole backup" in ran.err) == (1, True)
