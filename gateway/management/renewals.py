"""The job of subscriptions: what follows a period that is over, and what was left half-way.

Several control processes may do it at once: a period is begun once, and taken up by one at a time.
"""

import logging
from datetime import datetime
from uuid import UUID

from gateway.management import payments
from gateway.management.desk import Desk
from gateway.management.subscriptions import (
    LEASE,
    LOCK,
    SYSTEM,
    UNSUBSCRIBE,
    Held,
    Payer,
    Period,
    PeriodState,
    advance,
    begin,
    end,
    held_by,
    pending_of,
    period_of,
)
from gateway.plans import FREE, end_of_period, price_of
from ledger.postgres import Connection

log = logging.getLogger(__name__)

_BATCH = 10

_TAKE_SOME = """
    UPDATE plan_period SET next_at = $2
    WHERE (organization_id, starts_at) IN (
        SELECT organization_id, starts_at FROM plan_period
        WHERE state = 'pending' AND next_at <= $1 ORDER BY next_at LIMIT $3 FOR UPDATE SKIP LOCKED
    )
    RETURNING *
"""
_DUE = """
    SELECT organization_id FROM subscription AS s
    WHERE renews_at <= $1 AND NOT EXISTS (
        SELECT FROM plan_period AS p
        WHERE p.organization_id = s.organization_id AND p.state = 'pending'
    )
    ORDER BY renews_at LIMIT $2
"""
# The one it was paid with, or if that is gone, its owner's preferred one. Of somebody who is not in
# the organization any more: none.
_METHOD = """
    SELECT m.id FROM payment_method AS m
    WHERE m.owner_id = $1 AND m.processor = $2 AND m.removed_at IS NULL AND m.ready_at IS NOT NULL
      AND (m.id = $3 OR m.is_default) AND ($4 = 'organization' OR EXISTS (
          SELECT FROM seat AS s JOIN member AS b ON b.id = s.member_id
          WHERE s.person_id = $1 AND s.organization_id = $5 AND b.removed_at IS NULL
      ))
    ORDER BY m.id = $3 DESC LIMIT 1
"""


async def renew(desk: Desk, organization_id: UUID) -> Period | None:
    """What follows a period that is over: the next one, begun, or none. It may be repeated."""
    now = desk.now()
    async with desk.pool.acquire() as connection, connection.transaction():
        organization = await connection.fetchrow(LOCK, organization_id)
        assert organization is not None, "organizations are never deleted"
        held = await held_by(connection, organization_id)
        if held is None or held.renews_at > now:
            return None
        if await pending_of(connection, organization_id) is not None:
            return None
        before = held.period
        if organization["deleted_at"] is not None or organization["plan"] != before.plan:
            # The operator gave another plan, for which nobody pays here.
            await connection.execute(UNSUBSCRIBE, organization_id)
            return None
        plan = desk.config.plans.get(held.next_plan)
        if held.next_plan == FREE:
            await end(desk, connection, organization_id, why="cancelled", is_told=False)
        elif plan is None or not plan.is_sold:
            why = "it is not offered any more"
            await end(desk, connection, organization_id, why=why, is_told=True)
        elif (payer := await _payer(desk, connection, held)) is None:
            why = "there is no payment method to charge"
            await end(desk, connection, organization_id, why=why, is_told=True)
        else:
            price = price_of(plan, held.next_billing)
            period = _following(held, price, now)._replace(payer=payer)
            return await begin(connection, period, now)
        return None


def _following(held: Held, price: int, now: datetime) -> Period:
    """The period after this one. Those that are over by now, as nobody renewed, cost nothing."""
    before = held.period
    starts_at, billing = before.ends_at, held.next_billing
    while (ends_at := end_of_period(before.anchor_at, starts_at, billing)) <= now:
        starts_at = ends_at
    return before._replace(
        starts_at=starts_at,
        ends_at=ends_at,
        plan=held.next_plan,
        billing=billing,
        price=price,
        amount=price,
        is_renewal=True,
        actor=SYSTEM,
        address=None,
        state=PeriodState.PENDING,
        declines=0,
        decline=None,
    )


async def _payer(desk: Desk, connection: Connection, held: Held) -> Payer | None:
    """Who pays for what follows; None: nobody who could, or who has any business here."""
    payer, owner = held.payer, held.payer.owner
    asked = (owner.id, payments.processor_of(desk).name, payer.method_id)
    method_id = await connection.fetchval(_METHOD, *asked, owner.kind, held.period.organization_id)
    return None if method_id is None else payer._replace(method_id=method_id)


async def renew_some(desk: Desk) -> int:
    """Renew what is over and finish what was left half-way, of what is due the next few; how many
    there were."""
    now = desk.now()
    due = await desk.pool.fetch(_DUE, now, _BATCH)
    for row in due:
        period = await renew(desk, row["organization_id"])
        if period is not None:
            await advance(desk, period)
    taken = await desk.pool.fetch(_TAKE_SOME, now, now + LEASE, _BATCH)
    for row in taken:
        await advance(desk, period_of(row))
    return len(due) + len(taken)
