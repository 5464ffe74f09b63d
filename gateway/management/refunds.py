"""Refunds of payments: the credits leave the wallet, then the money goes back to the payer. Once.

The row is first, and takes its part of the payment, so that no two together give back more than was
paid. Then the credits are withheld and taken as every withdrawal is; only then is the processor
asked, under the row's id. If it gives the refund up, the credits return. `next_at` says when the
job takes over from whoever died in between.
"""

import logging
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple
from uuid import NAMESPACE_URL, UUID, uuid5

import asyncpg

from gateway.errors import Conflict, GatewayError, Unavailable
from gateway.management import credits as money
from gateway.management.alerts import AlertKind
from gateway.management.desk import Desk
from gateway.management.payments import LEASE, Row, pause_of, processor_of
from gateway.management.receipts import Receipt, told
from gateway.payments.processor import Coins, ProcessorAway, ProcessorRefused, Progress, Returned
from ledger.money import Nanos
from ledger.withdrawals import WithdrawalKind

log = logging.getLogger(__name__)

_RESERVE = """
    UPDATE payment SET refunded = refunded + $2
    WHERE id = $1 AND state = 'paid' AND ended_at IS NOT NULL AND refunded + $2 <= amount
    RETURNING refunded
"""
_GIVE_BACK = "UPDATE payment SET refunded = refunded - $2 WHERE id = $1"
_BEGIN = """
    INSERT INTO payment_refund (
        id, payment_id, amount, charged, actor, reason, created_at, next_at
    ) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
"""
_ONE = """
    SELECT r.*, p.organization_id, p.processor, p.currency, p.reference AS payment_reference,
           p.owner_kind = 'organization' AS is_organizations
    FROM payment_refund AS r JOIN payment AS p ON p.id = r.payment_id
    WHERE r.id = $1
"""
_TAKE_SOME = """
    UPDATE payment_refund SET next_at = $1, tries = tries + 1
    WHERE id IN (
        SELECT r.id FROM payment_refund AS r JOIN payment AS p ON p.id = r.payment_id
        WHERE r.ended_at IS NULL AND r.next_at <= $2 AND p.processor = $3
        ORDER BY r.next_at LIMIT $4 FOR UPDATE OF r SKIP LOCKED
    )
    RETURNING id
"""
_TAKE = """
    UPDATE payment_refund SET next_at = $2, tries = tries + 1
    WHERE id = $1 AND next_at <= $3 AND ended_at IS NULL
    RETURNING id
"""
_MOVE = """
    UPDATE payment_refund
    SET state = $3, reference = coalesce($4, reference), next_at = $5, ended_at = $6
    WHERE id = $1 AND state = $2
    RETURNING id
"""


class RefundState(StrEnum):
    """Of a row."""

    PENDING = "pending"  # nothing has moved
    HELD = "held"  # the credits are out of the wallet, and the processor is asked
    REFUNDED = "refunded"  # the payer has the money, or will in some days
    REFUSED = "refused"  # the wallet has not that much free; nothing has moved
    RETURNED = "returned"  # the processor gave it up, and the credits are back


class RefundRow(NamedTuple):
    """A refund as it is kept."""

    id: UUID
    payment_id: UUID
    organization_id: UUID
    is_organizations: bool  # it had paid, and not somebody for it
    amount: Nanos
    coins: Coins
    actor: str
    reason: str
    state: RefundState
    processor: str
    payment_reference: str
    reference: str | None
    created_at: datetime
    tries: int
    ended_at: datetime | None


class NewRefund(NamedTuple):
    """What is to go back."""

    id: UUID
    amount: Nanos
    actor: str
    reason: str


def refund_id(payment_id: UUID, key: str) -> UUID:
    """The same for the same key."""
    return uuid5(NAMESPACE_URL, f"tollgate:refund:{payment_id}:{key}")


async def refund(desk: Desk, payment: Row, new: NewRefund) -> RefundRow:
    """Give a part of a payment back, or all; the row as far as it came now.

    Raises `Conflict` for more than is left of the payment or free in the wallet, or an id that was
    used for something else. What the ledger or the processor cannot do now is left to the job.
    """
    if payment.processor != processor_of(desk).name:
        raise Conflict(
            f"It was paid by {payment.processor}, which is not configured any more.",
            code="another_processor",
        )
    row = await find(desk, new.id)
    if row is None:
        row = await _begun(desk, payment, new)
    elif (row.payment_id, row.amount) != (payment.id, new.amount):
        raise Conflict(
            "This Idempotency-Key was used for another refund. Use a new one for each.",
            code="idempotency_key_reused",
        )
    elif await desk.pool.fetchval(_TAKE, new.id, desk.now() + LEASE, desk.now()) is None:
        return row  # done, or somebody is at it
    try:
        return await advance(desk, row)
    except Unavailable as error:
        said = {"refund": str(row.id), "reason": error.message, "cause": "payment"}
        log.warning("a refund waits for the ledger", extra=said)
        return row


async def _begun(desk: Desk, payment: Row, new: NewRefund) -> RefundRow:
    now, before = desk.now(), payment.refunded
    try:
        async with desk.pool.acquire() as connection, connection.transaction():
            after = await connection.fetchval(_RESERVE, payment.id, new.amount)
            if after is None:
                raise Conflict(
                    f"Of this payment {payment.amount - before} nano-USD are left to give back,"
                    f" and it is {payment.state.value}.",
                    code="not_refundable",
                    extra={"refundable_nanos": payment.amount - before},
                )
            # In whole coins, and all parts together what was charged: each from the sum before it.
            coins = _coins(payment, after) - _coins(payment, after - new.amount)
            if not coins:
                raise Conflict("That is less than a coin.", code="not_refundable")
            row = (new.id, payment.id, new.amount, coins, new.actor, new.reason, now, now + LEASE)
            await connection.execute(_BEGIN, *row)
    except asyncpg.UniqueViolationError:
        pass  # asked for twice at once: the other's row is ours
    found = await find(desk, new.id)
    assert found is not None, "it was written"
    return found


def _coins(payment: Row, amount: int) -> int:
    """What of the charge belongs to this part of the amount."""
    return payment.coins.amount * amount // payment.amount


async def advance(desk: Desk, row: RefundRow) -> RefundRow:
    """Bring a refund as far as it goes now; raises what `refund` does, and `Unavailable`."""
    if row.state is RefundState.PENDING:
        row = await _hold(desk, row)
    if row.state is RefundState.HELD:
        row = await _send_back(desk, row)
    return row


async def _hold(desk: Desk, row: RefundRow) -> RefundRow:
    """Take the credits out; what is refused takes nothing of the payment any more."""
    taking = money.Taking(
        row.organization_id,
        row.amount,
        WithdrawalKind.REFUND,
        row.reason,
        row.actor,
        idempotency_key=f"payment refund {row.id}",
    )
    try:
        await money.take(desk.pool, desk.redis, taking)
    except Conflict:
        async with desk.pool.acquire() as connection, connection.transaction():
            ended = (None, desk.now(), desk.now())
            moved = (row.id, row.state, RefundState.REFUSED)
            if await connection.fetchval(_MOVE, *moved, *ended) is not None:
                await connection.execute(_GIVE_BACK, row.payment_id, row.amount)
        raise
    return await _moved(desk, row, RefundState.HELD)


async def _send_back(desk: Desk, row: RefundRow) -> RefundRow:
    try:
        done = await processor_of(desk).refund(
            str(row.id), payment=row.payment_reference, coins=row.coins
        )
    except ProcessorAway as error:
        said = {"refund": str(row.id), "reason": str(error), "cause": "processor"}
        log.warning("the payment processor does not answer", extra=said)
        return await _moved(desk, row, RefundState.HELD)
    except ProcessorRefused as error:
        said = {"refund": str(row.id), "reason": str(error), "code": error.code}
        log.warning("the payment processor refuses a refund", extra={**said, "cause": "processor"})
        done = Returned("", Progress.DECLINED)
    match done.progress:
        case Progress.PAID:
            return await _moved(desk, row, RefundState.REFUNDED, done.reference)
        case Progress.DECLINED:
            return await _return(desk, row, done.reference)
        case Progress.OPEN | Progress.PROCESSING:
            return await _moved(desk, row, RefundState.HELD, done.reference)


async def _return(desk: Desk, row: RefundRow, reference: str) -> RefundRow:
    """The credits come back, once; then the row says so."""
    grant = money.Grant(
        row.organization_id,
        row.amount,
        f"refund {row.id} was given up by the payment processor",
        row.actor,
        idempotency_key=f"payment refund {row.id} returned",
    )
    await money.adjust(desk.pool, desk.redis, grant)
    async with desk.pool.acquire() as connection, connection.transaction():
        ended = (reference or None, desk.now(), desk.now())
        if await connection.fetchval(_MOVE, row.id, row.state, RefundState.RETURNED, *ended):
            await connection.execute(_GIVE_BACK, row.payment_id, row.amount)
    found = await find(desk, row.id)
    assert found is not None, "refunds are never deleted"
    return found


async def _moved(
    desk: Desk, row: RefundRow, state: RefundState, reference: str | None = None
) -> RefundRow:
    now = desk.now()
    is_end = state is RefundState.REFUNDED
    next_at = now + (LEASE if row.state is RefundState.PENDING else pause_of(row.tries))
    move = (row.id, row.state, state, reference, next_at, now if is_end else None)
    async with desk.pool.acquire() as connection, connection.transaction():
        has_moved = await connection.fetchval(_MOVE, *move) is not None
        if has_moved and is_end and row.is_organizations:
            ended = (row.organization_id, row.id, row.payment_id, row.amount, row.coins)
            await told(connection, desk, Receipt(AlertKind.PURCHASE_REFUNDED, *ended))
    found = await find(desk, row.id)
    assert found is not None, "refunds are never deleted"
    return found


async def finish_some(desk: Desk, count: int) -> int:
    """Advance those that were left half-way; how many were due."""
    now = desk.now()
    taken = (now + LEASE, now, processor_of(desk).name, count)
    rows = await desk.pool.fetch(_TAKE_SOME, *taken)
    for row in rows:
        found = await find(desk, row["id"])
        assert found is not None, "refunds are never deleted"
        try:
            await advance(desk, found)
        except (Conflict, Unavailable) as error:
            said = {"refund": str(found.id), "reason": error.message, "cause": "payment"}
            log.warning("a refund is not made", extra=said)
        except GatewayError:
            log.exception("bug in a refund", extra={"refund": str(found.id)})
    return len(rows)


async def find(desk: Desk, row_id: UUID) -> RefundRow | None:
    """A refund; None: there is none."""
    row = await desk.pool.fetchrow(_ONE, row_id)
    if row is None:
        return None
    return RefundRow(
        id=row["id"],
        payment_id=row["payment_id"],
        is_organizations=row["is_organizations"],
        organization_id=row["organization_id"],
        amount=Nanos(row["amount"]),
        coins=Coins(row["charged"], row["currency"]),
        actor=row["actor"],
        reason=row["reason"],
        state=RefundState(row["state"]),
        processor=row["processor"],
        payment_reference=row["payment_reference"],
        reference=row["reference"],
        created_at=row["created_at"],
        tries=row["tries"],
        ended_at=row["ended_at"],
    )
