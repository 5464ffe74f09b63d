"""What processes use, as Linux tells it: their cores, their CPU time, their memory."""

import os
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_KB = os.sysconf("SC_PAGE_SIZE") // 1024
# In what follows the name in /proc/PID/stat: of the process, and of its children that have ended.
_PARENT, _TIMES = 1, slice(11, 15)


class Cores(NamedTuple):
    """What is measured has one core for itself; all else shares the others."""

    measured: frozenset[int]
    rest: frozenset[int]

    @property
    def are_apart(self) -> bool:
        """Whether there are two cores at all."""
        return not self.measured & self.rest

    @classmethod
    def split(cls) -> "Cores":
        """The cores of this process, the last of them for what is measured."""
        *rest, measured = sorted(os.sched_getaffinity(0))
        return cls(frozenset({measured}), frozenset(rest or {measured}))


@contextmanager
def staying_on(cores: Iterable[int]) -> Iterator[None]:
    """Keep this process, and what it starts meanwhile, on these cores."""
    before = os.sched_getaffinity(0)
    pin(os.getpid(), cores)
    try:
        yield
    finally:
        pin(os.getpid(), before)


def pin(pid: int, cores: Iterable[int]) -> None:
    """Keep a process with all its threads on these cores."""
    wanted = set(cores)
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), wanted)


def cpu_s(pids: Iterable[int]) -> float:
    """CPU time used so far by these processes; none by those that are gone."""
    return sum(_cpu_ticks(pid) for pid in pids) / _TICKS_PER_S


def rss_kb(pid: int) -> int:
    """Resident memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_KB


def descendants(pid: int) -> dict[int, str]:
    """Every process below this one, with its command line."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and (stat := _stat(int(path.name))):
            children.setdefault(int(stat[_PARENT]), []).append(int(path.name))
    found: dict[int, str] = {}
    waiting = list(children.get(pid, ()))
    while waiting:
        each = waiting.pop()
        found[each] = _command(each)
        waiting += children.get(each, ())
    return found


class Others:
    """How much of the machine those used who have nothing to do with us."""

    def __init__(self) -> None:
        self._began_s, self._theirs_s = time.monotonic(), self._used_s()

    def cores(self) -> float:
        """Cores that were busy for others since this was made."""
        used_s = self._used_s() - self._theirs_s
        return max(0.0, used_s / (time.monotonic() - self._began_s))

    def _used_s(self) -> float:
        user, nice, system, _, _, *interrupts = Path("/proc/stat").read_text().split()[1:8]
        busy = sum(map(int, (user, nice, system, *interrupts))) / _TICKS_PER_S
        return busy - cpu_s((os.getpid(), *descendants(os.getpid())))


def per_call_us(
    before: Mapping[str, float], after: Mapping[str, float], calls: int
) -> dict[str, float]:
    """CPU-microseconds of each role for one call."""
    return {role: round((after[role] - before[role]) * 1e6 / max(1, calls), 1) for role in before}


def medians(rounds: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The median of each key over all rounds."""
    each = list(rounds)
    return {key: statistics.median(one[key] for one in each) for key in each[0]}


def _stat(pid: int) -> list[str]:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # it ended while we looked
        return []
    return text.rpartition(")")[2].split()  # the name before it may hold anything


def _cpu_ticks(pid: int) -> int:
    stat = _stat(pid)
    return sum(map(int, stat[_TIMES]))


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return ""
