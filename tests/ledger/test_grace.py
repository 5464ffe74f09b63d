"""Allowances: what a process lets in on its own word, counted against a model in plain sums."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from ledger.admission import Hold
from ledger.grace import UNBOOKED_MAX, Allowances
from ledger.money import NANOS_MAX
from tests.ledger.partitions import hold

AMOUNTS = st.integers(0, 100) | st.just(NANOS_MAX)


class AllowanceMachine(RuleBasedStateMachine):
    """Any order of calls let in, ended and booked, of two wallets with different allowances.

    The model says by itself what is outstanding; charges up to the worst case never pass the
    allowance, and a larger one stops the wallet until it is booked.
    """

    open_calls = Bundle("open")
    ended_calls = Bundle("ended")

    @initialize(first=st.integers(0, 300), second=st.integers(0, 300))
    def begin(self, first: int, second: int) -> None:
        self.allowances = Allowances()
        self.allowed = {"first": first, "second": second}
        self.outstanding: dict[str, dict[bytes, int]] = {"first": {}, "second": {}}
        self.over = {"first": 0, "second": 0}  # what charges went above worst cases

    @rule(target=open_calls, wallet=st.sampled_from(["first", "second"]), amount=AMOUNTS)
    def take(self, wallet: str, amount: int) -> object:
        asked = hold(amount, wallet=wallet)
        ours = self.outstanding[wallet]
        fits = sum(ours.values()) + amount <= self.allowed[wallet]
        assert self.allowances.take(asked, self.allowed[wallet]) == fits
        if not fits:
            return multiple()
        ours[asked.call_id] = amount
        return asked

    @rule(target=ended_calls, call=consumes(open_calls), share=st.floats(0, 1))
    def end_within_its_worst_case(self, call: Hold, share: float) -> Hold:
        return self._end(call, int(call.amount * share))

    @rule(target=ended_calls, call=consumes(open_calls), more=st.integers(1, 50))
    def end_above_its_worst_case(self, call: Hold, more: int) -> Hold:
        self.over[call.wallet] += more
        return self._end(call, call.amount + more)

    def _end(self, call: Hold, charge: int) -> Hold:
        self.allowances.ended(call.call_id, charge)
        self.outstanding[call.wallet][call.call_id] = charge
        return call

    @rule(call=ended_calls)
    def book(self, call: Hold) -> None:
        self.allowances.booked([call.call_id])  # twice, perhaps: the bundle keeps it
        self.outstanding[call.wallet].pop(call.call_id, None)

    @invariant()
    def what_counts_is_what_is_outstanding(self) -> None:
        in_all = 0
        for wallet, ours in self.outstanding.items():
            assert self.allowances.used(wallet) == sum(ours.values())
            assert set(self.allowances.charged(wallet)) <= set(ours)
            in_all += sum(ours.values())
        assert self.allowances.used_in_all == in_all
        assert set(self.allowances.wallets) == {w for w, ours in self.outstanding.items() if ours}

    @invariant()
    def no_allowance_is_exceeded_but_by_a_charge_above_the_worst_case(self) -> None:
        for wallet, allowed in self.allowed.items():
            assert self.allowances.used(wallet) <= allowed + self.over[wallet]


TestAllowances = AllowanceMachine.TestCase


@given(amounts=st.lists(st.integers(0, 1_000), max_size=60), allowance=st.integers(0, 5_000))
def test_racing_calls_get_the_allowance_and_not_a_nano_more(
    amounts: list[int], allowance: int
) -> None:
    allowances, taken = Allowances(), 0
    for amount in amounts:
        asked = hold(amount)
        is_let_in = allowances.take(asked, allowance)
        assert is_let_in == (taken + amount <= allowance)
        taken += amount if is_let_in else 0
    assert taken <= allowance


def test_calls_that_cost_nothing_do_not_pile_up_without_end() -> None:
    allowances = Allowances()
    assert all(allowances.take(hold(0), 5) for _ in range(UNBOOKED_MAX))
    assert not allowances.take(hold(0), 5)


def test_a_call_that_is_open_is_not_booked_whatever_postgres_has_of_it() -> None:
    allowances, asked = Allowances(), hold(5)
    assert allowances.take(asked, 5)
    assert allowances.charged(asked.wallet) == {}
    with pytest.raises(AssertionError):
        allowances.booked([asked.call_id])
