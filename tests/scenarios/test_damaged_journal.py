"""A journal that was cut or damaged: what is whole is adopted, what is torn is skipped.

On a real disk, through the real adoption: cut at every byte of the last 4 KiB, and bits flipped
anywhere. Short form: 300 flips, and 16 MiB replayed; LONG=1: 5,000, and 1 GiB.
"""

import random
import time
from pathlib import Path

import pytest

from ledger.adoption import AdoptedJournal, adopt
from ledger.frames import DAMAGED, DISPATCHED, FINISHED, Framing, read_dispatched, read_finished
from tests.ledger.calls import call, call_id, end
from tests.ledger.journaling import Clock, adopt_one, create, write
from tests.scenarios.scale import LONG, SEED

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(1_800 if LONG else 180)]

CALLS = 30
TAIL_BYTES = 4_096
FLIPS = 5_000 if LONG else 300
REPLAYED_BYTES = (1 << 30) if LONG else 16 << 20
RATE_MIN = 20_000  # calls a second
RECORD = bytes(300)  # about what a record takes


class Damaged:
    """A journal that a process left behind, whose bytes are changed as one likes."""

    def __init__(self, directory: Path) -> None:
        journal = create(directory, Clock())
        write(journal, *range(CALLS))
        for number in range(CALLS, CALLS + 5):
            journal.dispatched(call(number))
        journal.close()
        self._directory = directory
        (self._path,) = directory.glob("w0-*/*.journal")
        self.whole = self._path.read_bytes()
        framing = Framing(self._path.parent.name)
        self._frames = [f for f in framing.frames(self.whole) if f.kind != DAMAGED]

    def expected(self, start: int, stop: int) -> tuple[set[bytes], set[bytes]]:
        """The ended and the open calls, if all bytes from `start` to `stop` are lost."""
        kept = [f for f in self._frames if f.end <= start or f.start >= stop]
        ended = {read_finished(f.body).call_id for f in kept if f.kind == FINISHED}
        begun = {read_dispatched(f.body).call_id for f in kept if f.kind == DISPATCHED}
        return ended, begun - ended

    def adopted(self, data: bytes) -> tuple[set[bytes], set[bytes]]:
        """What whoever adopts these bytes finds; each call once."""
        self._path.write_bytes(data)
        journal = adopt_one(self._directory)
        try:
            ended = [one.call_id for one in journal.ends()]
            begun = [one.call_id for one in journal.open_calls()]
        finally:
            journal.release()
        assert len(set(ended)) == len(ended)
        assert len(set(begun)) == len(begun)
        return set(ended), set(begun)


def test_a_journal_cut_at_any_byte_or_with_any_bit_flipped_loses_only_what_was_hit(
    tmp_path: Path,
) -> None:
    damaged = Damaged(tmp_path)
    data = damaged.whole
    assert len(data) > TAIL_BYTES
    for at in range(len(data) - TAIL_BYTES, len(data) + 1):
        assert damaged.adopted(data[:at]) == damaged.expected(at, len(data) + 1)
    chance = random.Random(SEED)  # noqa: S311 - a test that can be repeated
    for _ in range(FLIPS):
        at = chance.randrange(len(data))
        flipped = bytearray(data)
        flipped[at] ^= 1 << chance.randrange(8)
        assert damaged.adopted(bytes(flipped)) == damaged.expected(at, at + 1), f"bit at {at}"
    print(
        f"\nT21 damage, seed {SEED}: cut at each of {TAIL_BYTES:,} bytes, {FLIPS:,} bits flipped:"
        " every whole frame adopted, every torn one skipped, no call twice"
    )


def test_a_journal_is_replayed_faster_than_calls_are_made(tmp_path: Path) -> None:
    journal = create(tmp_path, Clock(), segment_bytes=64 << 20, bytes_max=2 << 30)
    calls = 0
    while journal.disk_bytes < REPLAYED_BYTES:
        journal.dispatched(call(calls))
        journal.finished(end(calls, record=RECORD))
        calls += 1
    journal.close()
    began_s = time.monotonic()
    (adopted,) = adopt(tmp_path)
    assert isinstance(adopted, AdoptedJournal)
    found = [one.call_id for one in adopted.ends()]
    took_s = time.monotonic() - began_s
    assert found == [call_id(number) for number in range(calls)]
    adopted.release()
    assert calls / took_s >= RATE_MIN
    print(
        f"\nT21 replay: {REPLAYED_BYTES >> 20:,} MiB, {calls:,} calls in {took_s:.1f} s:"
        f" {calls / took_s:,.0f} a second"
    )
