"""The sheet as data says which price holds when, and for which model."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.price_data import (
    AllOf,
    AnyOf,
    Between,
    Clause,
    Contains,
    Daily,
    EndsWith,
    Equals,
    Matches,
    Model,
    Period,
    Since,
    StartsWith,
    Step,
    Variant,
    When,
    overlaid,
)

HOUR = 3_600
DAY = 24 * HOUR


@pytest.mark.parametrize(
    ("clause", "matching", "other"),
    [
        (Equals("gpt-5"), "gpt-5", "gpt-5-mini"),
        (StartsWith("gpt-5"), "gpt-5-mini", "my-gpt-5"),
        (EndsWith("-mini"), "gpt-5-mini", "mini-gpt"),
        (Contains("gpt"), "my-gpt-5", "gtp"),
        (Matches(r"^gpt-5-\d{4}$"), "gpt-5-2026", "gpt-5-x"),
        (AnyOf((Equals("a"), Equals("b"))), "b", "c"),
        (AllOf((StartsWith("a"), EndsWith("z"))), "a-z", "a-y"),
    ],
)
def test_a_clause_matches_what_it_says(clause: Clause, matching: str, other: str) -> None:
    assert clause.is_match(matching)
    assert not clause.is_match(other)


@pytest.mark.parametrize(
    ("when", "active", "inactive"),
    [
        (Since(100), (100, 101, 10**9), (0, 99, 99.9)),
        (Between(100, 200), (100, 199.9), (99.9, 200)),
        (Between(None, 200), (0, 199), (200,)),
        (Between(100, None), (100, 10**9), (99,)),
        (Between(None, None), (0, 10**9), ()),
        (Daily(HOUR, 4 * HOUR), (HOUR, DAY + 2 * HOUR), (0, 4 * HOUR, DAY - 1)),
        (Daily(22 * HOUR, HOUR), (22 * HOUR, DAY, DAY + HOUR - 1), (HOUR, 21 * HOUR)),
    ],
)
def test_a_time_is_active_from_its_first_moment_to_the_one_before_its_last(
    when: When, active: tuple[float, ...], inactive: tuple[float, ...]
) -> None:
    assert all(when.is_active(at_s) for at_s in active)
    assert not any(when.is_active(at_s) for at_s in inactive)


whens = st.one_of(
    st.builds(Since, st.integers(0, 5 * DAY)),
    st.builds(Daily, st.integers(0, DAY - 1), st.integers(0, DAY - 1)),
    st.builds(Between, st.integers(0, 2 * DAY), st.integers(2 * DAY, 5 * DAY)),
)


@settings(deadline=None)
@given(whens, st.integers(0, 5 * DAY), st.integers(0, DAY))
def test_between_two_edges_nothing_changes(when: When, at_s: int, later_s: int) -> None:
    if not any(at_s < edge <= at_s + later_s for edge in when.edges(at_s)):
        assert when.is_active(at_s) == when.is_active(at_s + later_s)


def prices(**nanos: int) -> tuple[Step, ...]:
    return (Step(0, nanos),)


def test_the_last_active_period_holds_and_else_the_first() -> None:
    always = Model(
        Equals("m"),
        (
            Period(None, prices(input=1)),
            Period(Since(100), prices(input=2)),
            Period(Since(200), prices(input=3)),
        ),
    )
    assert [always.steps(at)[0].nanos_per_million["input"] for at in (0, 100, 199, 200)] == [
        1,
        2,
        2,
        3,
    ]
    never = Model(Equals("m"), (Period(Since(100), prices(input=1)), Period(Since(200), prices())))
    assert never.steps(0) == prices(input=1)


def test_a_tier_changes_the_units_it_names_and_the_first_active_variant_names_them() -> None:
    model = Model(
        Equals("m"),
        (Period(None, prices(input=10, output=20)),),
        (
            Variant("flex", Since(100), prices(input=5)),
            Variant("flex", None, prices(input=7, output=9)),
            Variant("batch", Since(100), prices(output=1)),
        ),
    )
    assert model.tiers(0) == {"flex": prices(input=7, output=9)}
    assert model.tiers(100) == {
        "flex": prices(input=5, output=9),
        "batch": prices(input=10, output=1),
    }


def test_prices_laid_over_others_hold_at_every_length() -> None:
    steps = (Step(0, {"input": 1, "output": 2}), Step(100, {"input": 10, "output": 20}))
    assert overlaid(steps, prices(input=5)) == (
        Step(0, {"input": 5, "output": 2}),
        Step(100, {"input": 5, "output": 20}),
    )
    above = (Step(0, {"input": 5}), Step(50, {"input": 7}))
    assert overlaid(steps, above) == (
        Step(0, {"input": 5, "output": 2}),
        Step(50, {"input": 7, "output": 2}),
        Step(100, {"input": 7, "output": 20}),
    )
