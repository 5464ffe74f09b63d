"""A conveyor at work, and the words its tests are told in."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from ledger.conveyor import Conveyor
from ledger.functions import Partition
from ledger.step import Settled
from tests.ledger.partitions import NUMBER, images


class Line:
    """A conveyor, and what it told; `manner` as `Conveyor` takes it."""

    partitions = NUMBER + 1

    def __init__(self, url: str, **manner: Any) -> None:
        self.epochs: list[int] = []
        self.generations: list[tuple[int, int]] = []
        self.settled: list[Settled] = []
        self.batches: list[int] = []
        self.conveyor = Conveyor(
            url,
            partitions=self.partitions,
            on_epoch=self.epochs.append,
            on_settled=self.settled.append,
            on_generation=self._told,
            on_batch=lambda steps, _: self.batches.append(steps),
            **manner,
        )

    def _told(self, partition: int, generation: int) -> None:
        """As journals answer that have nothing to tell."""
        self.generations.append((partition, generation))
        owing = self.conveyor.owing(partition, generation)
        if owing is not None:
            self.conveyor.owed(owing)
            self.conveyor.all_late(partition, generation)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Conveyor]:
        async with asyncio.TaskGroup() as tasks:
            owner = tasks.create_task(self.conveyor.run())
            try:
                yield self.conveyor
            finally:
                owner.cancel()


async def until(fact: Callable[[], bool], *, within_s: float = 5.0) -> None:
    """Wait for a fact."""
    async with asyncio.timeout(within_s):
        while not fact():
            await asyncio.sleep(0.002)


async def nothing_is_held(partition: Partition, generation: int = 1) -> None:
    """Every hold is given back, and each wallet adds up."""
    async with asyncio.timeout(5.0):
        while await partition.open_holds(generation):
            await asyncio.sleep(0.002)
    assert {there.held for there in (await images(partition, generation)).values()} == {0}
