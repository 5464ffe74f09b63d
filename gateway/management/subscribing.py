"""Choosing a plan that is paid for, and leaving it, over HTTP.

More than what is paid for now (a larger plan, the year instead of the month) is had and charged at
once: a new period begins, and what is unused of the old one is taken off its price. Less than that,
and the end of it, follow when the period at hand is over. Nothing is paid back.
"""

from uuid import UUID

import msgspec

from gateway.errors import Conflict, Forbidden, NotFound
from gateway.management import payments
from gateway.management.audit import note
from gateway.management.desk import Desk
from gateway.management.operations import PlanName
from gateway.management.payments import Owner, OwnerKind
from gateway.management.plans import PlanView, plan_view
from gateway.management.subscriptions import (
    LOCK,
    Held,
    Payer,
    Period,
    PeriodState,
    advance,
    begin,
    drop_renewal,
    end,
    held_by,
    payment_id,
    pending_of,
)
from gateway.plans import FREE, Billing, end_of_period, plan_of, price_of, unused
from gateway.policy import Permission
from gateway.rest.caller import Caller, Scope, member
from gateway.rest.problem import PaymentDeclined
from gateway.rest.route import Answer, Asked, Nothing, Route
from ledger.postgres import Connection

CHARGED_MIN = 50 * payments.CENT  # no card is charged for less: what remains below that is free

_METHOD = """
    SELECT owner_kind, owner_id FROM payment_method
    WHERE id = $1 AND processor = $2 AND ready_at IS NOT NULL AND removed_at IS NULL
"""
_SET_NEXT = """
    UPDATE subscription SET next_plan = $2, next_billing = $3 WHERE organization_id = $1
"""
_SET_PAYER = """
    UPDATE subscription SET owner_kind = $2, owner_id = $3, person_id = $4, method_id = $5
    WHERE organization_id = $1
"""


class Subscribing(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The plan that is wanted, and what pays for it."""

    plan: PlanName
    billing: Billing
    method_id: UUID  # a saved payment method: one's own, or the organization's


async def subscribe(desk: Desk, asked: Asked[Nothing, Subscribing]) -> Answer:
    """Have a plan that is sold, at once or when the period at hand is over."""
    caller, wanted = asked.caller, asked.body
    place = caller.place.organization_id
    processor = payments.processor_of(desk).name
    plan = desk.config.plans.get(wanted.plan)
    if plan is None or not plan.is_sold:
        raise Conflict(
            f"The plan {wanted.plan!r} is not sold; GET /api/v1/plans says which are. The operator"
            " gives the others, and DELETE /api/v1/subscription leads back to Free.",
            code="plan_not_sold",
        )
    payer = await _payer(desk, caller, wanted.method_id, processor)
    async with desk.pool.acquire() as connection, connection.transaction():
        await connection.execute(LOCK, place)
        period = await _chosen(desk, connection, asked, payer)
    if period is not None:
        period = await advance(desk, period)
        if period.state is PeriodState.FAILED:
            why, payment = period.decline or "declined", str(payment_id(period))
            raise PaymentDeclined(why, is_hard=period.is_hard, payment=payment)
    return Answer(await plan_view(desk, place))


async def cancel(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """Go back to Free when the paid period is over; at once if its renewal was declined."""
    place = asked.caller.place.organization_id
    async with desk.pool.acquire() as connection, connection.transaction():
        await connection.execute(LOCK, place)
        held = await held_by(connection, place)
        if held is None:
            raise Conflict("Nobody pays for a plan here.", code="not_subscribed")
        pending = await pending_of(connection, place)
        if pending is None:
            await connection.execute(_SET_NEXT, place, FREE, held.next_billing)
            await _note(connection, asked, held, FREE, held.next_billing)
        elif pending.is_renewal and await drop_renewal(connection, pending, desk.now()):
            await _note(connection, asked, held, FREE, held.next_billing)
            await end(desk, connection, place, why="cancelled", is_told=False)
        else:
            raise _under_way()
    return Answer(await plan_view(desk, place))


async def _chosen(
    desk: Desk, connection: Connection, asked: Asked[Nothing, Subscribing], payer: Payer
) -> Period | None:
    """The period to be paid now; None: nothing is, what was chosen follows or is under way."""
    caller, wanted, now = asked.caller, asked.body, desk.now()
    place = caller.place.organization_id
    held, pending = await held_by(connection, place), await pending_of(connection, place)
    if pending is not None:
        if not pending.is_renewal and _is_same(pending, wanted):
            return None
        raise _under_way()
    if held is not None and not _is_more(desk, held.period, wanted):
        await connection.execute(_SET_NEXT, place, wanted.plan, wanted.billing)
        owner, person_id, method_id = payer
        await connection.execute(_SET_PAYER, place, owner.kind, owner.id, person_id, method_id)
        await _note(connection, asked, held, wanted.plan, wanted.billing)
        return None
    price = price_of(plan_of(desk.config.plans, wanted.plan), wanted.billing)
    amount = price
    if held is not None:
        was = held.period
        amount -= unused(was.price, was.starts_at, was.ends_at, now)
    if amount < 0:
        raise Conflict(
            "What is unused of the paid period is worth more than that. Choose yearly billing, or"
            " cancel, and choose it when the period is over.",
            code="unused_above_price",
        )
    period = Period(
        organization_id=place,
        starts_at=now,
        ends_at=end_of_period(now, now, wanted.billing),
        anchor_at=now,
        plan=wanted.plan,
        billing=wanted.billing,
        price=price,
        amount=amount if amount >= CHARGED_MIN else 0,
        is_renewal=False,
        payer=payer,
        actor=caller.actor,
        address=caller.address,
    )
    begun = await begin(connection, period, now)
    assert begun is not None, "the organization is locked, and nothing is under way"
    return begun


async def _payer(desk: Desk, caller: Caller, method_id: UUID, processor: str) -> Payer:
    """Who pays with this method; `NotFound` if it is none of theirs."""
    place = caller.place
    row = await desk.pool.fetchrow(_METHOD, method_id, processor)
    owner = None if row is None else Owner(OwnerKind(row["owner_kind"]), row["owner_id"])
    if owner is None or owner.id not in {place.organization_id, caller.person_id}:
        raise NotFound(f"There is no payment method {method_id}.", code="payment_method_not_found")
    if owner.kind is OwnerKind.ORGANIZATION and not place.allows(Permission.BILLING_MANAGE):
        raise Forbidden(
            "With the organization's payment methods pays who manages its billing. Pay with your"
            " own.",
            code="not_permitted",
            extra={"permission": Permission.BILLING_MANAGE.value},
        )
    return Payer(owner, caller.person_id, method_id)


def _is_same(period: Period, wanted: Subscribing) -> bool:
    return (period.plan, period.billing) == (wanted.plan, wanted.billing)


def _is_more(desk: Desk, before: Period, wanted: Subscribing) -> bool:
    """Whether it is more than what is paid for: a larger plan, or the year instead of the month."""
    plans = desk.config.plans
    was = plan_of(plans, before.plan).month_nanos or 0
    will_be = plan_of(plans, wanted.plan).month_nanos or 0
    if was != will_be:
        return will_be > was
    return before.billing is Billing.MONTHLY and wanted.billing is Billing.YEARLY


async def _note(
    connection: Connection,
    asked: Asked[Nothing, Subscribing] | Asked[Nothing, Nothing],
    held: Held,
    plan: str,
    billing: Billing,
) -> None:
    before = {"next_plan": held.next_plan, "next_billing": held.next_billing}
    after = {"next_plan": plan, "next_billing": billing}
    await note(connection, asked, "plan.next", before=before, after=after)


def _under_way() -> Conflict:
    return Conflict(
        "A payment for a plan is under way: GET /api/v1/plan says which. Wait for its end.",
        code="payment_under_way",
    )


ROUTES = (
    Route(
        method="POST",
        path="/subscription",
        name="plans.subscribe",
        says="Have a plan that is sold: more is paid at once, less follows the paid period.",
        access=member(Permission.BILLING_PURCHASE, Scope.BILLING_WRITE),
        handle=subscribe,
        body=Subscribing,
        answers=PlanView,
        is_once=True,
        raises=(402,),
    ),
    Route(
        method="DELETE",
        path="/subscription",
        name="plans.cancel",
        says="Go back to Free when the paid period is over.",
        access=member(Permission.BILLING_PURCHASE, Scope.BILLING_WRITE),
        handle=cancel,
        answers=PlanView,
        raises=(409,),
    ),
)
