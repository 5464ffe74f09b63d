"""What is refused at the start, each with a line that says what to do."""

from pathlib import Path

import pytest

from gateway.config import ConfigErrors, load
from gateway.preflight import unsafe_runtime
from tests.gateway.command_line import CommandLine

PLAIN = "auth: {pepper: 0123456789abcdefghijklmnopqrstuv}\n"
BY_NAME = "auth: {pepper: '${PEPPER}'}\n"


def test_the_interpreter_of_the_tests_is_good() -> None:
    assert unsafe_runtime() == []


@pytest.mark.parametrize(
    ("variable", "advice"),
    [("AIOHTTP_NO_EXTENSIONS", "unset AIOHTTP_NO_EXTENSIONS"), ("PYTHONOPTIMIZE", "without -O")],
)
async def test_nothing_is_served_by_an_interpreter_that_breaks_a_promise(
    tmp_path: Path, variable: str, advice: str
) -> None:
    (tmp_path / "config.yaml").write_text("{}\n")

    ran = await CommandLine(tmp_path, {variable: "1"}).run("serve")

    assert ran.code != 0
    assert advice in ran.err
    assert not (tmp_path / "data").exists()


def written(folder: Path, text: str, *, mode: int) -> Path:
    """A configuration with these rights."""
    path = folder / "config.yaml"
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("mode", [0o644, 0o604])
def test_a_secret_stands_in_no_file_that_everybody_can_read(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigErrors, match="chmod o=") as raised:
        load(written(tmp_path, PLAIN, mode=mode), {})

    assert "0123456789" not in str(raised.value)


@pytest.mark.parametrize(("mode", "text"), [(0o640, PLAIN), (0o600, PLAIN), (0o644, BY_NAME)])
def test_secrets_of_a_private_file_or_of_the_environment_are_good(
    tmp_path: Path, mode: int, text: str
) -> None:
    environ = {"PEPPER": "0123456789abcdefghijklmnopqrstuv"}

    assert load(written(tmp_path, text, mode=mode), environ).auth.pepper


def test_a_pepper_that_is_a_placeholder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("{}")

    with pytest.raises(ConfigErrors, match="openssl rand"):
        load(path, {"TOLLGATE_AUTH__PEPPER": "x" * 40})
