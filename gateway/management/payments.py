"""Payments: money that comes in by the processor, and is credited once.

The row is first, in Postgres. Then the processor is asked, under the row's id. What it answers is
settled into the row, by whoever hears of it: the request, the job, an event; several at once, in
any order. What is paid is credited under the processor's own id of the payment, which the book
takes once. So each step may be cut off or repeated, and `next_at` says when the job takes over.
"""

import logging
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

import asyncpg

from gateway.errors import Conflict, GatewayError
from gateway.management import credits as money
from gateway.management.alerts import AlertKind
from gateway.management.desk import Desk
from gateway.management.receipts import Receipt, told
from gateway.management.top_up_ends import TopUpEnd, concluded
from gateway.payments.processor import Coins, MethodKind, Payment, Processor, Progress
from ledger.money import Nanos
from ledger.postgres import Connection

log = logging.getLogger(__name__)

LEASE = timedelta(seconds=60)  # longer than any answer of the processor's takes
CENT = 10_000_000  # nano-USD
_PAUSE_MAX = timedelta(hours=1)

# Rows are read by the names of their columns, in `row_of`.
_BEGIN = """
    INSERT INTO payment (
        id, purpose, processor, organization_id, owner_kind, owner_id, person_id, method_id,
        amount, charged, currency, actor, created_at, next_at
    ) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
    ON CONFLICT (id) DO NOTHING
    RETURNING *
"""
_ONE = "SELECT * FROM payment WHERE id = $1"
# Of two that take it, one gets it; it is whoever's took it last for the time of a lease.
_TAKE = """
    UPDATE payment SET next_at = $2, tries = tries + 1
    WHERE id = $1 AND next_at <= $3 AND ended_at IS NULL
    RETURNING *
"""
_TAKE_SOME = """
    UPDATE payment SET next_at = $1, tries = tries + 1
    WHERE id IN (
        SELECT id FROM payment WHERE ended_at IS NULL AND next_at <= $2 AND processor = $3
        ORDER BY next_at LIMIT $4 FOR UPDATE SKIP LOCKED
    )
    RETURNING *
"""
_LATER = "UPDATE payment SET next_at = $2 WHERE id = $1 AND ended_at IS NULL"
# What was paid is paid, whatever was believed before; but only if it is what was asked for.
_PAID = """
    UPDATE payment
    SET state = 'paid', reference = $2, paid_at = $3::timestamptz, decline = NULL, is_hard = false,
        next_at = $4, ended_at = CASE WHEN purpose = 'plan' THEN $3::timestamptz END
    WHERE id = $1 AND state <> 'paid' AND processor = $5 AND charged = $6 AND currency = $7
    RETURNING *
"""
_FAILED = """
    UPDATE payment
    SET state = 'failed', reference = coalesce(reference, $2), decline = $3, is_hard = $4,
        ended_at = $5
    WHERE id = $1 AND state NOT IN ('paid', 'failed') AND processor = $6
      AND (reference IS NULL OR $2::text IS NULL OR reference = $2)
    RETURNING *
"""
_WAITS = """
    UPDATE payment
    SET state = $2, reference = coalesce(reference, $3), checkout = coalesce(checkout, $4),
        checkout_url = coalesce($5, checkout_url), next_at = $6
    WHERE id = $1 AND processor = $7 AND (
        state IN ('pending', 'open') OR (state = 'processing' AND $2 = 'processing')
    )
    RETURNING *
"""
_CREDITED = """
    UPDATE payment SET ended_at = $2 WHERE id = $1 AND state = 'paid' AND ended_at IS NULL
    RETURNING *
"""


class Purpose(StrEnum):
    """What is paid for."""

    PURCHASE = "purchase"  # credits, asked for by somebody
    TOP_UP = "top_up"  # credits, by itself
    PLAN = "plan"  # a month or a year of one; nothing is credited


class OwnerKind(StrEnum):
    """Whose a method is, and who gets the invoice."""

    ORGANIZATION = "organization"
    PERSON = "person"


class State(StrEnum):
    """Of a row."""

    PENDING = "pending"  # the processor's answer is not known
    OPEN = "open"  # the payer is at a page
    PROCESSING = "processing"  # a bank takes days
    PAID = "paid"
    FAILED = "failed"


class Owner(NamedTuple):
    """An organization or a person."""

    kind: OwnerKind
    id: UUID

    @property
    def is_organization(self) -> bool:
        """Whether the organization pays, and not somebody for it."""
        return self.kind is OwnerKind.ORGANIZATION


class NewPayment(NamedTuple):
    """What is to be paid. Beginning it again under the same id is beginning it once."""

    id: UUID
    purpose: Purpose
    organization_id: UUID
    owner: Owner
    amount: Nanos  # what it is worth to us
    coins: Coins  # what the payer is charged
    actor: str
    person_id: UUID | None = None
    method_id: UUID | None = None  # None: by a page


class Row(NamedTuple):
    """A payment as it is kept."""

    id: UUID
    purpose: Purpose
    processor: str
    organization_id: UUID
    owner: Owner
    person_id: UUID | None
    method_id: UUID | None
    amount: Nanos
    coins: Coins
    actor: str
    state: State
    reference: str | None
    checkout: str | None
    checkout_url: str | None
    decline: str | None
    is_hard: bool
    refunded: Nanos
    created_at: datetime
    tries: int  # by the job, and by who asked again
    paid_at: datetime | None
    ended_at: datetime | None

    @property
    def is_credited(self) -> bool:
        """Whether calls can be paid with it."""
        return self.state is State.PAID and self.ended_at is not None


def processor_of(desk: Desk) -> Processor:
    """The configured one; `Conflict` if there is none."""
    if desk.processor is None:
        raise Conflict(
            "Nothing can be paid here: no payment processor is configured. Ask whoever runs this"
            " installation for credits; they set payments.processor.",
            code="payments_off",
        )
    return desk.processor


def coins_of(desk: Desk, amount: Nanos, kind: MethodKind | None) -> Coins:
    """What is charged for an amount of whole cents: dollars, but for SEPA, which has euro only."""
    cents = amount // CENT
    if kind is not MethodKind.SEPA_DEBIT:
        return Coins(cents, "usd")
    rate = desk.config.payments.nano_eur_per_usd
    if rate is None:
        raise Conflict(
            "SEPA debits euro, and the price of a dollar in euro is not configured here"
            " (payments.eur_per_usd). Pay with another method.",
            code="no_euro",
        )
    return Coins(-(-cents * rate // 10**9), "eur")


async def begin(connection: Connection | asyncpg.Pool, new: NewPayment, desk: Desk) -> Row:
    """Write the row, or find the one that is there; it is the caller's for the time of a lease.

    The caller of a new one (`tries` 0 and pending) advances it. Raises `Conflict` if the id was
    used for something else, and `asyncpg.UniqueViolationError` for a second top-up in flight.
    """
    now = desk.now()
    row = await connection.fetchrow(
        _BEGIN,
        *(new.id, new.purpose, processor_of(desk).name, new.organization_id, new.owner.kind),
        *(new.owner.id, new.person_id, new.method_id, new.amount, *new.coins, new.actor, now),
        now + LEASE,
    )
    if row is not None:
        return row_of(row)
    found = await one(connection, new.id)
    assert found is not None, "payments are never deleted"
    same = (new.organization_id, new.owner, new.amount, new.method_id)
    if (found.organization_id, found.owner, found.amount, found.method_id) != same:
        raise Conflict(
            "This Idempotency-Key was used for another payment. Use a new one for each.",
            code="idempotency_key_reused",
        )
    return found._replace(tries=max(1, found.tries))


async def one(connection: Connection | asyncpg.Pool, payment_id: UUID) -> Row | None:
    """A payment; None: there is none."""
    row = await connection.fetchrow(_ONE, payment_id)
    return None if row is None else row_of(row)


async def take(desk: Desk, payment_id: UUID) -> Row | None:
    """Work on a payment, unless somebody else does or nothing is left to do."""
    now = desk.now()
    row = await desk.pool.fetchrow(_TAKE, payment_id, now + LEASE, now)
    return None if row is None else row_of(row)


async def take_some(desk: Desk, count: int) -> list[Row]:
    """Those that were left half-way, or wait for a bank or a payer, and are due."""
    now = desk.now()
    name = processor_of(desk).name
    rows = await desk.pool.fetch(_TAKE_SOME, now + LEASE, now, name, count)
    return [row_of(row) for row in rows]


async def later(
    connection: Connection | asyncpg.Pool, row: Row, now: datetime, pause: timedelta
) -> None:
    """Leave it to the job, after so long."""
    await connection.execute(_LATER, row.id, now + pause)


async def settle(desk: Desk, payment: Payment, *, processor: str) -> Row | None:
    """What became of a payment, into its row, and the credit; the row afterwards.

    Repeats, delays and changes of order do no harm: paid is for good, and failed but for paid.
    None: there is no such payment of ours.
    """
    try:
        payment_id = UUID(payment.order)
    except ValueError:
        return None
    now = desk.now()
    async with desk.pool.acquire() as connection, connection.transaction():
        changed = await _settle(connection, payment_id, payment, processor=processor, now=now)
        row = await one(connection, payment_id) if changed is None else row_of(changed)
        if changed is not None and row is not None:
            await _concluded(connection, desk, row)
    if row is None or row.processor != processor:
        return None
    if payment.progress is Progress.PAID:
        _complain(row, payment)
    return await credit(desk, row)


async def _settle(
    connection: Connection,
    payment_id: UUID,
    payment: Payment,
    *,
    processor: str,
    now: datetime,
) -> asyncpg.Record | None:
    reference = payment.reference
    match payment.progress:
        case Progress.PAID:
            assert reference is not None, "what is paid has an id"
            paid = (payment_id, reference, now, now + LEASE, processor, *payment.coins)
            return await connection.fetchrow(_PAID, *paid)
        case Progress.DECLINED:
            why = payment.decline or "declined"
            failed = (payment_id, reference, why, payment.is_hard, now, processor)
            return await connection.fetchrow(_FAILED, *failed)
        case Progress.OPEN | Progress.PROCESSING:
            known = (reference, payment.checkout, payment.url)
            state = State(payment.progress.value)
            soon = now + pause_of(0)
            return await connection.fetchrow(_WAITS, payment_id, state, *known, soon, processor)


async def _concluded(connection: Connection, desk: Desk, row: Row) -> None:
    """What depends on how it ended; only who has just ended it comes here."""
    if row.purpose is Purpose.TOP_UP and row.state in {State.PAID, State.FAILED}:
        decline = None if row.state is State.PAID else row.decline or "declined"
        ended = (row.organization_id, row.id, row.method_id, row.amount, decline, row.is_hard)
        await concluded(connection, desk, TopUpEnd(*ended))
    if row.purpose is Purpose.PURCHASE and row.state is State.PAID and row.owner.is_organization:
        paid = (AlertKind.PURCHASE_PAID, row.organization_id, row.id, row.id)
        await told(connection, desk, Receipt(*paid, row.amount, row.coins))


def _complain(row: Row, payment: Payment) -> None:
    """Somebody must look at money that came and is not what was asked for."""
    # A cause of its own: no other line, least of all one that strangers can cause, keeps it quiet.
    own = f"payment {row.id}"
    said = {"payment": str(row.id), "reference": payment.reference, "cause": own}
    if row.coins != payment.coins:
        coins = {"paid": list(payment.coins), "asked": list(row.coins)}
        log.error("a payment of another amount is not credited", extra={**said, **coins})
    elif row.reference != payment.reference:
        other = {"credited": row.reference}
        log.error("a payment was paid twice; refund the second one", extra={**said, **other})


async def credit(desk: Desk, row: Row) -> Row:
    """Give what was paid for to the wallet, once; gateways know it before this returns."""
    if row.state is not State.PAID or row.ended_at is not None:
        return row
    grant = money.Grant(
        row.organization_id,
        row.amount,
        f"{row.purpose.value.replace('_', '-')} {row.id}",
        row.actor,
        idempotency_key=f"{row.processor}:{row.reference}",
    )
    try:
        await money.pay(desk.pool, desk.redis, grant)
    except GatewayError as error:
        # Paid it is: the payer is not told of an error, and the job goes on trying.
        said = {"payment": str(row.id), "reason": error.message, "cause": "payment"}
        log.error("a payment cannot be credited", extra=said)  # noqa: TRY400 - the reason says it all
        await later(desk.pool, row, desk.now(), pause_of(row.tries))
        return row
    changed = await desk.pool.fetchrow(_CREDITED, row.id, desk.now())
    found = await one(desk.pool, row.id) if changed is None else row_of(changed)
    assert found is not None, "payments are never deleted"
    return found


def pause_of(tries: int) -> timedelta:
    """How long until the job looks again: seconds at first, an hour at most."""
    return min(timedelta(seconds=2 ** min(tries + 1, 12)), _PAUSE_MAX)


def row_of(row: asyncpg.Record) -> Row:
    """A row of the table as values."""
    return Row(
        id=row["id"],
        purpose=Purpose(row["purpose"]),
        processor=row["processor"],
        organization_id=row["organization_id"],
        owner=Owner(OwnerKind(row["owner_kind"]), row["owner_id"]),
        person_id=row["person_id"],
        method_id=row["method_id"],
        amount=Nanos(row["amount"]),
        coins=Coins(row["charged"], row["currency"]),
        actor=row["actor"],
        state=State(row["state"]),
        reference=row["reference"],
        checkout=row["checkout"],
        checkout_url=row["checkout_url"],
        decline=row["decline"],
        is_hard=row["is_hard"],
        refunded=Nanos(row["refunded"]),
        created_at=row["created_at"],
        tries=row["tries"],
        paid_at=row["paid_at"],
        ended_at=row["ended_at"],
    )
