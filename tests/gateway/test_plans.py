"""What plans there are, and what is wrong with some."""

import pytest

from gateway.config import ConfigErrors, read
from gateway.plans import PLANS, plan_of

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
