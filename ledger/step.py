"""What lanes and the conveyor hand each other: who asks, what is sent, whom to tell."""

import asyncio
from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

from ledger.admission import End, Held, Hold, LedgerUnavailable, Refused


class Asked:
    """A hold or extension, and the future of whoever waits for it."""

    __slots__ = ("born_s", "deadline_s", "future", "hold", "is_in_doubt")

    def __init__(
        self, hold: Hold, future: asyncio.Future[Held | Refused], born_s: float, deadline_s: float
    ) -> None:
        self.hold, self.future = hold, future
        self.born_s, self.deadline_s = born_s, deadline_s
        self.is_in_doubt = False  # sent, and the connection broke before the answer

    def fail(self, reason: str) -> None:
        """Tell the caller that nothing was admitted, unless it has left."""
        if not self.future.done():
            self.future.set_exception(LedgerUnavailable(reason))


class Phase(Enum):
    """What a lane knows of its partition."""

    UNKNOWN = "unknown"  # nothing may be sent; ask
    RECOVERING = "recovering"  # what is under way may be told again, nothing is admitted
    ACTIVE = "active"


class Step(NamedTuple):
    """One function call on the wire."""

    function: str
    items: list[Any]  # Asked, End, Hold or Renewal, by function
    generation: int
    command: bytes


class Tell(NamedTuple):
    """Whom a lane tells what happened. None of these may call back or raise."""

    epoch: Callable[[int], None]  # the partition needs a recovery
    generation: Callable[[int, int], None]  # the partition is in this generation now
    settled: Callable[[End, int, str], None]  # the generation's stream has the end at this id
    trouble: Callable[[str, str], None]  # what went wrong, and why
