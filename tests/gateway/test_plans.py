"""What plans there are, and what is wrong with some."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.bounds import CENT, USD_MAX
from gateway.config import ConfigErrors, read
from gateway.plans import PLANS, Billing, end_of_period, plan_of, unused

_FREE = (
    "{label: Free, organizations_max: 1, projects_max: 1, members_max: 1, log_days_none: 1,"
    " log_days_retain: 2%s}"
)


def test_the_plans_are_those_that_are_published() -> None:
    days = {name: (plan.log_days_none, plan.log_days_retain) for name, plan in PLANS.items()}
    assert days == {"free": (3, 3), "pro": (3, 90), "enterprise": (90, 365)}
    free, pro, enterprise = PLANS.values()
    assert (free.organizations_max, free.projects_max, free.members_max) == (3, 10, 10)
    assert (free.month_nanos, free.year_nanos) == (0, 0)
    assert pro.month_nanos is not None
    assert pro.year_nanos is not None
    assert pro.year_nanos < 12 * pro.month_nanos, "by the year it is cheaper"
    assert [plan.is_sold for plan in PLANS.values()] == [False, True, False]
    assert enterprise.month_nanos is None


def test_plans_of_the_file_replace_all_and_one_that_is_no_longer_there_is_free() -> None:
    plans = read(f"plans: {{free: {_FREE % ''}}}", {}).plans
    assert set(plans) == {"free"}
    assert plan_of(plans, "pro") == plans["free"]


@pytest.mark.parametrize(
    ("plans", "mistake"),
    [
        ({"pro": ""}, "has no 'free'"),
        ({"free": ", usd_per_month: 1, usd_per_year: 2"}, "costs something"),
        ({"free": "", "pro": ", usd_per_month: 1"}, "give both, or none"),
        ({"free": "", "pro": ", usd_per_month: 1.001, usd_per_year: 2"}, "whole number of cents"),
        ({"free": ", gold: 1"}, "unknown setting"),
    ],
)
def test_a_flawed_plan_is_a_mistake_of_the_file(plans: dict[str, str], mistake: str) -> None:
    text = ", ".join(f"{name}: {_FREE % more}" for name, more in plans.items())
    with pytest.raises(ConfigErrors, match=mistake):
        read(f"plans: {{{text}}}", {})


def test_months_are_counted_from_the_first_day_of_all() -> None:
    first = datetime(2027, 1, 31, 12, 30, tzinfo=UTC)
    starts, ends = first, []
    for _ in range(4):
        starts = end_of_period(first, starts, Billing.MONTHLY)
        ends.append((starts.month, starts.day, starts.hour))
    assert ends == [(2, 28, 12), (3, 31, 12), (4, 30, 12), (5, 31, 12)]
    leap = datetime(2028, 2, 29, tzinfo=UTC)
    assert end_of_period(leap, leap, Billing.YEARLY) == datetime(2029, 2, 28, tzinfo=UTC)
    later = datetime(2031, 2, 28, tzinfo=UTC)
    assert end_of_period(leap, later, Billing.YEARLY) == datetime(2032, 2, 29, tzinfo=UTC)


@given(
    st.datetimes(datetime(2020, 1, 1), datetime(2090, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001 - hypothesis adds the zone
    st.lists(st.sampled_from(Billing), max_size=30),
)
def test_periods_follow_each_other_without_a_gap_however_they_are_mixed(
    first: datetime, billings: list[Billing]
) -> None:
    starts = first
    for billing in billings:
        ends = end_of_period(first, starts, billing)
        days = (ends - starts).days
        assert 28 <= days <= 31 if billing is Billing.MONTHLY else 364 <= days <= 367
        starts = ends


@given(st.integers(CENT, USD_MAX), st.integers(1, 400 * 86_400_000_000), st.floats(-1.0, 2.0))
def test_what_is_unused_is_whole_cents_and_never_more_than_was_paid(
    price: int, length_us: int, share: float
) -> None:
    starts = datetime(2027, 1, 1, tzinfo=UTC)
    ends = starts + timedelta(microseconds=length_us)
    now = starts + timedelta(microseconds=int(length_us * share))
    left = unused(price, starts, ends, now)
    assert 0 <= left <= price
    assert left % CENT == 0
    assert unused(price, starts, ends, starts) == price // CENT * CENT
    assert unused(price, starts, ends, ends) == 0
