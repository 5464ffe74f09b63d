"""The judgement of what was scarce: what it must find, and what it must let pass."""

import random

import pytest

from tests.scenarios.deployment import Key
from tests.scenarios.storm.load import Made
from tests.scenarios.storm.scarce import CALL, Given, Seen, crowded, overdrawn, slow

pytestmark = pytest.mark.scenario

KEY = Key(secret="", id="", organization_id="")


def seen(began_s: float, *, cost: int = 10, astray_s: tuple[float, float] | None = None) -> Seen:
    """A call of two seconds."""
    made = Made(slow(random.Random(1), "1x1"), KEY, 1, began_s)  # noqa: S311 - any will do
    if astray_s:
        made.astray_s.append(astray_s)
    return Seen(began_s, began_s + 2, cost, made)


def test_a_call_that_nothing_is_left_for_is_found() -> None:
    assert not overdrawn([Given(0, 20)], [seen(1), seen(2)])
    assert overdrawn([Given(0, 19)], [seen(1), seen(2)])


def test_money_counts_from_when_it_was_given() -> None:
    assert not overdrawn([Given(0, 10), Given(1.5, 10)], [seen(1), seen(2)])
    assert overdrawn([Given(0, 10), Given(2.5, 10)], [seen(1), seen(2)])


def test_what_only_a_dead_worker_knows_is_not_counted_until_it_is_told() -> None:
    lost = seen(1, astray_s=(1.5, 4))

    assert not overdrawn([Given(0, 10)], [lost, seen(3)])
    assert overdrawn([Given(0, 10)], [lost, seen(5)])


def test_a_call_beyond_the_places_is_found_while_the_others_last() -> None:
    assert not crowded(2, [seen(1), seen(2), seen(3)])
    assert crowded(2, [seen(1), seen(2), seen(2.5)])
    assert not crowded(2, [seen(1, astray_s=(1, 9)), seen(2), seen(2.5)])


@pytest.mark.parametrize("nonce", ["1x1", "999999999x99999"])
def test_a_slow_call_costs_what_is_held_for_it_or_hardly_less(nonce: str) -> None:
    for seed in range(50):
        asking = slow(random.Random(seed), nonce)  # noqa: S311 - drawn again
        assert asking.body["vendor_script"]["input_tokens"] <= asking.held_tokens
        assert CALL * 8 // 10 < asking.worst <= CALL
