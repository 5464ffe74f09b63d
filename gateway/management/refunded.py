"""Refunds over HTTP: the operator gives a purchase back to the card or account it was paid with."""

from datetime import datetime
from uuid import UUID

import msgspec

from gateway.errors import BadRequest, NotFound
from gateway.management import payments, refunds
from gateway.management.desk import Desk
from gateway.management.payments import CENT
from gateway.management.purchases import Bought
from gateway.management.refunds import NewRefund, RefundRow, RefundState
from gateway.management.wallet import Reason
from gateway.rest.caller import OPERATOR
from gateway.rest.route import Answer, Asked, Nothing, Route
from ledger.money import Nanos


class PurchaseRefund(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is to go back to the payer."""

    reason: Reason
    amount_nanos: Bought | None = None  # null: all that is left


class RefundView(msgspec.Struct, frozen=True, kw_only=True):
    """A refund."""

    id: UUID
    purchase_id: UUID
    organization_id: UUID
    state: RefundState
    amount_nanos: int
    charged: int  # in the smallest coin of `currency`
    currency: str
    created_at: datetime
    ended_at: datetime | None


async def give_back(desk: Desk, asked: Asked[Nothing, PurchaseRefund]) -> Answer:
    """Take the credits out of the wallet, and give the money back to where it came from."""
    wanted, payment_id = asked.body, asked.id("purchase_id")
    assert asked.key is not None, "the route needs one"
    payment = await payments.one(desk.pool, payment_id)
    if payment is None or payment.purpose is payments.Purpose.PLAN:
        raise NotFound(f"There is no purchase {payment_id}.", code="purchase_not_found")
    new_id = refunds.refund_id(payment_id, asked.key)
    before = await refunds.find(desk, new_id)
    left = payment.amount - payment.refunded if before is None else before.amount
    amount = left if wanted.amount_nanos is None else wanted.amount_nanos
    if amount % CENT or not amount:
        raise BadRequest(
            "amount_nanos is in whole cents: a multiple of 10,000,000. Nothing may be left.",
            code="invalid_amount",
            param="amount_nanos",
        )
    new = NewRefund(new_id, Nanos(amount), asked.caller.actor, wanted.reason)
    return Answer(_view(await refunds.refund(desk, payment, new)))


def _view(row: RefundRow) -> RefundView:
    return RefundView(
        id=row.id,
        purchase_id=row.payment_id,
        organization_id=row.organization_id,
        state=row.state,
        amount_nanos=row.amount,
        charged=row.coins.amount,
        currency=row.coins.currency,
        created_at=row.created_at,
        ended_at=row.ended_at,
    )


ROUTES = (
    Route(
        method="POST",
        path="/operator/purchases/{purchase_id}/refunds",
        name="operator.refund_purchase",
        says="Give a purchase, or a part of it, back to the card or account it was paid with.",
        access=OPERATOR,
        handle=give_back,
        body=PurchaseRefund,
        answers=RefundView,
        status=201,
        is_once=True,
        needs_key=True,
    ),
)
