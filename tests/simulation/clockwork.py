"""An event loop without a clock, a network or threads: time goes on when nothing else is to do."""

import asyncio
import selectors
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Any


class Stuck(Exception):
    """Everybody waits for somebody, and nobody for the time."""


class _NoNetwork(selectors.DefaultSelector):
    """Waiting is the passing of time."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1_000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Stuck
        self.now_s += timeout
        return []


class Clockwork(asyncio.SelectorEventLoop):
    """Runs the same code in the same order, however fast the machine is."""

    def __init__(self) -> None:
        self._hands = _NoNetwork()
        super().__init__(self._hands)

    def time(self) -> float:
        """Seconds, of this loop's own time."""
        return self._hands.now_s

    def run_in_executor(  # type: ignore[override]  # nothing runs beside the loop
        self, executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> "asyncio.Future[Any]":
        """Do it at once."""
        del executor
        done = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - an executor gives whatever was raised
            done.set_exception(error)
        return done

    def call_exception_handler(self, context: Mapping[str, Any]) -> None:
        """What nobody waited for must be seen."""
        error = context.get("exception") or RuntimeError(context["message"])
        raise error
