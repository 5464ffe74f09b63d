"""Where a process spends its time: py-spy, if installed, looks at its stack while it works."""

import asyncio
import re
import shutil
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import NamedTuple

STACKS = "worker.txt"
_SAMPLES_PER_S = 500
_MAIN = "MainThread"
_FRAME = re.compile(r"^(?P<name>.+) \((?P<file>[^()]*?)(?::\d+)?\)$")


class Share(NamedTuple):
    """A function's part of the samples, alone and with what it called."""

    function: str
    alone: float
    inclusive: float


@asynccontextmanager
async def profiled(pid: int, folder: Path, *, seconds: float) -> AsyncIterator[None]:
    """Sample a process meanwhile; leaves `STACKS` in the folder: a stack and its count a line."""
    spy = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    assert spy, "py-spy is needed for a profile: pip install py-spy"
    folder.mkdir(parents=True, exist_ok=True)
    command = [spy, "record", "--pid", str(pid), "--duration", str(max(1, round(seconds)))]
    # Without stopping it: a process that is stopped is mostly found in its system calls.
    command += ["--rate", str(_SAMPLES_PER_S), "--nonblocking", "--threads", "--format", "raw"]
    process = Popen([*command, "--output", str(folder / STACKS)], stdout=DEVNULL, stderr=DEVNULL)
    try:
        yield
    finally:
        await asyncio.to_thread(process.wait)


def shares(collapsed: str) -> list[Share]:
    """The functions of the main thread, those that took most by themselves first."""
    alone: Counter[str] = Counter()
    inclusive: Counter[str] = Counter()
    total = 0
    for line in collapsed.splitlines():
        stack, _, text = line.rpartition(" ")
        count = int(text)
        thread, *stack_frames = stack.split(";")
        if _MAIN not in thread or not stack_frames:
            continue
        frames = [_named(frame) for frame in stack_frames]
        alone[frames[-1]] += count
        for name in set(frames):
            inclusive[name] += count
        total += count
    return [
        Share(name, count / total, inclusive[name] / total) for name, count in alone.most_common()
    ]


def _named(frame: str) -> str:
    found = _FRAME.match(frame)
    return f"{found['file'].rpartition('/')[2]}:{found['name']}" if found else frame
