"""A child process does not outlive its supervisor by more than its time to stop."""

import signal
import subprocess
import sys

_CHILD = """
import asyncio
from gateway.process import stop_with_supervisor

async def run(ends):
    stop = asyncio.Event()
    stop_with_supervisor(stop, within_s=0.5)
    print("runs", flush=True)
    await stop.wait()
    print("stops", flush=True)
    await asyncio.sleep(0 if ends else 3600)

asyncio.run(run(ENDS))
"""


def orphan(*, ends: bool) -> tuple[int, str]:
    """A child whose supervisor is gone: its exit code, and what it said."""
    with subprocess.Popen(
        [sys.executable, "-c", _CHILD.replace("ENDS", str(ends))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        said = child.stdout.readline()
        child.stdin.close()  # as the kernel does for a supervisor that was killed
        said += child.stdout.read()
    return child.returncode, said


def test_it_stops_in_order() -> None:
    assert orphan(ends=True) == (0, "runs\nstops\n")


def test_one_that_cannot_stop_is_killed() -> None:
    assert orphan(ends=False) == (-signal.SIGALRM, "runs\nstops\n")
