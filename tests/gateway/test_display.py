"""Money as people read it: exact, and never more than there is."""

from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.display import CREDITS, USD, DisplayUnit, display, text, worth
from ledger.money import NANOS_PER_USD

GP = DisplayUnit(name="GP", per_usd=1_000, decimals=0)
UNITS = st.builds(
    DisplayUnit,
    name=st.just("unit"),
    per_usd=st.integers(1, 1_000_000_000),
    decimals=st.integers(0, 9),
)
AMOUNTS = st.integers(-(2**62), 2**62)


@pytest.mark.parametrize(
    ("amount", "unit", "shown"),
    [
        (12_345_999_999, GP, "12,345"),
        (999_999, GP, "0"),
        (-1, GP, "-1"),
        (1_234_567_890_000_000_000, USD, "1,234,567,890.00"),
        (9_999_999, USD, "0.00"),
        (-500_000_000, USD, "-0.50"),
        (10_000_000_000, CREDITS, "10.00"),
        (1, DisplayUnit(name="nano", per_usd=1, decimals=9), "0.000000001"),
    ],
)
def test_an_amount_is_shown_with_the_decimals_of_its_unit(
    amount: int, unit: DisplayUnit, shown: str
) -> None:
    assert text(amount, unit) == shown


@given(AMOUNTS, UNITS)
def test_nobody_is_shown_more_than_there_is_nor_less_than_is_gone(
    amount: int, unit: DisplayUnit
) -> None:
    exact = Decimal(amount) * unit.per_usd / NANOS_PER_USD
    step = Decimal(10) ** -unit.decimals
    has = Decimal(text(amount, unit).replace(",", ""))
    gone = Decimal(text(amount, unit, is_gone=True).replace(",", ""))

    assert exact - step < has <= exact <= gone < exact + step


@given(st.integers(0, 2**53), st.integers(0, 2**53), UNITS)
def test_what_is_shown_as_spent_is_never_covered_by_less(
    granted: int, spent: int, unit: DisplayUnit
) -> None:
    def read(amount: int, *, is_gone: bool = False) -> Decimal:
        return Decimal(text(amount, unit, is_gone=is_gone).replace(",", ""))

    assert read(granted) - read(spent, is_gone=True) <= read(granted - spent)


@given(st.integers(0, 10**9), UNITS)
def test_below_a_threshold_is_what_people_read_as_less(count: int, unit: DisplayUnit) -> None:
    threshold = worth(count, unit)

    assert Decimal(text(threshold, unit).replace(",", "")) >= count
    assert Decimal(text(threshold - 1, unit).replace(",", "")) < count


def test_what_cannot_be_told_is_null() -> None:
    shown = display(GP, has={"balance": 1_500_000, "free": None}, gone={"held": 1_500_000})

    assert msgspec.to_builtins(shown) == {
        "unit": "GP",
        "amounts": {"balance": "1", "free": None, "held": "2"},
    }


@pytest.mark.parametrize(
    "flaw",
    [{"name": ""}, {"name": " GP"}, {"name": "G\nP"}, {"per_usd": 0}, {"decimals": 10}],
)
def test_a_flawed_unit_is_none(flaw: dict[str, object]) -> None:
    said = {"name": "GP", "per_usd": 1, "decimals": 0, **flaw}
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(said, DisplayUnit)
