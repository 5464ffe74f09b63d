"""A lane without a connection, and what is said to it and asked of it by hand."""

import asyncio
from typing import Any

from ledger.admission import End, Held, Hold, Refused
from ledger.lane import Lane
from ledger.step import Asked, Settled, Step, Tell
from tests.ledger.partitions import hold

NOW_S = 100.0


class Told:
    """Whom a lane tells."""

    def __init__(self) -> None:
        self.epochs: list[int] = []
        self.generations: list[tuple[int, int]] = []
        self.settled: list[tuple[bytes, int, str]] = []
        self.troubles: list[str] = []
        self.moved: list[int] = []
        self.tell = Tell(
            self.epochs.append,
            lambda *told: self.generations.append(told),
            self._settle,
            lambda what, _: self.troubles.append(what),
            self.moved.append,
        )

    def _settle(self, settled: Settled) -> None:
        generation, at = settled.generation, settled.stream_id
        self.settled += [(end.call_id, generation, at) for end in settled.ends]


def state(generation: int, phase: bytes = b"A", *, matches: int = 1) -> list[Any]:
    return [str(generation).encode(), b"9", phase, b"1", b"us", matches, 5]


def ask(lane: Lane, one: Hold | None = None, *, deadline_s: float = NOW_S + 0.3) -> Asked:
    future: asyncio.Future[Held | Refused] = asyncio.get_running_loop().create_future()
    asked = Asked(one or hold(5), future, NOW_S, deadline_s)
    lane.ask(asked)
    return asked


def missing(lane: Lane, generation: int, *ends: End) -> None:
    """Tell ends that this generation's stream does not have, as journals do."""
    owing = lane.owing(generation)
    if owing is not None:
        for end in ends:
            owing.add(end)
        lane.owed(owing)
    for end in ends:
        lane.late(generation, end)
    lane.all_late(generation)


def only(lane: Lane, function: str, *, now_s: float = NOW_S) -> Step:
    """The one step that the lane takes now."""
    (step,) = lane.steps(now_s)
    assert step.function == function
    return step


def sent(lane: Lane, *, now_s: float = NOW_S) -> list[str]:
    return [step.function for step in lane.steps(now_s)]
