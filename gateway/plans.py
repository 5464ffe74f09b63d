"""Plans: what an organization or a person may have, for which price. Pure."""

from calendar import monthrange
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated

from gateway.bounds import CENT, USD_MAX, Between, Count, Format, Name

FREE = "free"  # the plan that everybody begins with and falls back to
LOG_DAYS_MAX = 3_650

Days = Annotated[int, Between(1, LOG_DAYS_MAX)]
Price = Annotated[int, Format.USD, Between(0, USD_MAX)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One plan. A limit keeps something new from being made and takes nothing away."""

    label: Name
    organizations_max: Count  # that a person owns whose own account has this plan
    projects_max: Count
    members_max: Count
    log_days_none: Days  # how long logs of calls are kept at level none, and at level retain
    log_days_retain: Days
    month_nanos: Price | None = field(default=None, metadata={"key": "usd_per_month"})
    year_nanos: Price | None = field(default=None, metadata={"key": "usd_per_year"})

    @property
    def is_sold(self) -> bool:
        """Whether anybody can have it by paying; else the operator gives it."""
        return bool(self.month_nanos and self.year_nanos)


PLANS: Mapping[str, Plan] = MappingProxyType(
    {
        FREE: Plan(
            label="Free",
            organizations_max=3,
            projects_max=10,
            members_max=10,
            log_days_none=3,
            log_days_retain=3,
            month_nanos=0,
            year_nanos=0,
        ),
        "pro": Plan(
            label="Pro",
            organizations_max=10,
            projects_max=100,
            members_max=50,
            log_days_none=3,
            log_days_retain=90,
            month_nanos=50 * 10**9,
            year_nanos=500 * 10**9,
        ),
        "enterprise": Plan(
            label="Enterprise",
            organizations_max=1_000,
            projects_max=1_000,
            members_max=1_000,
            log_days_none=90,
            log_days_retain=365,
        ),
    }
)


class Billing(StrEnum):
    """How long a period of a plan is."""

    MONTHLY = "monthly"
    YEARLY = "yearly"


def price_of(plan: Plan, billing: Billing) -> int:
    """What a period of the plan costs, in nano-USD; the plan is sold."""
    price = plan.month_nanos if billing is Billing.MONTHLY else plan.year_nanos
    assert price, "only plans that are sold have a price to be paid"
    return price


def end_of_period(anchor: datetime, starts_at: datetime, billing: Billing) -> datetime:
    """When the period ends that begins at `starts_at`, some months after its first, `anchor`.

    Months are counted from the anchor, so that one that began on the 31st is back there after a
    shorter month.
    """
    months = (starts_at.year - anchor.year) * 12 + starts_at.month - anchor.month
    months += 1 if billing is Billing.MONTHLY else 12
    year, month = divmod(anchor.year * 12 + anchor.month - 1 + months, 12)
    last = monthrange(year, month + 1)[1]
    return anchor.replace(year=year, month=month + 1, day=min(anchor.day, last))


def unused(price: int, starts_at: datetime, ends_at: datetime, now: datetime) -> int:
    """What is left of a period that cost `price`, by time, in nano-USD and whole cents."""
    whole_us = (ends_at - starts_at) // timedelta(microseconds=1)
    left_us = (ends_at - now) // timedelta(microseconds=1)
    return price * min(max(left_us, 0), whole_us) // whole_us // CENT * CENT


def price_mistakes(plans: Mapping[str, Plan]) -> Iterator[tuple[str, str]]:
    """The plans whose prices nobody could be charged, each with what is wrong."""
    for name, plan in plans.items():
        prices = plan.month_nanos, plan.year_nanos
        if name == FREE and any(prices):
            yield name, "costs something, and nobody has paid who begins with it"
        if prices.count(None) == 1:
            yield name, "has a price per month or per year only: give both, or none"
        if any(price and price % CENT for price in prices):
            yield name, "has a price that is no whole number of cents"


def plan_of(plans: Mapping[str, Plan], name: str) -> Plan:
    """The plan of this name; one that is no longer offered leaves its organizations as Free."""
    return plans.get(name) or plans[FREE]
