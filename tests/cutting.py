"""Cuts a piece of work off where it waits for the n-th time, for tests of what is left then."""

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any


class _Cut:
    """Runs a coroutine and cancels the task at its n-th suspension, from within."""

    def __init__(self, work: Coroutine[Any, Any, object], at: int) -> None:
        self._work, self._at = work, at

    def __await__(self) -> Generator[Any, Any, object]:
        steps, count = self._work.__await__(), 0
        error: BaseException | None = None
        while True:
            try:
                waits_for = steps.send(None) if error is None else steps.throw(error)
            except StopIteration as end:
                return end.value
            count += 1
            if count == self._at:
                task = asyncio.current_task()
                assert task is not None, "a coroutine is run by a task"
                task.cancel()  # comes into effect as soon as the task waits: now
            error = None
            try:
                yield waits_for
            except BaseException as thrown:  # noqa: BLE001 - handed on to where it belongs
                error = thrown


async def is_cut(work: Coroutine[Any, Any, object], *, at: int) -> bool:
    """Run it in a task of its own; False: it came to its end before it waited so often."""

    async def run() -> object:
        return await _Cut(work, at)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(run())
        await asyncio.wait([task])
    return task.cancelled()
