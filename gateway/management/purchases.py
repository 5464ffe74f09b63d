"""Buying credits over HTTP: by a saved method at once, or at a page of the processor's.

Who may is the policy's billing.purchase. With the organization's methods pays only who manages its
billing; everybody else pays with their own, or at a page, and nobody sees those but they.
"""

from datetime import datetime
from typing import Annotated, Any
from uuid import NAMESPACE_URL, UUID, uuid5

import msgspec

from gateway.bounds import USD_MAX
from gateway.display import Display, display, text
from gateway.errors import BadRequest, Forbidden, NotFound
from gateway.management import payments
from gateway.management.cashier import advance
from gateway.management.desk import Desk
from gateway.management.payments import CENT, NewPayment, Owner, OwnerKind, Purpose, Row, State
from gateway.payments.processor import MethodKind
from gateway.policy import Permission
from gateway.rest.caller import Caller, Scope, member
from gateway.rest.cursor import Page, Paged, cursor_at, moment_in
from gateway.rest.problem import PaymentDeclined
from gateway.rest.route import Answer, Asked, Nothing, Route
from ledger.money import Nanos, usd_text

_METHOD = """
    SELECT owner_kind, owner_id, kind FROM payment_method
    WHERE id = $1 AND ready_at IS NOT NULL AND removed_at IS NULL AND processor = $2
"""
# One's own, and the organization's for who reads its bills.
_SEEN = """
    SELECT * FROM payment
    WHERE organization_id = $1 AND purpose <> 'plan'
      AND ((owner_kind = 'organization' AND $2) OR person_id = $3)
"""
_ONE = _SEEN + "AND id = $4"
_LISTED = (
    _SEEN
    + """
      AND ($4::timestamptz IS NULL OR (created_at, id) < ($4, $5::uuid))
    ORDER BY created_at DESC, id DESC LIMIT $6
"""
)

Bought = Annotated[
    int, msgspec.Meta(ge=CENT, le=USD_MAX, description="nano-USD, in whole cents of 10,000,000")
]


class NewPurchase(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is to be bought, and how it is paid."""

    amount_nanos: Bought
    method_id: UUID | None = None  # a saved method; null: at a page, whose address is answered
    pay_as: OwnerKind | None = None  # at a page: whose the invoice is; null: one's own


class PurchaseView(msgspec.Struct, frozen=True, kw_only=True):
    """A purchase of credits, or a top-up."""

    id: UUID
    purpose: Purpose
    state: State
    is_credited: bool  # true: calls can be paid with it
    amount_nanos: int
    display: Display
    charged: int  # in the smallest coin of `currency`
    currency: str
    paid_by: OwnerKind
    method_id: UUID | None
    checkout_url: str | None  # where to pay, while it is open
    decline: str | None
    refunded_nanos: int
    actor: str
    created_at: datetime
    paid_at: datetime | None


async def buy(desk: Desk, asked: Asked[Nothing, NewPurchase]) -> Answer:
    """Pay, and have the credits. Without an answer of the processor's it is pending."""
    processor = payments.processor_of(desk)
    caller, wanted = asked.caller, asked.body
    assert asked.key is not None, "the route needs one"
    amount = checked(desk, caller, wanted.amount_nanos)
    owner, kind = await _payer(desk, caller, wanted, processor.name)
    new = NewPayment(
        id=_id(caller, asked.key),
        purpose=Purpose.PURCHASE,
        organization_id=caller.place.organization_id,
        owner=owner,
        amount=amount,
        coins=payments.coins_of(desk, amount, kind),
        actor=caller.actor,
        person_id=caller.person_id,
        method_id=wanted.method_id,
    )
    row = await payments.begin(desk.pool, new, desk)
    if row.tries:
        # Begun before: whoever did that has finished, is at it, or died and left it to us.
        taken = await payments.take(desk, row.id)
        row = row if taken is None else await advance(desk, taken)
    else:
        row = await advance(desk, row)
    if row.state is State.FAILED:
        raise PaymentDeclined(row.decline or "declined", is_hard=row.is_hard, payment=str(row.id))
    return Answer(view(desk, caller, row))


async def listed(desk: Desk, asked: Asked[Paged, Nothing]) -> Answer:
    """The newest first."""
    wanted = asked.query
    before = (None, None) if wanted.cursor is None else moment_in(wanted.cursor)
    rows = await desk.pool.fetch(_LISTED, *sight(asked.caller), *before, wanted.limit + 1)
    found = [view(desk, asked.caller, payments.row_of(row)) for row in rows[: wanted.limit]]
    more = len(rows) > wanted.limit
    after = cursor_at((found[-1].created_at, found[-1].id)) if more else None
    return Answer(Page[PurchaseView](data=found, next_cursor=after))


async def get(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """One of them."""
    return Answer(view(desk, asked.caller, await seen(desk, asked, "purchase_id")))


async def seen(desk: Desk, asked: Asked[Any, Any], name: str, state: State | None = None) -> Row:
    """The payment whose id the path has under this name; `NotFound` if it is none of theirs.

    `state`: it must be in this one, too.
    """
    payment_id = asked.id(name)
    row = await desk.pool.fetchrow(_ONE, *sight(asked.caller), payment_id)
    if row is None or state not in {None, row["state"]}:
        raise NotFound(f"There is no purchase {payment_id}.", code="purchase_not_found")
    return payments.row_of(row)


def view(desk: Desk, caller: Caller, row: Row) -> PurchaseView:
    """A payment as its payer sees it."""
    shown = display(
        desk.unit_of(caller.place.policy),
        has={"amount": row.amount},
        gone={"refunded": row.refunded},
    )
    return PurchaseView(
        id=row.id,
        purpose=row.purpose,
        state=row.state,
        is_credited=row.is_credited,
        amount_nanos=row.amount,
        display=shown,
        charged=row.coins.amount,
        currency=row.coins.currency,
        paid_by=row.owner.kind,
        method_id=row.method_id,
        checkout_url=row.checkout_url if row.state is State.OPEN else None,
        decline=row.decline,
        refunded_nanos=row.refunded,
        actor=row.actor,
        created_at=row.created_at,
        paid_at=row.paid_at,
    )


def sight(caller: Caller) -> tuple[UUID, bool, UUID | None]:
    """Whose purchases somebody sees: where, whether the organization's, and who they are."""
    place = caller.place
    return place.organization_id, place.allows(Permission.BILLING_READ), caller.person_id


def checked(desk: Desk, caller: Caller, amount: int) -> Nanos:
    """An amount that can be bought; `BadRequest` says which can."""
    if amount % CENT:
        raise BadRequest(
            "amount_nanos is in whole cents: a multiple of 10,000,000.",
            code="invalid_amount",
            param="amount_nanos",
        )
    least = desk.config.payments.purchase_min_nanos
    if amount < least:
        unit = desk.unit_of(caller.place.policy)
        raise BadRequest(
            f"The least that can be bought is {usd_text(least)}, which is {text(least, unit)}"
            f" {unit.name}: send at least {least} as amount_nanos.",
            code="amount_too_small",
            param="amount_nanos",
        )
    return Nanos(amount)


async def _payer(
    desk: Desk, caller: Caller, wanted: NewPurchase, processor: str
) -> tuple[Owner, MethodKind | None]:
    """Who pays, and with what."""
    own_person = caller.person_id
    if wanted.method_id is None:
        default = OwnerKind.ORGANIZATION if own_person is None else OwnerKind.PERSON
        kind = wanted.pay_as or default
        if kind is OwnerKind.ORGANIZATION:
            _check_manages(caller)
            return Owner(kind, caller.place.organization_id), None
        if own_person is None:
            raise Forbidden(
                "This is for people, and the token is an organization's.", code="not_a_person"
            )
        return Owner(kind, own_person), None
    row = await desk.pool.fetchrow(_METHOD, wanted.method_id, processor)
    mine = None if row is None else Owner(OwnerKind(row["owner_kind"]), row["owner_id"])
    if row is None or mine is None or mine.id not in {caller.place.organization_id, own_person}:
        raise NotFound(
            f"There is no payment method {wanted.method_id}.", code="payment_method_not_found"
        )
    if wanted.pay_as not in {None, mine.kind}:
        raise BadRequest("A saved method pays for its owner.", code="pay_as", param="pay_as")
    if mine.kind is OwnerKind.ORGANIZATION:
        _check_manages(caller)
    return mine, MethodKind(row["kind"])


def _check_manages(caller: Caller) -> None:
    if not caller.place.allows(Permission.BILLING_MANAGE):
        raise Forbidden(
            "With the organization's payment methods pays who manages its billing. Pay with your"
            " own, or at a page.",
            code="not_permitted",
            extra={"permission": Permission.BILLING_MANAGE.value},
        )


def _id(caller: Caller, key: str) -> UUID:
    """The same for the same key of the same caller at the same place."""
    who = f"{caller.person_id or caller.actor}@{caller.place.organization_id}"
    return uuid5(NAMESPACE_URL, f"tollgate:purchase:{who}:{key}")


ROUTES = (
    Route(
        method="POST",
        path="/purchases",
        name="purchases.buy",
        says="Buy credits, by a saved method at once or at a page of the payment processor's.",
        access=member(Permission.BILLING_PURCHASE, Scope.BILLING_WRITE),
        handle=buy,
        body=NewPurchase,
        answers=PurchaseView,
        status=201,
        is_once=True,
        needs_key=True,
        raises=(402,),
    ),
    Route(
        method="GET",
        path="/purchases",
        name="purchases.list",
        says="One's own purchases, and the organization's for who sees its billing.",
        access=member(None, Scope.BILLING_READ),
        handle=listed,
        query=Paged,
        answers=Page[PurchaseView],
    ),
    Route(
        method="GET",
        path="/purchases/{purchase_id}",
        name="purchases.get",
        says="One of them.",
        access=member(None, Scope.BILLING_READ),
        handle=get,
        answers=PurchaseView,
    ),
)
