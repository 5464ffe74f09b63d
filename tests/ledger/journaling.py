"""Journals for the tests, and what is done to them again and again."""

from collections.abc import Callable
from itertools import count
from pathlib import Path

from ledger.adoption import AdoptedJournal, adopt
from ledger.appender import System
from ledger.journal import Journal, JournalFull
from tests.ledger.calls import call, call_id, end


class Clock:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def create(
    directory: Path, clock: Clock, *, segment_bytes: int = 1 << 20, bytes_max: int = 1 << 30
) -> Journal:
    return Journal.create(
        directory,
        worker="w0",
        segment_bytes=segment_bytes,
        bytes_max=bytes_max,
        system=System(clock=clock),
    )


def write(journal: Journal, *numbers: int, partition: int = 7, bulk: int = 0) -> None:
    """Calls and their ends; `bulk` bytes more in each end."""
    for number in numbers:
        journal.dispatched(call(number, partition=partition))
        journal.finished(end(number, partition=partition, record=b"record" + bytes(bulk)))


def place(journal: Journal, *numbers: int, generation: int = 1, partition: int = 7) -> None:
    for number in numbers:
        journal.appended(
            [call_id(number)], partition, generation=generation, stream_id=f"{number}-0"
        )


def to_send(journal: Journal, generation: int) -> list[bytes]:
    ends = journal.unproven({7: generation})
    return [each.call_id for some in ends for each in some]


def ids(*numbers: int) -> list[bytes]:
    return [call_id(number) for number in numbers]


def until_full(write_one: Callable[[int], None]) -> int:
    """How many were written before the journal was full."""
    for number in count():
        try:
            write_one(number)
        except JournalFull:
            return number
    raise AssertionError


def segments(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("w0-*/*.journal"))


def adopt_one(directory: Path) -> AdoptedJournal:
    (adopted,) = adopt(directory)
    return adopted
