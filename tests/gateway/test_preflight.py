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


@pytest.mark.parametrize(
    ("mode", "text", "is_good"),
    [
        (0o644, PLAIN, False),
        (0o604, PLAIN, False),
        (0o640, PLAIN, True),
        (0o600, PLAIN, True),
        (0o644, BY_NAME, True),
    ],
)
def test_a_secret_stands_in_no_file_that_everybody_can_read(
    tmp_path: Path,
    mode: int,
    text: str,
    is_good: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    path.chmod(mode)
    try:
        load(path, {"PEPPER": "0123456789abcdefghijklmnopqrstuv"})
    except ConfigErrors as error:
        assert not is_good
        assert "chmod o=" in str(error)
        assert "0123456789" not in str(error)
    else:
        assert is_good


def test_a_pepper_that_is_a_placeholder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("{}")

    with pytest.raises(ConfigErrors, match="openssl rand"):
        load(path, {"TOLLGATE_AUTH__PEPPER": "x" * 40})
