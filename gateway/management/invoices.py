"""Invoices: what was paid, with what stands on it, and the processor's own documents.

Seen by who paid; those that the organization's methods paid, by who reads its billing, too.
"""

from datetime import datetime
from uuid import UUID

import msgspec

from gateway.errors import Unavailable
from gateway.management.billing import Invoicing, invoicing_in
from gateway.management.customers import known_customer
from gateway.management.desk import Desk
from gateway.management.payments import OwnerKind, Row, State, row_of
from gateway.management.purchases import seen, sight
from gateway.payments.processor import ProcessorAway, ProcessorRefused
from gateway.rest.caller import Scope, member
from gateway.rest.cursor import Page, Paged, cursor_at, moment_in
from gateway.rest.route import Answer, Asked, Nothing, Route

_LISTED = """
    SELECT * FROM payment
    WHERE organization_id = $1 AND state = 'paid'
      AND ((owner_kind = 'organization' AND $2) OR person_id = $3)
      AND ($4::timestamptz IS NULL OR (paid_at, id) < ($4, $5::uuid))
    ORDER BY paid_at DESC, id DESC LIMIT $6
"""
_BILLING = "SELECT invoicing FROM billing WHERE organization_id = $1"
_PAYER = """
    SELECT o.name AS organization, p.name, p.email FROM organization AS o
    LEFT JOIN person AS p ON p.id = $2
    WHERE o.id = $1
"""


class InvoiceView(msgspec.Struct, frozen=True, kw_only=True):
    """One payment that was made."""

    id: UUID  # the purchase's
    number: str
    purpose: str
    paid_by: OwnerKind
    amount_nanos: int
    charged: int  # in the smallest coin of `currency`
    currency: str
    refunded_nanos: int
    paid_at: datetime


class Paper(msgspec.Struct, frozen=True, kw_only=True):
    """What the processor made for it."""

    number: str
    url: str


class InvoiceWhole(msgspec.Struct, frozen=True, kw_only=True):
    """One of them, with whom it is for."""

    invoice: InvoiceView
    billed_to: str
    invoicing: Invoicing  # as the organization has it now; of a person's own, empty
    documents: list[Paper]


async def listed(desk: Desk, asked: Asked[Paged, Nothing]) -> Answer:
    """The newest first."""
    wanted = asked.query
    before = (None, None) if wanted.cursor is None else moment_in(wanted.cursor)
    rows = await desk.pool.fetch(_LISTED, *sight(asked.caller), *before, wanted.limit + 1)
    found = [_view(row_of(row)) for row in rows[: wanted.limit]]
    more = len(rows) > wanted.limit
    after = cursor_at((found[-1].paid_at, found[-1].id)) if more else None
    return Answer(Page[InvoiceView](data=found, next_cursor=after))


async def get(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """One of them, with the processor's documents."""
    row = await seen(desk, asked, "purchase_id", State.PAID)
    is_own = row.owner.kind is OwnerKind.PERSON
    payer = await desk.pool.fetchrow(_PAYER, row.organization_id, row.person_id)
    assert payer is not None, "organizations are never deleted"
    text = None if is_own else await desk.pool.fetchval(_BILLING, row.organization_id)
    invoicing = invoicing_in(text)
    name = (payer["name"] or payer["email"]) if is_own else payer["organization"]
    return Answer(
        InvoiceWhole(
            invoice=_view(row),
            billed_to=invoicing.name or str(name or ""),
            invoicing=invoicing,
            documents=await _documents(desk, row),
        )
    )


async def _documents(desk: Desk, row: Row) -> list[Paper]:
    processor = desk.processor
    if processor is None or processor.name != row.processor:
        return []
    assert row.reference is not None, "what is paid has an id"
    try:
        customer = await known_customer(desk, row.owner)
        made = () if customer is None else await processor.documents(customer)
        receipt = await processor.receipt(row.reference)
    except (ProcessorAway, ProcessorRefused) as error:
        raise Unavailable(
            f"The payment processor does not show its documents now ({error}). Try again.",
            code="processor_away",
        ) from error
    found = [(one.number, one.url) for one in made if one.order == str(row.id)]
    return [
        Paper(number=number, url=url)
        for number, url in [*found, ("receipt", receipt)]
        if url is not None
    ]


def _view(row: Row) -> InvoiceView:
    assert row.paid_at is not None, "only what is paid has an invoice"
    return InvoiceView(
        id=row.id,
        number=f"{row.paid_at:%Y%m%d}-{str(row.id)[:8].upper()}",
        purpose=row.purpose.value,
        paid_by=row.owner.kind,
        amount_nanos=row.amount,
        charged=row.coins.amount,
        currency=row.coins.currency,
        refunded_nanos=row.refunded,
        paid_at=row.paid_at,
    )


ROUTES = (
    Route(
        method="GET",
        path="/invoices",
        name="invoices.list",
        says="What one paid oneself, and the organization's for who sees its billing.",
        access=member(None, Scope.BILLING_READ),
        handle=listed,
        query=Paged,
        answers=Page[InvoiceView],
    ),
    Route(
        method="GET",
        path="/invoices/{purchase_id}",
        name="invoices.get",
        says="One of them, with the payment processor's documents.",
        access=member(None, Scope.BILLING_READ),
        handle=get,
        answers=InvoiceWhole,
    ),
)
