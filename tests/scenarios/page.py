"""The metrics page, read as Prometheus reads it."""

import asyncio
from collections.abc import Iterator
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from tests.scenarios.deployment import Deployment

_TICKS = 10  # of the event loop's lag, measured between two snapshots of a process


class Sample(NamedTuple):
    """One series."""

    name: str
    labels: dict[str, str]
    value: float


class Page:
    """What the page said at one moment."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples = [
            Sample(sample.name.removeprefix("tollgate_"), sample.labels, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]

    def of(self, name: str, **labels: str) -> Iterator[Sample]:
        """The series of this name that have these labels, whatever else they have."""
        for sample in self.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                yield sample

    def sum(self, name: str, **labels: str) -> float:
        """Their values together; 0 if there are none."""
        return sum(sample.value for sample in self.of(name, **labels))

    def by(self, name: str, label: str) -> dict[str, float]:
        """The sums by the values of one label."""
        found: dict[str, float] = {}
        for sample in self.of(name):
            found[sample.labels[label]] = found.get(sample.labels[label], 0) + sample.value
        return found


async def page(tollgate: Deployment) -> Page:
    """The page with everything that happened before it was asked for.

    A process publishes what it counted once a second; this waits until each of them has.
    """
    begun = await _ticks(tollgate)
    async with asyncio.timeout(20):
        while True:
            read = Page(await asyncio.to_thread(tollgate.metrics))
            now = read.by("loop_lag_seconds_count", "process")
            if all(now.get(process, 0) >= ticks + _TICKS for process, ticks in begun.items()):
                return read
            await asyncio.sleep(0.1)


async def _ticks(tollgate: Deployment) -> dict[str, float]:
    read = Page(await asyncio.to_thread(tollgate.metrics))
    workers = {f"worker-{number}" for number in range(tollgate.workers)}
    return {
        process: ticks
        for process, ticks in read.by("loop_lag_seconds_count", "process").items()
        if process in workers
    }
