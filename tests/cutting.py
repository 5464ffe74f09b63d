"""Cuts a piece of work off where it waits for the n-th time, for tests of what is left then."""

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any

_DEAD: list[Generator[Any, Any, object]] = []  # kept: what is cleaned up at an end, the dead do not


class _Died(Exception):
    """The process was killed here."""


class _Cut:
    """Runs a coroutine up to its n-th suspension, where its task is cancelled, or dies."""

    def __init__(self, work: Coroutine[Any, Any, object], at: int, *, dies: bool) -> None:
        self._work, self._at, self._dies = work, at, dies

    def __await__(self) -> Generator[Any, Any, object]:
        steps, count = self._work.__await__(), 0
        error: BaseException | None = None
        while True:
            try:
                waits_for = steps.send(None) if error is None else steps.throw(error)
            except StopIteration as end:
                return end.value
            count += 1
            if count == self._at and self._dies:
                if waits_for is not None:
                    waits_for._asyncio_future_blocking = False  # nobody waits for it any more
                _DEAD.append(steps)
                raise _Died
            if count == self._at:
                task = asyncio.current_task()
                assert task is not None, "a coroutine is run by a task"
                task.cancel()  # comes into effect as soon as the task waits: now
            error = None
            try:
                yield waits_for
            except BaseException as thrown:  # noqa: BLE001 - handed on to where it belongs
                error = thrown


async def is_cut(work: Coroutine[Any, Any, object], *, at: int, dies: bool = False) -> bool:
    """Run it in a task of its own; False: it came to its end before it waited so often.

    It is cancelled there, or `dies`: it is never gone on with, as after kill -9; the connections
    that it has are the caller's to close.
    """

    async def run() -> bool:
        try:
            await _Cut(work, at, dies=dies)
        except _Died:
            return True
        return False

    async with asyncio.TaskGroup() as group:
        task = group.create_task(run())
        await asyncio.wait([task])
    return task.cancelled() or task.result()
