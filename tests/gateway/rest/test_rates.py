"""Everybody has a bucket of their own, and is told when there is more in it."""

import pytest

from gateway.errors import TooMany
from gateway.rest.rates import Rate, Rates


class Hand:
    now_s = 0.0


def test_so_many_at_once_and_then_so_many_a_second() -> None:
    hand, rate = Hand(), Rate(burst=3, per_s=2)
    rates = Rates(lambda: hand.now_s)
    for _ in range(3):
        rates.take("writes", "ada", rate)
    with pytest.raises(TooMany) as caught:
        rates.take("writes", "ada", rate)
    assert int(caught.value.headers["retry-after-ms"]) in range(500, 510)
    hand.now_s = 0.51
    rates.take("writes", "ada", rate)
    with pytest.raises(TooMany):
        rates.take("writes", "ada", rate)


def test_nobody_pays_for_somebody_else_or_for_something_else() -> None:
    rates, rate = Rates(lambda: 0.0), Rate(burst=1, per_s=1)
    rates.take("writes", "ada", rate)
    rates.take("writes", "bob", rate)
    rates.take("guesses", "ada", rate)


def test_who_is_refused_does_not_wait_longer_for_having_asked() -> None:
    hand, rate = Hand(), Rate(burst=1, per_s=1)
    rates = Rates(lambda: hand.now_s)
    rates.take("writes", "ada", rate)
    for step in range(9):
        hand.now_s = step / 10
        with pytest.raises(TooMany):
            rates.take("writes", "ada", rate)
    hand.now_s = 1.01
    rates.take("writes", "ada", rate)
