"""What lanes and the conveyor hand each other: who asks, what is sent, whom to tell."""

import asyncio
from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

import msgspec

from ledger.admission import End, Held, Hold, LedgerUnavailable, Refused
from ledger.fcall import hold_answer

_MONEY_PAUSE_S = 0.05  # an end of another call is on its way at any moment
_SLOT_PAUSE_S = 0.004  # one that is full is told in under 10 ms; a client decides what to do then


class Asked(msgspec.Struct, eq=False):
    """A hold or extension, and the future of whoever waits for it."""

    hold: Hold
    future: asyncio.Future[Held | Refused]
    born_s: float
    deadline_s: float
    is_in_doubt: bool = False  # sent, and the connection broke before the answer

    def answer(self, answer: list[Any], generation: int) -> None:
        """Give the caller what Redis says."""
        try:
            self.future.set_result(hold_answer(answer, generation))
        except ValueError as error:
            self.future.set_exception(error)

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


class Settled(NamedTuple):
    """Ends that one step brought into a partition's stream, in places up to `stream_id`."""

    ends: list[End]
    partition: int
    generation: int
    stream_id: str


class Tell(NamedTuple):
    """Whom a lane tells what happened. None of these may call back or raise."""

    epoch: Callable[[int], None]  # the partition needs a recovery
    generation: Callable[[int, int], None]  # the partition is in this generation now
    settled: Callable[[Settled], None]  # the generation's stream has these ends
    trouble: Callable[[str, str], None]  # what went wrong, and why
    moved: Callable[[int], None]  # another node has the partition, or none has it now


def pause_before(refused: Refused, hold: Hold) -> float:
    """Seconds until it is worth asking again; 0: it is not, only time or a payment helps."""
    if refused.code == "slots":
        return _SLOT_PAUSE_S
    is_held = refused.held > 0 and refused.free + refused.held >= hold.amount
    return _MONEY_PAUSE_S if is_held and refused.code in {"wallet", "cap"} else 0.0
