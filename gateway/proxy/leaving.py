"""How a worker stops: what was let in goes on to its end, for a time; what is left then is cut."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from gateway.proxy.server import DataServer

log = logging.getLogger(__name__)

_CUT_S = 1.0  # for calls that are cut to be ended: nothing in them waits then


class UnderWay:
    """The calls that are served now, each by a task, from its head on: read, admitted or not."""

    __slots__ = ("_idle", "_tasks", "began")

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._idle = asyncio.Event()
        # A task serves a call from now on, until `ended`. No method of ours: it is called a lot.
        self.began: Callable[[asyncio.Task[Any]], None] = self._tasks.add

    def __len__(self) -> int:
        return len(self._tasks)

    def ended(self, task: asyncio.Task[Any]) -> None:
        """Its call is over."""
        self._tasks.discard(task)
        if not self._tasks:
            self._idle.set()

    async def all_ended(self) -> None:
        """Return once no call is under way."""
        while self._tasks:
            self._idle.clear()
            await self._idle.wait()

    def cut(self) -> None:
        """End every call, whether its client is there or not, with what it has consumed."""
        for task in self._tasks:
            task.cancel()


async def let_end(server: DataServer, calls: UnderWay, *, within_s: float) -> None:
    """Return once every call has ended; those that have not in so many seconds are cut."""
    try:
        async with asyncio.timeout(within_s):
            await calls.all_ended()
            # Only now: on its connection, a client whose stream has just ended calls again.
            while busy := server.close_idle():
                await asyncio.wait(busy)
            await calls.all_ended()  # also those whose client has left
    except TimeoutError:
        log.warning("calls are cut", extra={"calls": len(calls)})
        calls.cut()
        try:
            async with asyncio.timeout(_CUT_S):
                await calls.all_ended()
        except TimeoutError:
            log.error("calls do not end", extra={"calls": len(calls)})  # noqa: TRY400 - the count says it all
