"""Adds up the metrics of all processes, those that have died included.

Each process writes what it counted to a file once a second and holds a lock for as long as it
lives. Whoever collects adds the files up, and folds those whose lock is free into a file of the
dead: no counter ever goes back when a worker is restarted. A kill loses the last second.
"""

import asyncio
import fcntl
import logging
import os
import resource
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

import msgspec

from gateway.metrics import OTHER, SERIES_MAX, Family, Gauge, Histogram, Joined, Labels, Metrics
from gateway.readiness import Readiness, Ready
from ledger.outage import outage

log = logging.getLogger(__name__)

Figures: TypeAlias = list[int | float]
Series: TypeAlias = dict[Labels, Figures]


class Published(msgspec.Struct, array_like=True):
    """One metric of one process; each series has one figure, a histogram's one per cell."""

    name: str
    bounds: tuple[int, ...]
    series: list[tuple[Labels, Figures]]


class Snapshot(msgspec.Struct, array_like=True):
    """All that one process says."""

    process: str
    at_s: float
    ready: Ready | None
    metrics: list[Published]
    folded: list[str] = []  # of the dead: the files that were added to it


_TICKS = 10  # measurements of the loop between two snapshots
_DEAD, _SUFFIX, _LOCK = "dead", ".snapshot", ".lock"

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Snapshot).decode


def _published(family: Family) -> Published:
    if isinstance(family, Histogram):
        lists: list[tuple[Labels, Figures]] = [(k, [*cells]) for k, cells in family.series.items()]
        return Published(family.name, family.bounds, lists)
    return Published(family.name, (), [(k, [figure]) for k, figure in family.series.items()])


class Publisher:
    """Writes one process's snapshots."""

    tick_s = 0.1

    def __init__(
        self, directory: Path, *, process: str, metrics: Metrics, readiness: Readiness
    ) -> None:
        metrics.configure(process=process)
        self.directory, self.process = directory, process
        self.metrics, self.readiness = metrics, readiness
        self._at_s = 0.0
        self.name = f"{process.replace(' ', '-')}.{secrets.token_hex(4)}"
        self._lock = -1

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.directory / f"{self.name}{_LOCK}", os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._publish_if_it_can(self._at_s)
        os.close(self._lock)

    async def run(
        self, wall_s: Callable[[], float], *, look: Callable[[], None] | None = None
    ) -> None:
        """Publish once a second, after `look`, and measure how late the loop is meanwhile."""
        loop = asyncio.get_running_loop()
        labels = (self.process,)
        while True:
            for _ in range(_TICKS):
                asleep_s = loop.time()
                await asyncio.sleep(self.tick_s)
                late_s = loop.time() - asleep_s - self.tick_s
                self.metrics.loop_lag_seconds.observe(max(0, int(late_s * 1e6)), labels)
            if look is not None:
                look()
            self._publish_if_it_can(wall_s())

    def families(self) -> Iterable[Family]:
        """The metrics there are."""
        return self.metrics.families()

    def snapshot(self, at_s: float) -> Snapshot:
        """What this process says now."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        self.metrics.cpu_seconds.set(used.ru_utime + used.ru_stime, (self.process,))
        self.metrics.memory_bytes.set(_resident_bytes(), (self.process,))
        metrics = [_published(family) for family in self.metrics.families()]
        return Snapshot(self.process, at_s, self.readiness.state(), metrics)

    def publish(self, at_s: float) -> None:
        """Write it where the collector looks; a reader sees the old file or the new one."""
        self._at_s = at_s
        _write(self.directory / f"{self.name}{_SUFFIX}", self.snapshot(at_s))

    def _publish_if_it_can(self, at_s: float) -> None:
        """A disk that is full keeps nobody from serving calls; nothing that is counted is lost."""
        try:
            self.publish(at_s)
        except OSError as error:
            log.warning("snapshot not written", extra=outage(error, of="disk"))


class Total:
    """Everything that was counted, by all processes together."""

    def __init__(self, families: Iterable[Family]) -> None:
        self.families = {family.name: family for family in families}
        self.series: dict[str, Series] = {name: {} for name in self.families}
        self.ready: dict[str, tuple[float, Ready]] = {}  # by process: when it said so, and what

    def add(self, snapshot: Snapshot, *, is_alive: bool) -> None:
        """Add one process. Of a dead one only what it counted stays true."""
        for published in snapshot.metrics:
            family = self.families.get(published.name)
            # Another release may have other metrics, or other bounds: those are left out.
            if family is None or _bounds(family) != published.bounds:
                continue
            if isinstance(family, Gauge) and not is_alive:
                continue
            for labels, figures in published.series:
                _join(self.series[family.name], family, labels, figures)
        if is_alive and snapshot.ready is not None:
            self.ready[snapshot.process] = (snapshot.at_s, snapshot.ready)

    def counted(self, folded: list[str]) -> Snapshot:
        """What is kept of the dead."""
        metrics = [
            Published(name, _bounds(family), [*self.series[name].items()])
            for name, family in self.families.items()
            if not isinstance(family, Gauge)
        ]
        return Snapshot(_DEAD, 0.0, None, metrics, folded)


def _bounds(family: Family) -> tuple[int, ...]:
    return family.bounds if isinstance(family, Histogram) else ()


def _join(series: Series, family: Family, labels: Labels, figures: Figures) -> None:
    if labels not in series and len(series) >= SERIES_MAX:
        labels = (OTHER,) * len(labels)
    before = series.get(labels)
    if before is None:
        series[labels] = [*figures]
    elif isinstance(family, Gauge) and family.joined is Joined.MAX:
        series[labels] = [max(before[0], figures[0])]
    else:
        series[labels] = [old + new for old, new in zip(before, figures, strict=True)]


class Collector:
    """Adds up what the processes of one folder have published. One process collects."""

    def __init__(self, own: Publisher) -> None:
        self._own, self._directory = own, own.directory

    def total(self, at_s: float) -> Total:
        """Everything, this process's own figures as they are now."""
        self._fold()
        own = self._own.snapshot(at_s)
        total = Total(self._own.families())
        dead = _read(self._directory / _DEAD)
        if dead is not None:
            total.add(dead, is_alive=False)
        for path in self._published():
            snapshot = _read(path)
            if snapshot is not None:
                total.add(snapshot, is_alive=True)
        total.add(own, is_alive=True)
        return total

    def _published(self) -> list[Path]:
        own = f"{self._own.name}{_SUFFIX}"
        return [path for path in self._directory.glob(f"*{_SUFFIX}") if path.name != own]

    def _fold(self) -> None:
        """Move the figures of processes that died into the file of the dead, each once."""
        gone = [path for path in self._published() if _is_free(path.with_suffix(_LOCK))]
        if not gone:
            return
        total = Total(self._own.families())
        dead = _read(self._directory / _DEAD)
        folded: list[str] = []
        if dead is not None:
            total.add(dead, is_alive=False)
            folded = dead.folded
        for path in gone:
            snapshot = _read(path)
            # One that is named there was added just before a crash kept us from removing it.
            if snapshot is not None and path.name not in folded:
                total.add(snapshot, is_alive=False)
        try:
            _write(self._directory / _DEAD, total.counted([path.name for path in gone]))
        except OSError as error:  # no reason to show nothing at all; a full disk is told by others
            log.warning("figures of the dead not kept", extra={"reason": str(error)})
            return
        for path in gone:
            path.unlink(missing_ok=True)
            path.with_suffix(_LOCK).unlink(missing_ok=True)


def _resident_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        # Not Linux: the most it ever used, in the unit of macOS.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _is_free(lock: Path) -> bool:
    """Whether the process that held this lock is dead."""
    try:
        descriptor = os.open(lock, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _read(path: Path) -> Snapshot | None:
    """The snapshot; None if there is none, or another release wrote it in another form."""
    try:
        return _decode(path.read_bytes())
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _write(path: Path, snapshot: Snapshot) -> None:
    draft = path.with_name(f"{path.name}.new")
    draft.write_bytes(_encode(snapshot))
    draft.replace(path)
