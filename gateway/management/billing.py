"""Billing settings: who is written to about money, and what stands on invoices."""

from typing import Annotated, Any
from uuid import UUID

import msgspec
from msgspec import UNSET, UnsetType

from gateway.management.audit import note
from gateway.management.desk import Desk
from gateway.management.people import Email
from gateway.policy import Permission
from gateway.rest.caller import Scope, member
from gateway.rest.problem import ChangedMeanwhile
from gateway.rest.route import Answer, Asked, Nothing, Route

CONTACTS_MAX = 10

_ONE = """
    SELECT o.billing_email, o.version AS organization_version, b.contacts, b.invoicing, b.version
    FROM organization AS o LEFT JOIN billing AS b ON b.organization_id = o.id
    WHERE o.id = $1
"""
_EMAIL = "UPDATE organization SET billing_email = $2, version = version + 1 WHERE id = $1"
_SET = """
    INSERT INTO billing AS b (organization_id, contacts, invoicing) VALUES ($1, $2, $3)
    ON CONFLICT (organization_id) DO UPDATE
    SET contacts = EXCLUDED.contacts, invoicing = EXCLUDED.invoicing, version = b.version + 1
    WHERE b.version = $4
    RETURNING version
"""

Line = Annotated[str, msgspec.Meta(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]


class Invoicing(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What stands on invoices."""

    name: Line = ""  # "": the organization's
    address: Annotated[list[Line], msgspec.Meta(max_length=6)] = []
    tax_id: Line = ""
    reference: Line = ""  # a purchase order's number, or what else the payer wants to read


class BillingChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is to be changed; what is left out stays."""

    billing_email: Email | UnsetType | None = UNSET
    contacts: Annotated[list[Email], msgspec.Meta(max_length=CONTACTS_MAX)] | UnsetType = UNSET
    invoicing: Invoicing | UnsetType = UNSET  # all of it


class BillingView(msgspec.Struct, frozen=True, kw_only=True):
    """The settings."""

    billing_email: str | None
    contacts: list[str]
    invoicing: Invoicing
    version: int  # 0: nothing was set


def invoicing_in(text: str | None) -> Invoicing:
    """That of a row; of none, or what a newer release wrote, what can be read of it."""
    said: dict[str, Any] = {} if text is None else msgspec.json.decode(text)
    known = {name: said[name] for name in Invoicing.__struct_fields__ if name in said}
    return msgspec.convert(known, Invoicing)


async def get(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """The settings."""
    view = await _view(desk, asked.caller.place.organization_id)
    return Answer(view, view.version)


async def change(desk: Desk, asked: Asked[Nothing, BillingChange]) -> Answer:
    """Change them."""
    organization_id, wanted = asked.caller.place.organization_id, asked.body
    before = await _view(desk, organization_id)
    expected = before.version if asked.if_match is None else asked.if_match
    if expected != before.version:
        raise ChangedMeanwhile
    contacts = before.contacts if wanted.contacts is UNSET else wanted.contacts
    invoicing = before.invoicing if wanted.invoicing is UNSET else wanted.invoicing
    text = msgspec.json.encode(invoicing).decode()
    async with desk.pool.acquire() as connection, connection.transaction():
        done = await connection.fetchval(_SET, organization_id, contacts, text, expected)
        if done is None:
            raise ChangedMeanwhile
        if wanted.billing_email is not UNSET:
            await connection.execute(_EMAIL, organization_id, wanted.billing_email)
        said = {"before": msgspec.to_builtins(before), "after": msgspec.to_builtins(wanted)}
        await note(connection, asked, "billing.update", **said)
    view = await _view(desk, organization_id)
    return Answer(view, view.version)


async def _view(desk: Desk, organization_id: UUID) -> BillingView:
    row = await desk.pool.fetchrow(_ONE, organization_id)
    assert row is not None, "the guard has seen it"
    return BillingView(
        billing_email=row["billing_email"],
        contacts=list(row["contacts"] or ()),
        invoicing=invoicing_in(row["invoicing"]),
        version=row["version"] or 0,
    )


ROUTES = (
    Route(
        method="GET",
        path="/billing",
        name="billing.get",
        says="Who is written to about money, and what stands on invoices.",
        access=member(Permission.BILLING_READ, Scope.BILLING_READ),
        handle=get,
        answers=BillingView,
    ),
    Route(
        method="PATCH",
        path="/billing",
        name="billing.change",
        says="Change that.",
        access=member(Permission.BILLING_MANAGE, Scope.BILLING_WRITE),
        handle=change,
        body=BillingChange,
        answers=BillingView,
    ),
)
