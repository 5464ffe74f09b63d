"""Rules of reading a stream entry."""

from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.book import Organization
from ledger.money import NANOS_MAX, Nanos
from ledger.record import EndKind, encode
from ledger.stream import Based, Ended, Poison, Window, admitted_ms, distrusted, parse
from tests.ledger.deployment import Line, entry_fields, new_call_id, record_of

ACME = Organization(str(UUID(int=1)), "Acme", "organization", 0, str(UUID(int=2)), Nanos(0))
WINDOW = Window("key-1", 86_400_000, 500)


def line(**changes: bytes) -> dict[bytes, bytes]:
    made = Line(new_call_id(), ACME, EndKind.SETTLED, 100, windows=(WINDOW,))
    return {**made.fields(), **{key.encode(): value for key, value in changes.items()}}


def test_an_end_is_read_with_its_windows_and_its_record() -> None:
    fields = line()
    ended = parse("5-0", fields)
    assert isinstance(ended, Ended)
    assert (ended.stream_id, ended.kind, ended.charge, ended.moved) == ("5-0", "settled", 100, True)
    assert ended.windows == (WINDOW,)
    assert WINDOW.id == "key-1@86400000"
    assert ended.record.call_id == ended.call_id == fields[b"i"]
    assert ended.error == ""


def test_kind_and_charge_are_the_entrys_whatever_the_record_says() -> None:
    call_id = new_call_id()
    ticket = encode(record_of(ACME, call_id, charge=0))
    ended = parse("1-0", entry_fields(Line(call_id, ACME, EndKind.LOST, 70), ticket))
    assert isinstance(ended, Ended)
    assert (ended.kind, ended.charge) == ("lost", 70)


@pytest.mark.parametrize("record", [b"", b"\xff\xff", b"\x90", msgspec.msgpack.encode("text")])
def test_a_broken_record_keeps_its_call_its_wallet_and_its_money(record: bytes) -> None:
    fields = line(r=record)
    ended = parse("1-0", fields)
    assert isinstance(ended, Ended)
    assert ended.error
    assert (ended.call_id, ended.wallet, ended.charge) == (fields[b"i"], ACME.id, 100)
    assert ended.record.organization_id == ACME.id
    assert ended.record.flags == ["unreadable"]


def test_a_record_of_another_call_is_not_believed() -> None:
    ended = parse("1-0", line(r=encode(record_of(ACME, new_call_id(), charge=5))))
    assert isinstance(ended, Ended)
    assert "another call" in ended.error


def test_without_a_call_id_only_the_money_is_kept() -> None:
    poison = parse("1-0", line(i=b"short"))
    assert isinstance(poison, Poison)
    assert (poison.wallet, poison.spent, poison.windows) == (ACME.id, 100, (WINDOW,))


def test_what_redis_did_not_take_is_not_posted_without_a_call_id() -> None:
    poison = parse("1-0", line(i=b"short", m=b"0"))
    assert isinstance(poison, Poison)
    assert poison.spent == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"w": b"not a uuid"},
        {"c": b"1.5"},
        {"c": b"-1"},
        {"c": str(NANOS_MAX + 1).encode()},
        {"k": b"unheard of"},
        {"w": b"\xff"},
    ],
)
def test_an_entry_whose_money_cannot_be_told_is_poison_without_money(
    changes: dict[str, bytes],
) -> None:
    poison = parse("1-0", line(**changes))
    assert isinstance(poison, Poison)
    assert (poison.wallet, poison.spent) == (None, 0)


def test_unreadable_windows_do_not_stop_the_call() -> None:
    ended = parse("1-0", line(x=b"\xff\xff"))
    assert isinstance(ended, Ended)
    assert ended.windows == ()
    assert ended.error.startswith("windows")


def test_a_base_entry_is_told_apart() -> None:
    based = parse("1-0", {b"k": b"base", b"w": b"w", b"b": b"-5", b"v": b"9", b"a": b"why"})
    assert based == Based("1-0", "w", -5, 9, "why")


def test_a_nul_in_a_vendors_word_becomes_a_replacement_character() -> None:
    call_id = new_call_id()
    record = record_of(ACME, call_id, charge=100)
    record.model_served = "mod\0el"
    ended = parse("1-0", entry_fields(Line(call_id, ACME, EndKind.SETTLED, 100), encode(record)))
    assert isinstance(ended, Ended)
    assert ended.record.model_served == "mod\ufffdel"


def test_an_entry_that_postgres_refuses_is_taken_for_less_and_less() -> None:
    fields = line()
    ended = parse("1-0", fields)
    without_record = distrusted(ended, fields, "refused")
    assert isinstance(without_record, Ended)
    assert (without_record.charge, without_record.record.model_target) == (100, "")
    money = distrusted(without_record, fields, "refused")
    assert isinstance(money, Poison)
    assert (money.wallet, money.spent) == (ACME.id, 100)
    nothing = distrusted(money, fields, "refused")
    assert isinstance(nothing, Poison)
    assert (nothing.wallet, nothing.spent) == (None, 0)


def test_a_call_id_tells_when_it_was_made() -> None:
    assert admitted_ms(bytes.fromhex("0123456789ab") + bytes(10)) == 0x0123456789AB


@given(
    st.dictionaries(
        st.sampled_from([b"k", b"m", b"i", b"w", b"c", b"x", b"r", b"b", b"v"]),
        st.binary(max_size=40),
    ),
    st.sampled_from([b"settled", b"base", b"lost"]),
)
def test_no_entry_makes_the_reader_raise(fields: dict[bytes, bytes], kind: bytes) -> None:
    parse("1-0", fields)
    parse("1-0", {**line(), **fields, b"k": kind})
