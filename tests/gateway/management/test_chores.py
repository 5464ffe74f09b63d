"""A chore does what is due at once, rests when nothing is, and outlives a Postgres that is away."""

import asyncio
import logging
from collections.abc import Iterator

import pytest

from gateway.management.chores import Chore


class Heap:
    """Work in portions; None: Postgres is away when one asks for it."""

    def __init__(self, *portions: int | None) -> None:
        self._portions: Iterator[int | None] = iter(portions)
        self.asked = 0
        self.is_done = asyncio.Event()

    async def do_some(self) -> int:
        self.asked += 1
        portion = next(self._portions, -1)
        if portion is None:
            raise ConnectionRefusedError
        if portion < 0:
            self.is_done.set()
            return 0
        return portion


async def worked_off(chore: Chore, heap: Heap) -> None:
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        task = group.create_task(chore.run())
        await heap.is_done.wait()
        task.cancel()


async def test_it_goes_on_until_nothing_is_due_and_looks_again_later() -> None:
    heap = Heap(10, 10, 3, 0, 1, 0)
    await worked_off(Chore("letters", heap.do_some, every_s=0.001), heap)
    assert heap.asked == 7


async def test_it_says_that_postgres_is_away_and_tries_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    heap = Heap(None, 1)
    with caplog.at_level(logging.WARNING):
        await worked_off(Chore("letters", heap.do_some, every_s=0.001), heap)
    assert [record.getMessage() for record in caplog.records] == ["letters are not looked at"]


async def test_it_ends_without_a_word_once_the_stores_are_closed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    heap = Heap(None)
    chore = Chore("letters", heap.do_some, every_s=3_600.0)
    chore.leave()
    async with asyncio.timeout(5):
        await chore.run()
    assert (heap.asked, caplog.records) == (1, [])


async def test_what_is_nobodys_fault_but_ours_is_not_hidden() -> None:
    async def broken() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await Chore("letters", broken, every_s=0.001).run()
