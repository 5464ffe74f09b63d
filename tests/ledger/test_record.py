"""A record reads as it was written, also by an older and a newer release."""

import msgspec
import pytest

from ledger.record import EndKind, Outcome, Record, decode, encode


def a_record() -> Record:
    return Record(
        call_id=bytes(range(16)),
        organization_id="organization",
        project_id="project",
        key_id="key",
        member_id="",
        admitted_us=1_700_000_000_000_000,
        operation="chat/completions",
        provider="openai",
        model_requested="gpt-4.1",
        model_target="gpt-4.1-2025-04-14",
        price_version="0123456789abcdef",
        held=5_000,
        kind=EndKind.SETTLED,
        outcome=Outcome.SUCCESS,
        charge=4_321,
        usage={"input": 3, "output": 4},
        flags=["assumed_price:cache_read"],
    )


def test_a_record_reads_as_it_was_written() -> None:
    assert decode(encode(a_record())) == a_record()


def test_a_ticket_without_an_end_is_a_lost_call_of_unknown_outcome() -> None:
    ticket = decode(encode(Record(b"x" * 16, "o", "p", "k", "", 1, "chat", "v", "m", "m", "", 9)))
    assert (ticket.kind, ticket.outcome, ticket.charge) == (EndKind.LOST, Outcome.UNKNOWN, 0)


def test_a_newer_release_may_have_added_fields() -> None:
    fields = msgspec.msgpack.decode(encode(a_record()))
    assert decode(msgspec.msgpack.encode([*fields, "new", 7])) == a_record()


def test_an_older_release_may_lack_fields() -> None:
    fields = msgspec.msgpack.decode(encode(a_record()))
    older = decode(msgspec.msgpack.encode(fields[:16]))
    assert (older.charge, older.usage, older.flags) == (4_321, {}, [])


@pytest.mark.parametrize("packed", [b"", b"\x90", b"\xc1", b"\x93\x01\x02\x03"])
def test_what_is_no_record_is_refused(packed: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode(packed)


def test_two_records_do_not_share_what_can_be_changed() -> None:
    first, second = a_record(), Record(b"", "", "", "", "", 0, "", "", "", "", "", 0)
    third = Record(b"", "", "", "", "", 0, "", "", "", "", "", 0)
    second.flags.append("x")
    second.usage["input"] = 1
    assert (first.usage, third.flags, third.usage) == ({"input": 3, "output": 4}, [], {})
