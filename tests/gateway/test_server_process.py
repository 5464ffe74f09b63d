"""Tests of gateway/server_process.py, with small programs in place of the servers."""

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.server_process import Health, ServerFailed, ServerProcess

# It says that it serves by a file that holds its pid, what it was told and its environment.
PROGRAM = """
import os, pathlib, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
pathlib.Path("serves").write_text(f"{os.getpid()} {sys.stdin.read()} {sorted(os.environ)}")
while True:
    signal.pause()
"""


def server(home: Path, program: str = PROGRAM, *, hangs: bool = False) -> ServerProcess:
    """`hangs`: it never answers again once it served."""
    home.mkdir(exist_ok=True)
    answered: list[str] = []

    async def probe() -> Health:
        text = (home / "serves").read_text()
        if not text:
            return Health.BUSY
        if hangs and text in answered:
            return Health.SILENT
        answered.append(text)
        return Health.READY

    return ServerProcess(
        home,
        [sys.executable, "-c", program],
        probe=probe,
        account=None,
        stop_signal=signal.SIGTERM,
        config=b"told",
        probe_every_s=0.01,
    )


async def test_a_server_is_told_its_configuration_and_none_of_our_secrets(tmp_path: Path) -> None:
    one = server(tmp_path / "one")
    await one.start()
    pid, told, environment = (tmp_path / "one" / "serves").read_text().split(" ", 2)
    assert (int(pid), told) == (one.pid, "told")
    assert set(eval(environment)) <= {"LC_ALL", "LC_CTYPE", "PATH", "TZ"}  # noqa: S307 - our own list
    await one.stop()
    assert one.pid is None


async def test_a_server_that_ends_at_once_is_reported_with_its_last_words(tmp_path: Path) -> None:
    one = server(tmp_path / "one", "import sys; sys.exit('no room on this disk')")
    with pytest.raises(ServerFailed, match="no room on this disk"):
        await one.start()
    await one.stop()


async def test_a_server_that_hangs_is_killed_and_replaced(tmp_path: Path) -> None:
    one = server(tmp_path / "one", hangs=True)
    await one.start()
    first = one.pid
    watch = asyncio.ensure_future(one.keep_alive())
    async with asyncio.timeout(10):
        while one.pid in (None, first):
            await asyncio.sleep(0.01)
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)
    await one.stop()


async def test_a_server_left_by_an_earlier_run_is_ended_before_the_next_one(tmp_path: Path) -> None:
    home = tmp_path / "one"
    home.mkdir()
    with (tmp_path / "one.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        leftover = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            cwd=home,
            stdin=subprocess.DEVNULL,
            pass_fds=[lock.fileno()],
        )
        lock.write(str(leftover.pid))
    async with asyncio.timeout(10):
        while not (home / "serves").exists():
            await asyncio.sleep(0.01)
    one = server(home)
    reap = asyncio.ensure_future(asyncio.to_thread(leftover.wait))
    await one.start()
    assert await reap == 0
    await one.stop()


async def test_a_process_that_only_got_the_pid_of_a_server_is_let_alone(tmp_path: Path) -> None:
    (tmp_path / "one.lock").write_text(str(os.getpid()))
    one = server(tmp_path / "one")
    await one.start()  # would have ended this very test
    await one.stop()


async def test_a_long_log_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "one.log").write_bytes(b"x" * (5 << 20))
    one = server(tmp_path / "one")
    await one.start()
    await one.stop()
    assert (tmp_path / "one.log.old").stat().st_size == 5 << 20
    assert (tmp_path / "one.log").stat().st_size < 1 << 20
