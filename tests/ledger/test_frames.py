"""The journal's format: what is whole is read, whatever happened to its neighbours."""

from typing import get_type_hints

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import frames as format_
from ledger.admission import Cap, End
from ledger.frames import (
    DAMAGED,
    DISPATCHED,
    FINISHED,
    PROVEN,
    Frame,
    Framing,
    Mark,
    OpenCall,
    read_dispatched,
    read_finished,
    read_proven,
)
from ledger.money import Nanos
from ledger.record import EndKind
from tests.ledger.calls import call, call_id, end

FRAMING = Framing("w0-0123456789abcdef")


def whole(data: bytes) -> list[Frame]:
    return [frame for frame in FRAMING.frames(data) if frame.kind != DAMAGED]


def damaged(data: bytes) -> list[Frame]:
    return [frame for frame in FRAMING.frames(data) if frame.kind == DAMAGED]


def a_journal(count: int) -> list[bytes]:
    """The frames of `count` calls and their ends."""
    return [
        framed
        for number in range(count)
        for framed in (FRAMING.dispatched(call(number)), FRAMING.finished(end(number)))
    ]


def test_what_is_written_is_read_back() -> None:
    data = FRAMING.dispatched(call(1)) + FRAMING.finished(end(1)) + FRAMING.proven(Mark(3, 77))
    dispatched, finished, proven = FRAMING.frames(data)
    assert (dispatched.kind, read_dispatched(dispatched.body)) == (DISPATCHED, call(1))
    assert (finished.kind, read_finished(finished.body)) == (FINISHED, end(1))
    assert (proven.kind, read_proven(proven.body)) == (PROVEN, Mark(3, 77))
    assert (dispatched.start, dispatched.end, proven.end) == (0, finished.start, len(data))


def test_what_is_read_has_the_fields_of_what_is_written_in_the_same_order() -> None:
    for written, read in (
        (End, format_._Finished),
        (OpenCall, format_._Dispatched),
        (Cap, format_._Cap),
        (Mark, format_._Proven),
    ):
        assert tuple(get_type_hints(written)) == read.__struct_fields__


def test_a_file_cut_anywhere_in_its_last_4_kib_keeps_every_whole_frame() -> None:
    parts = a_journal(60)
    data = b"".join(parts)
    assert len(data) > 8192
    ends = [sum(len(part) for part in parts[: index + 1]) for index in range(len(parts))]
    for cut in range(len(data) - 4096, len(data) + 1):
        found = whole(data[:cut])
        assert [frame.end for frame in found] == [at for at in ends if at <= cut]
        assert len(damaged(data[:cut])) == (cut not in ends)


def test_a_flipped_bit_costs_the_frame_it_is_in_and_no_other() -> None:
    before, hit, after = FRAMING.finished(end(1)), FRAMING.finished(end(2)), b"".join(a_journal(2))
    kept = [frame.body for frame in whole(before + after)]
    for bit in range(len(hit) * 8):
        flipped = bytearray(hit)
        flipped[bit // 8] ^= 1 << (bit % 8)
        data = before + bytes(flipped) + after
        assert [frame.body for frame in whole(data)] == kept
        assert [(gap.start, gap.end) for gap in damaged(data)] == [
            (len(before), len(before) + len(hit))
        ]


@settings(deadline=None)
@given(
    st.lists(st.one_of(st.binary(max_size=80), st.just(b"\xc1TGF" + bytes(8)), st.just(bytes(99))))
)
def test_foreign_bytes_between_frames_are_skipped(foreign: list[bytes]) -> None:
    frames = [FRAMING.finished(end(number)) for number in range(len(foreign))]
    data = b"".join(part for pair in zip(foreign, frames, strict=True) for part in pair)
    assert [read_finished(frame.body) for frame in whole(data)] == [
        end(number) for number in range(len(foreign))
    ]


def test_a_frame_of_another_journal_is_none_of_ours() -> None:
    assert whole(Framing("w0-fedcba9876543210").finished(end(1))) == []


def test_a_frame_inside_a_record_is_not_taken_for_one_when_its_frame_is_damaged() -> None:
    forged = Framing("").finished(end(666))
    framed = bytearray(FRAMING.finished(end(1, record=forged)))
    framed[9] ^= 1
    assert whole(bytes(framed)) == []


def test_a_length_beyond_any_frame_is_damage_and_not_memory() -> None:
    framed = bytearray(FRAMING.finished(end(1)))
    framed[4:8] = (1 << 31).to_bytes(4, "little")
    data = bytes(framed) + FRAMING.finished(end(2))
    assert [read_finished(frame.body).call_id for frame in whole(data)] == [call_id(2)]


def test_a_body_that_a_newer_release_made_longer_is_read() -> None:
    newer = [*end(1), "a field of the next release"]
    assert read_finished(msgspec.msgpack.encode(newer)) == end(1)
    assert read_dispatched(msgspec.msgpack.encode([*call(1), 5])) == call(1)


def test_a_body_that_is_none_says_so() -> None:
    for read in (read_finished, read_dispatched, read_proven):
        with pytest.raises(msgspec.DecodeError):
            read(b"\x91\x01")


def test_an_open_call_that_is_lost_ends_with_its_ticket() -> None:
    lost = call(1).lost(Nanos(55))
    assert (lost.call_id, lost.partition, lost.wallet) == (call_id(1), 7, "wallet-1")
    assert (lost.kind, lost.charge, lost.record) == (EndKind.LOST, 55, b"ticket")
    assert lost.caps == call(1).caps
