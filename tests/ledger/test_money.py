"""Amounts are exact or refused."""

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.money import NANOS_MAX, nanos, usd_text


@pytest.mark.parametrize(
    ("usd", "expected"),
    [
        ("1", 1_000_000_000),
        (1, 1_000_000_000),
        ("0.000000001", 1),
        ("-2.5", -2_500_000_000),
        (Decimal("0.1"), 100_000_000),
        ("9007199.254740991", NANOS_MAX),
        ("1e-9", 1),
    ],
)
def test_an_amount_in_dollars_is_so_many_nanos(usd: str | int | Decimal, expected: int) -> None:
    assert nanos(usd) == expected


@pytest.mark.parametrize(
    ("usd", "reason"),
    [
        ("0.0000000001", "finer than"),
        ("1e-10", "finer than"),
        ("9007199.254740992", "above the largest"),
        ("-9007200", "above the largest"),
        ("1e30", "above the largest"),
        ("", "not an amount"),
        ("ten", "not an amount"),
        ("NaN", "not an amount"),
        ("Infinity", "not an amount"),
    ],
)
def test_what_is_no_exact_amount_is_refused(usd: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        nanos(usd)


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "$0.00"),
        (1, "$0.000000001"),
        (1_500_000_000, "$1.50"),
        (-54_399_000, "-$0.054399"),
        (1_234_567_000_000_000, "$1,234,567.00"),
        (10**18, "$1,000,000,000.00"),
    ],
)
def test_an_amount_is_shown_with_every_digit_that_counts(amount: int, text: str) -> None:
    assert usd_text(amount) == text


@settings(deadline=None)
@given(st.integers(-NANOS_MAX, NANOS_MAX))
def test_what_is_shown_is_what_is_there(amount: int) -> None:
    assert nanos(usd_text(amount).replace("$", "").replace(",", "")) == amount
