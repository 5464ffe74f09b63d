"""What healthy calls take, and what the processes of a deployment use meanwhile."""

import asyncio
import os
import re
import statistics
import time
from pathlib import Path

from tests.scenarios.caller import CHAT, asks, caller
from tests.scenarios.deployment import Deployment, Key
from tests.scenarios.scale import LONG

CALLS = 2_000 if LONG else 400  # of which a percentile is taken
AT_ONCE = 4


async def p99_s(tollgate: Deployment, key: Key) -> float:
    """The 99th percentile of healthy calls."""
    took_s: list[float] = []

    async def calls() -> None:
        async with caller(tollgate) as line:
            for _ in range(CALLS // AT_ONCE):
                began_s = time.perf_counter()
                answer = await line.post(CHAT, key.secret, asks(CHAT, "vendor/m", max_tokens=5))
                took_s.append(time.perf_counter() - began_s)
                assert answer.status == 200

    await asyncio.gather(*(calls() for _ in range(AT_ONCE)))
    return statistics.quantiles(took_s, n=100)[98]


def cpu_s(pids: list[int]) -> float:
    """The CPU time that these processes have used."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


async def until_calm(pids: list[int]) -> None:
    """Return once what slow clients can be sent has been sent, and what they left was read."""
    async with asyncio.timeout(90):
        while True:
            before_s = cpu_s(pids)
            await asyncio.sleep(0.5)
            if cpu_s(pids) - before_s < 0.05:
                return


def rss_mib(pids: list[int]) -> float:
    """The resident memory of these processes."""
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024**2


def handles(pids: list[int]) -> int:
    """The open files and sockets of these processes."""
    return sum(len([*Path(f"/proc/{pid}/fd").iterdir()]) for pid in pids)


class Peaks:
    """How much more memory processes have had, at their peak, than when this was made."""

    def __init__(self, pids: list[int]) -> None:
        for pid in pids:
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak is what it has now
        self._before = {pid: _peak_bytes(pid) for pid in pids}

    def grown(self) -> list[int]:
        """Bytes, a process each."""
        return [_peak_bytes(pid) - was for pid, was in self._before.items()]


def _peak_bytes(pid: int) -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024
