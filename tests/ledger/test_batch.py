"""The rules of money, judged without a database: in any order, repeated, cut into any batches."""

from collections import Counter
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.batch import Correction, Judgement, Known, firsts_of, judge, known_of, replaced
from ledger.book import Organization
from ledger.money import Nanos
from ledger.record import EndKind, decode
from ledger.row import row_of
from ledger.stream import Ended, Parsed, Poison, parse
from tests.ledger.deployment import Line, new_call_id
from tests.ledger.histories import WINDOWS, Expected, Plan, lines, plans

ACME = Organization(str(UUID(int=1)), "Acme", "organization", 0, str(UUID(int=2)), Nanos(0))


class Books:
    """What Postgres would have, kept in a few dictionaries."""

    def __init__(self) -> None:
        self.known: dict[bytes, Known] = {}
        self.base: Counter[str] = Counter()
        self.spent: Counter[str] = Counter()
        self.posted: Counter[str] = Counter()
        self.calls = self.charge = self.letters = self.corrections = 0

    def take(self, entries: list[Parsed]) -> Judgement:
        firsts = firsts_of(entries)
        known = {call: self.known[call] for call in firsts if call in self.known}
        arrived_us = max((f.ended.record.admitted_us for f in firsts.values()), default=0)
        judgement = judge(entries, firsts, known=known, arrived_us=arrived_us)
        for scopes in (judgement.wallets, judgement.windows):
            for scope, moves in scopes.items():
                self.base[scope] += moves.base
                self.spent[scope] += moves.spent
        lines_of_batch = judgement.lines()
        assert sum(lines_of_batch.values()) == 0
        self.posted.update(lines_of_batch)
        for sums in judgement.rollups.values():
            self.calls += sums[0]
            self.charge += sums[8]
        for call, first in firsts.items():
            self.known.setdefault(call, known_of(first.ended, first.row))
        for correction in judgement.corrections:
            self._correct(correction, entries)
        self.letters += len(judgement.dead_letters)
        self.corrections += len(judgement.corrections)
        return judgement

    def _correct(self, correction: Correction, entries: list[Parsed]) -> None:
        call = bytes.fromhex(correction.call_id)
        before, after = self.known[call], (correction.kind, correction.charge)
        if after != (before.kind, before.charge):
            ended = next(
                e
                for e in entries
                if isinstance(e, Ended) and e.call_id == call and (e.kind, e.charge) == after
            )
            before = replaced(before, ended, row_of(ended))
        self.known[call] = before._replace(corrections=correction.number)


def parsed(ends: list[Line]) -> list[Parsed]:
    return [parse(f"{number}-0", end.fields()) for number, end in enumerate(ends, 1)]


@given(plans(), st.data())
def test_whatever_happens_the_numbers_are_what_the_ends_say(
    plan: Plan, data: st.DataObject
) -> None:
    ends = lines(plan, ACME)
    expected, entries, books = Expected(ends), parsed(ends), Books()
    while entries:
        cut = data.draw(st.integers(1, len(entries)))
        books.take(entries[:cut])
        entries = entries[cut:]
    assert books.spent[ACME.id] == expected.spent
    assert books.base[ACME.id] - books.spent[ACME.id] == -expected.charged
    assert books.posted[ACME.id] == -expected.charged
    for window in WINDOWS:
        assert books.spent[window.id] == expected.spent_by_window[window.id]
        charged = books.spent[window.id] - books.base[window.id]
        assert charged == expected.by_window[window.id], window.id
    assert books.calls == len(expected.calls)
    assert books.charge == expected.charged
    assert {call: (k.kind, k.charge) for call, k in books.known.items()} == {
        call: (end.kind, end.charge) for call, end in expected.calls.items()
    }


def one(kind: EndKind, charge: int, *, moved: bool = True, call: bytes = b"") -> Line:
    return Line(call or new_call_id(), ACME, kind, charge, moved)


def test_a_call_settled_after_it_expired_costs_what_it_settled_for() -> None:
    books, call = Books(), new_call_id()
    books.take(parsed([one(EndKind.EXPIRED, 0, call=call)]))
    judgement = books.take(parsed([one(EndKind.SETTLED, 70, call=call)]))
    (correction,) = judgement.corrections
    assert (correction.old_charge, correction.charge) == (0, 70)
    assert (correction.spent_delta, correction.base_delta) == (70, 0)


def test_what_redis_took_a_second_time_is_paid_back_through_the_base() -> None:
    books, call = Books(), new_call_id()
    ends = parsed([one(EndKind.SETTLED, 70, call=call), one(EndKind.SETTLED, 70, call=call)])
    judgement = books.take(ends)
    (correction,) = judgement.corrections
    assert (correction.spent_delta, correction.base_delta, correction.charge) == (70, 70, 70)
    assert judgement.moves_base


def test_a_late_end_that_is_new_is_debited_through_the_base() -> None:
    judgement = Books().take(parsed([one(EndKind.SETTLED, 70, moved=False)]))
    assert judgement.late == 1
    moves = judgement.wallets[ACME.id]
    assert (moves.base, moves.spent) == (-70, 0)


def test_a_late_end_that_says_nothing_new_changes_nothing() -> None:
    books, call = Books(), new_call_id()
    books.take(parsed([one(EndKind.SETTLED, 70, call=call)]))
    judgement = books.take(parsed([one(EndKind.SETTLED, 70, moved=False, call=call)]))
    assert not judgement.wallets
    assert not judgement.corrections
    assert not judgement.moves_base


def test_a_late_end_after_a_lost_one_corrects_the_estimate() -> None:
    books, call = Books(), new_call_id()
    books.take(parsed([one(EndKind.LOST, 100, call=call)]))
    judgement = books.take(parsed([one(EndKind.SETTLED, 70, moved=False, call=call)]))
    (correction,) = judgement.corrections
    assert (correction.spent_delta, correction.base_delta, correction.charge) == (0, 30, 70)
    assert decode(correction.record).call_id == call


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("is_one_batch", [False, True])
@pytest.mark.parametrize("order", [(10, 50, 50, 10), (50, 10, 10, 50)])
def test_of_two_ends_of_a_lost_call_the_higher_counts_whatever_comes_first(
    order: tuple[int, ...], *, moved: bool, is_one_batch: bool
) -> None:
    books, call = Books(), new_call_id()
    first, *later = parsed([one(EndKind.LOST, charge, moved=False, call=call) for charge in order])
    first = first if not moved else parsed([one(EndKind.LOST, order[0], call=call)])[0]
    batches = [[first, *later]] if is_one_batch else [[first], *([each] for each in later)]

    for batch in batches:
        books.take(batch)

    assert (books.known[call].kind, books.known[call].charge) == ("lost", 50)
    assert books.corrections == (order[0] == 10)
    assert books.base[ACME.id] - books.spent[ACME.id] == books.posted[ACME.id] == -50
    assert books.charge == 50


def test_an_end_for_another_wallet_is_a_dead_letter_and_its_money_is_posted() -> None:
    books, call = Books(), new_call_id()
    other = ACME._replace(id=str(UUID(int=9)))
    books.take(parsed([one(EndKind.SETTLED, 70, call=call)]))
    judgement = books.take(parsed([Line(call, other, EndKind.SETTLED, 40)]))
    (letter,) = judgement.dead_letters
    assert (letter.wallet_id, letter.spent_delta) == (other.id, 40)
    assert books.posted[other.id] == -40


def test_poison_posts_the_money_that_can_be_told() -> None:
    books = Books()
    poison = Poison("1-0", {}, "why", ACME.id, 25, (WINDOWS[0],))
    judgement = books.take([poison, Poison("2-0", {}, "why")])
    assert books.posted[ACME.id] == -25
    assert books.spent[WINDOWS[0].id] == 25
    assert [letter.wallet_id for letter in judgement.dead_letters] == [ACME.id, None]
