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

_SAMPLES_PER_S = 500
_FRAME = re.compile(r"^(?P<name>.+) \((?P<file>[^()]*?)(?::\d+)?\)$")


class Share(NamedTuple):
    """A function's part of the samples, alone and with what it called."""

    function: str
    alone: float
    inclusive: float


@asynccontextmanager
async def profiled(pid: int, folder: Path, *, seconds: float) -> AsyncIterator[None]:
    """Sample a process meanwhile; leaves `worker.txt`, a collapsed stack and its count a line."""
    spy = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    assert spy, "py-spy is needed for a profile: pip install py-spy"
    folder.mkdir(parents=True, exist_ok=True)
    command = [spy, "record", "--pid", str(pid), "--duration", str(max(1, round(seconds)))]
    command += ["--rate", str(_SAMPLES_PER_S), "--native", "--format", "raw"]
    process = Popen([*command, "--output", str(folder / "worker.txt")], stdout=DEVNULL)
    try:
        yield
    finally:
        await asyncio.to_thread(process.wait)


def shares(collapsed: str) -> list[Share]:
    """The functions of a collapsed profile, those that took most by themselves first."""
    alone: Counter[str] = Counter()
    inclusive: Counter[str] = Counter()
    total = 0
    for line in collapsed.splitlines():
        stack, _, text = line.rpartition(" ")
        count = int(text)
        frames = [_named(frame) for frame in stack.split(";")]
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
