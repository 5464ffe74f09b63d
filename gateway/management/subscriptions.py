"""Plans that are paid for by the month or the year: each period once, whatever crashes.

A period is a row before anybody is charged for it, one per organization and beginning, and one
unpaid at a time. Its payment has an id made of the row, so whoever takes the row up again asks for
the same payment; only a decline, once it is known, leads to another. Then one transaction makes the
period paid and the plan the organization's. `next_at` says when the job of `renewals` takes over.
"""

import logging
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple
from uuid import NAMESPACE_URL, UUID, uuid5

import asyncpg

from gateway.errors import Conflict
from gateway.management import cashier, payments
from gateway.management.alerts import Alert, AlertKind, give
from gateway.management.desk import Desk
from gateway.management.mails import Mail, post
from gateway.management.payments import NewPayment, Owner, OwnerKind, Purpose, State
from gateway.payments.processor import MethodKind
from gateway.plans import FREE, Billing, plan_of
from ledger.money import Nanos, usd_text
from ledger.postgres import Connection
from ledger.trail import Change, append_change

log = logging.getLogger(__name__)

RETRY = timedelta(hours=24)  # after the first decline of a renewal, if it may go well another day
LEASE = timedelta(seconds=90)  # longer than a payment is anybody's
_LOOK_AGAIN = timedelta(seconds=30)  # the cashier brings payments further meanwhile
SYSTEM = "subscriptions"  # the actor of what happens by itself

_INSERT = """
    INSERT INTO plan_period (
        organization_id, starts_at, ends_at, anchor_at, plan, billing, price, amount, is_renewal,
        owner_kind, owner_id, person_id, method_id, actor, address, next_at
    ) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
    ON CONFLICT DO NOTHING
    RETURNING *
"""
_PENDING = "SELECT * FROM plan_period WHERE organization_id = $1 AND state = 'pending'"
_LATER = """
    UPDATE plan_period SET next_at = $3
    WHERE organization_id = $1 AND starts_at = $2 AND state = 'pending'
"""
_END_PENDING = """
    UPDATE plan_period SET state = $3, decline = $4
    WHERE organization_id = $1 AND starts_at = $2 AND state = 'pending' AND declines = $5
    RETURNING *
"""
# Between its tries: one that is taken up is its taker's for the time of a lease.
_DROP = """
    UPDATE plan_period SET state = 'failed'
    WHERE organization_id = $1 AND starts_at = $2 AND state = 'pending' AND declines = 1
      AND next_at > $3
    RETURNING true
"""
_DECLINED = """
    UPDATE plan_period SET declines = 1, decline = $3, next_at = $4
    WHERE organization_id = $1 AND starts_at = $2 AND state = 'pending' AND declines = 0
    RETURNING true
"""
_SUBSCRIBE = """
    INSERT INTO subscription (
        organization_id, starts_at, next_plan, next_billing, renews_at, owner_kind, owner_id,
        person_id, method_id
    ) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
    ON CONFLICT (organization_id) DO UPDATE SET starts_at = $2, next_plan = $3, next_billing = $4,
        renews_at = $5, owner_kind = $6, owner_id = $7, person_id = $8, method_id = $9
"""
UNSUBSCRIBE = "UPDATE subscription SET renews_at = NULL WHERE organization_id = $1"
LOCK = "SELECT plan, name, deleted_at FROM organization WHERE id = $1 FOR NO KEY UPDATE"
_SET_PLAN = "UPDATE organization SET plan = $2, version = version + 1 WHERE id = $1"
_HELD = """
    SELECT p.*, s.next_plan, s.next_billing, s.renews_at, s.owner_kind AS next_owner_kind,
           s.owner_id AS next_owner_id, s.person_id AS next_person_id, s.method_id AS next_method_id
    FROM subscription AS s JOIN plan_period AS p USING (organization_id, starts_at)
    WHERE s.organization_id = $1 AND s.renews_at IS NOT NULL
"""
_METHODS_KIND = "SELECT kind FROM payment_method WHERE id = $1"
_TOLD = """
    SELECT lower(p.email) AS email FROM seat AS s JOIN member AS m ON m.id = s.member_id
    JOIN person AS p ON p.id = s.person_id
    WHERE s.organization_id = $1 AND m.role = 'owner' AND m.removed_at IS NULL
    UNION SELECT lower(billing_email) FROM organization
    WHERE id = $1 AND billing_email IS NOT NULL
    UNION SELECT lower(unnest(contacts)) FROM billing WHERE organization_id = $1
"""


class PeriodState(StrEnum):
    """Of a period."""

    PENDING = "pending"
    PAID = "paid"
    FAILED = "failed"


class Payer(NamedTuple):
    """Who pays, with what."""

    owner: Owner
    person_id: UUID | None  # who sees it as theirs
    method_id: UUID


class Period(NamedTuple):
    """A month or a year of a plan."""

    organization_id: UUID
    starts_at: datetime
    ends_at: datetime
    anchor_at: datetime  # when the first of its kind began: months are counted from there
    plan: str
    billing: Billing
    price: int  # nano-USD, of all of it
    amount: int  # what is charged: less what was unused of the period it replaces
    is_renewal: bool  # nobody asked for it just now
    payer: Payer
    actor: str
    address: str | None = None  # where it was asked for
    state: PeriodState = PeriodState.PENDING
    declines: int = 0  # of it: the first may be followed by another try
    decline: str | None = None
    is_hard: bool = False


class Held(NamedTuple):
    """A subscription that has not ended."""

    period: Period
    next_plan: str  # what follows; `FREE`: it ends
    next_billing: Billing
    renews_at: datetime
    payer: Payer  # of what follows


async def held_by(connection: Connection | asyncpg.Pool, organization_id: UUID) -> Held | None:
    """What the organization subscribes to; None: to nothing."""
    row = await connection.fetchrow(_HELD, organization_id)
    if row is None:
        return None
    payer = Payer(
        Owner(OwnerKind(row["next_owner_kind"]), row["next_owner_id"]),
        row["next_person_id"],
        row["next_method_id"],
    )
    billing = Billing(row["next_billing"])
    return Held(period_of(row), row["next_plan"], billing, row["renews_at"], payer)


async def pending_of(connection: Connection | asyncpg.Pool, organization_id: UUID) -> Period | None:
    """The period whose payment is under way; None: there is none."""
    row = await connection.fetchrow(_PENDING, organization_id)
    return None if row is None else period_of(row)


async def begin(connection: Connection, period: Period, now: datetime) -> Period | None:
    """Write it down; it is the caller's for the time of a lease. None: another one is under way."""
    owner, person_id, method_id = period.payer
    row = await connection.fetchrow(
        _INSERT,
        *period[:9],
        *(owner.kind, owner.id, person_id, method_id, period.actor, period.address, now + LEASE),
    )
    return None if row is None else period_of(row)


async def advance(desk: Desk, period: Period) -> Period:
    """Bring it as far as it goes now; the period afterwards."""
    if period.state is not PeriodState.PENDING:
        return period
    if not period.amount:
        return await _paid(desk, period)
    payment = await _payment(desk, period)
    match None if payment is None else payment.state:
        case State.PAID:
            return await _paid(desk, period)
        case State.FAILED:
            assert payment is not None, "it has a state"
            why = payment.decline or "declined"
            return await _declined(desk, period, why, is_hard=payment.is_hard)
        case _:
            soon = desk.now() + _LOOK_AGAIN
            await desk.pool.execute(_LATER, period.organization_id, period.starts_at, soon)
            return period


async def end(
    desk: Desk, connection: Connection, organization_id: UUID, *, why: str, is_told: bool
) -> None:
    """Back to Free, in the caller's transaction. `is_told`: by a mail, with the reason."""
    before = await connection.fetchrow(LOCK, organization_id)
    assert before is not None, "organizations are never deleted"
    await connection.execute(UNSUBSCRIBE, organization_id)
    await connection.execute(_SET_PLAN, organization_id, FREE)
    said = Change(
        SYSTEM,
        "plan.end",
        str(organization_id),
        before={"plan": before["plan"]},
        after={"plan": FREE, "reason": why},
    )
    await append_change(connection, str(organization_id), said)
    if is_told:
        facts = {
            "site": desk.site,
            "organization": before["name"],
            "plan": plan_of(desk.config.plans, before["plan"]).label,
            "free": plan_of(desk.config.plans, FREE).label,
            "reason": why,
        }
        for row in await connection.fetch(_TOLD, organization_id):
            await post(connection, Mail(row["email"], "plan_ended", facts), desk.now())


async def _payment(desk: Desk, period: Period) -> payments.Row | None:
    """The payment of this try, as far as it goes now; None: somebody else is at it."""
    owner, person_id, method_id = period.payer
    kind = MethodKind(await desk.pool.fetchval(_METHODS_KIND, method_id))
    try:
        coins = payments.coins_of(desk, Nanos(period.amount), kind)
    except Conflict as error:  # no price of the dollar in this method's currency any more
        log.warning("a plan cannot be charged", extra={"reason": error.message, "cause": "plan"})
        return None
    new = NewPayment(
        id=payment_id(period),
        purpose=Purpose.PLAN,
        organization_id=period.organization_id,
        owner=owner,
        amount=Nanos(period.amount),
        coins=coins,
        actor=period.actor,
        person_id=person_id,
        method_id=method_id,
    )
    row = await payments.begin(desk.pool, new, desk)
    if not row.tries:
        return await cashier.advance(desk, row)
    taken = await payments.take(desk, row.id)
    if taken is None:
        return await payments.one(desk.pool, row.id)
    return await cashier.advance(desk, taken)


def payment_id(period: Period) -> UUID:
    """The same for the same try of the same period, and for no other payment ever."""
    at = period.starts_at.isoformat()
    text = f"tollgate:plan:{period.organization_id}:{at}:{period.declines}"
    return uuid5(NAMESPACE_URL, text)


async def _paid(desk: Desk, period: Period) -> Period:
    """The plan is the organization's from now on, once."""
    place = period.organization_id
    async with desk.pool.acquire() as connection, connection.transaction():
        before = await connection.fetchrow(LOCK, place)
        assert before is not None, "organizations are never deleted"
        ended = (place, period.starts_at, PeriodState.PAID, None, period.declines)
        row = await connection.fetchrow(_END_PENDING, *ended)
        if row is None:
            return period._replace(state=PeriodState.PAID)
        owner, person_id, method_id = period.payer
        payer = (owner.kind, owner.id, person_id, method_id)
        follows = (period.plan, period.billing, period.ends_at)
        await connection.execute(_SUBSCRIBE, place, period.starts_at, *follows, *payer)
        await connection.execute(_SET_PLAN, place, period.plan)
        said = Change(
            period.actor,
            "plan.renew" if period.is_renewal else "plan.change",
            str(place),
            before={"plan": before["plan"]},
            after={
                "plan": period.plan,
                "billing": period.billing,
                "paid": usd_text(period.amount),
                "until": period.ends_at.isoformat(),
            },
            address=period.address,
        )
        await append_change(connection, str(place), said)
        return period_of(row)


async def _declined(desk: Desk, period: Period, why: str, *, is_hard: bool) -> Period:
    """Try a renewal once more after a day; else it has failed, and the plan ends with it."""
    place = period.organization_id
    if period.is_renewal and not is_hard and not period.declines:
        again = desk.now() + RETRY
        async with desk.pool.acquire() as connection, connection.transaction():
            declined = (place, period.starts_at, why, again)
            if await connection.fetchval(_DECLINED, *declined) is not None:
                await give(connection, desk, [_alert(desk, period, why)])
        return period._replace(declines=1, decline=why)
    async with desk.pool.acquire() as connection, connection.transaction():
        await connection.fetchrow(LOCK, place)
        ended = (place, period.starts_at, PeriodState.FAILED, why, period.declines)
        row = await connection.fetchrow(_END_PENDING, *ended)
        if row is not None and period.is_renewal:
            reason = f"its payment was declined ({why})"
            await end(desk, connection, place, why=reason, is_told=True)
    return period._replace(state=PeriodState.FAILED, decline=why, is_hard=is_hard)


def _alert(desk: Desk, period: Period, why: str) -> Alert:
    """That a renewal was declined, and is tried once more."""
    facts = {
        "plan": plan_of(desk.config.plans, period.plan).label,
        "free": plan_of(desk.config.plans, FREE).label,
        "price": usd_text(period.amount),
        "decline": why,
    }
    subject = period.starts_at.isoformat()
    kind = AlertKind.PLAN_DECLINED
    return Alert(period.organization_id, kind, subject, facts, mail="plan_declined")


async def drop_renewal(connection: Connection, period: Period, now: datetime) -> bool:
    """Try a declined renewal no more; False: it is tried right now, or was."""
    key = (period.organization_id, period.starts_at)
    return await connection.fetchval(_DROP, *key, now + LEASE) is not None


def period_of(row: asyncpg.Record) -> Period:
    """A row of the table as values."""
    return Period(
        organization_id=row["organization_id"],
        starts_at=row["starts_at"],
        ends_at=row["ends_at"],
        anchor_at=row["anchor_at"],
        plan=row["plan"],
        billing=Billing(row["billing"]),
        price=row["price"],
        amount=row["amount"],
        is_renewal=row["is_renewal"],
        payer=Payer(
            Owner(OwnerKind(row["owner_kind"]), row["owner_id"]),
            row["person_id"],
            row["method_id"],
        ),
        actor=row["actor"],
        address=row["address"],
        state=PeriodState(row["state"]),
        declines=row["declines"],
        decline=row["decline"],
    )
