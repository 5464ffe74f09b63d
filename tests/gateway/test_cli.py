"""The command line as such: help, failures, exit codes."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.gateway.command_line import ROOT, CommandLine

COMMANDS = ["serve", "migrate", "check-config", "verify", "org", "key", "credit", "usage"]


@pytest.fixture
def terminal(tmp_path: Path) -> CommandLine:
    (tmp_path / "config.yaml").write_text("{}\n")
    return CommandLine(tmp_path, {})


async def test_help_names_every_command(terminal: CommandLine) -> None:
    ran = await terminal.done("--help")
    for command in COMMANDS:
        assert f"\n  {command} " in ran.out


@pytest.mark.parametrize("command", COMMANDS)
async def test_every_command_has_help_of_its_own(terminal: CommandLine, command: str) -> None:
    ran = await terminal.done(command, "--help")
    assert ran.out.startswith(f"Usage: tollgate {command} ")


def test_help_does_not_wait_for_libraries_it_never_uses() -> None:
    heavy = "asyncio asyncpg redis rich aiohttp uvloop msgspec yaml cryptography gateway.config"
    script = (
        "import sys, gateway.cli\n"
        "try: gateway.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        f"print([name for name in {heavy.split()!r} if name in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert out.splitlines()[-1] == "[]"


async def test_a_wrong_command_is_exit_code_2(terminal: CommandLine) -> None:
    for arguments in (["nonsense"], ["org"], ["credit", "grant"], ["usage", "--by", "moon", "x"]):
        ran = await terminal.run(*arguments)
        assert ran.code == 2
        assert "Traceback" not in ran.err


async def test_every_mistake_of_the_configuration_is_listed_and_is_exit_code_1(
    terminal: CommandLine,
) -> None:
    (terminal.folder / "config.yaml").write_text("listeners: {workers: 0}\nnonsense: 1\n")
    ran = await terminal.run("org", "list")
    assert ran.code == 1
    assert "listeners.workers" in ran.err
    assert "nonsense" in ran.err
    assert "Traceback" not in ran.err


async def test_the_configuration_is_named_by_option_or_environment(terminal: CommandLine) -> None:
    (terminal.folder / "other.yaml").write_text("nonsense: 1\n")
    assert (await terminal.run("--config", "other.yaml", "check-config")).code == 1
    terminal.environ["TOLLGATE_CONFIG"] = "other.yaml"
    assert (await terminal.run("check-config")).code == 1
    assert (await terminal.run("--config", "config.yaml", "check-config")).code == 0


async def test_a_missing_configuration_is_one_line(terminal: CommandLine) -> None:
    ran = await terminal.run("--config", "none.yaml", "org", "list")
    assert ran.code == 1
    assert ran.err == "tollgate: none.yaml: No such file or directory\n"
