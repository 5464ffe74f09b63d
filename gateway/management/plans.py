"""Plans over HTTP: which there are, and what the organization at hand has.

What an organization may have follows its plan at once. A smaller plan takes nothing away: what is
above its limits stays, and nothing new of the kind can be made until there is room.
"""

from datetime import datetime
from uuid import UUID

import msgspec

from gateway.management.desk import Desk
from gateway.management.limits import LogLevel, allowed, limits_in
from gateway.management.subscriptions import Held, Period, held_by, pending_of
from gateway.plans import Billing, Plan, plan_of
from gateway.policy import Permission
from gateway.rest.caller import ANYBODY, Scope, member
from gateway.rest.cursor import Page
from gateway.rest.route import Answer, Asked, Nothing, Route

_ONE = "SELECT plan, limits FROM organization WHERE id = $1"


class OfferView(msgspec.Struct, frozen=True, kw_only=True):
    """A plan. Prices in nano-USD; null: the operator gives it."""

    name: str
    label: str
    is_sold: bool  # whoever may purchase may choose it
    month_nanos: int | None
    year_nanos: int | None
    organizations_max: int  # that a person owns whose own account has it
    projects_max: int
    members_max: int
    log_days_max: dict[LogLevel, int]  # how long logs of calls can be kept at each level


class SubscriptionView(msgspec.Struct, frozen=True, kw_only=True):
    """The period at hand of a plan that is paid for, and what follows it."""

    plan: str
    billing: Billing
    starts_at: datetime
    ends_at: datetime
    next_plan: str  # from then on; "free": it ends
    next_billing: Billing


class PendingView(msgspec.Struct, frozen=True, kw_only=True):
    """A period whose payment is under way."""

    plan: str
    billing: Billing
    starts_at: datetime
    amount_nanos: int
    is_renewal: bool
    decline: str | None  # of the first try; there is another one a day after it


class PlanView(msgspec.Struct, frozen=True, kw_only=True):
    """What an organization may have: its plan, as the operator's limits leave it."""

    name: str
    label: str
    organizations_max: int  # that a person owns whose own account this is
    projects_max: int
    members_max: int
    log_days_max: dict[LogLevel, int]
    subscription: SubscriptionView | None  # null: nobody pays for the plan
    pending: PendingView | None


async def offered(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """Every plan there is."""
    del asked
    plans = [_offer(name, plan) for name, plan in desk.config.plans.items()]
    return Answer(Page[OfferView](data=plans, next_cursor=None))


async def get(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """What the organization at hand may have."""
    return Answer(await plan_view(desk, asked.caller.place.organization_id))


async def plan_view(desk: Desk, organization_id: UUID) -> PlanView:
    """The plan of this organization, which exists."""
    row = await desk.pool.fetchrow(_ONE, organization_id)
    assert row is not None, "the guard has seen it"
    plans = desk.config.plans
    plan, may = plan_of(plans, row["plan"]), allowed(plans, row["plan"], limits_in(row["limits"]))
    held = await held_by(desk.pool, organization_id)
    pending = await pending_of(desk.pool, organization_id)
    return PlanView(
        name=row["plan"],
        label=plan.label,
        organizations_max=may.organizations_max,
        projects_max=may.projects_max,
        members_max=may.members_max,
        log_days_max={level: may.log_days_at(level) for level in LogLevel},
        subscription=None if held is None else _held(held),
        pending=None if pending is None else _pending(pending),
    )


def _held(held: Held) -> SubscriptionView:
    period = held.period
    return SubscriptionView(
        plan=period.plan,
        billing=period.billing,
        starts_at=period.starts_at,
        ends_at=period.ends_at,
        next_plan=held.next_plan,
        next_billing=held.next_billing,
    )


def _pending(period: Period) -> PendingView:
    return PendingView(
        plan=period.plan,
        billing=period.billing,
        starts_at=period.starts_at,
        amount_nanos=period.amount,
        is_renewal=period.is_renewal,
        decline=period.decline,
    )


def _offer(name: str, plan: Plan) -> OfferView:
    return OfferView(
        name=name,
        label=plan.label,
        is_sold=plan.is_sold,
        month_nanos=plan.month_nanos,
        year_nanos=plan.year_nanos,
        organizations_max=plan.organizations_max,
        projects_max=plan.projects_max,
        members_max=plan.members_max,
        log_days_max={LogLevel.NONE: plan.log_days_none, LogLevel.RETAIN: plan.log_days_retain},
    )


ROUTES = (
    Route(
        method="GET",
        path="/plans",
        name="plans.list",
        says="Every plan there is.",
        access=ANYBODY,
        handle=offered,
        answers=Page[OfferView],
    ),
    Route(
        method="GET",
        path="/plan",
        name="plans.get",
        says="What the organization at hand may have.",
        access=member(Permission.ORGANIZATION_READ, Scope.ORGANIZATIONS_READ),
        handle=get,
        answers=PlanView,
    ),
)
