"""What the operator does to organizations over HTTP: credits, refunds, transfers, limits, a stop.

Money is booked under the Idempotency-Key itself, so that it moves once even if the answer that was
remembered for the key is gone.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated
from uuid import UUID

import asyncpg
import msgspec
from msgspec import UNSET, UnsetType

from gateway.errors import BadRequest, Conflict, NotFound
from gateway.management import api_keys
from gateway.management import credits as money
from gateway.management.desk import Desk
from gateway.management.limits import Limits, limits_in
from gateway.management.wallet import Amount, Reason, TransferView, transferred
from gateway.rest.caller import OPERATOR
from gateway.rest.cursor import Page, Paged, cursor_at, moment_in
from gateway.rest.problem import ChangedMeanwhile
from gateway.rest.route import Answer, Asked, Nothing, Route
from ledger.money import NANOS_MAX, Nanos
from ledger.trail import Change, append_change
from ledger.withdrawals import WithdrawalKind

SignedAmount = Annotated[
    int, msgspec.Meta(ge=-NANOS_MAX, le=NANOS_MAX, description="nano-USD; not 0")
]

PlanName = Annotated[str, msgspec.Meta(min_length=1, max_length=64, examples=["enterprise"])]

_COLUMNS = """
    SELECT o.id, o.name, o.kind, o.partition, o.plan, o.limits, o.suspended_at, o.deleted_at,
           o.created_at, o.version, w.base, w.spent
    FROM organization AS o JOIN wallet AS w ON w.id = o.id
"""
_ONE = _COLUMNS + "WHERE o.id = $1"
_LISTED = (
    _COLUMNS
    + """
    WHERE (o.created_at, o.id) > ($1::timestamptz, $2::uuid)
    ORDER BY o.created_at, o.id LIMIT $3
"""
)
_SET = """
    UPDATE organization
    SET limits = $2, version = version + 1, plan = $5,
        suspended_at = CASE WHEN $3 THEN coalesce(suspended_at, now()) END
    WHERE id = $1 AND version = $4
    RETURNING id
"""


class CreditKind(StrEnum):
    """Why the operator gives."""

    GRANT = "grant"
    ADJUSTMENT = "adjustment"  # puts a balance right, up or down


class Credit(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is to be given; below zero, only as an adjustment, what is to be taken."""

    amount_nanos: SignedAmount
    reason: Reason
    kind: CreditKind = CreditKind.GRANT


class Refund(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What leaves a wallet because it is given back to the payer."""

    amount_nanos: Amount
    reason: Reason


class Transfer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is to go from one organization to another."""

    from_organization_id: UUID
    to_organization_id: UUID
    amount_nanos: Amount
    reason: Reason


class OperatedChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is to be changed; what is left out stays. `limits` replaces all of them."""

    is_suspended: bool | UnsetType = UNSET  # true: its keys are refused until it is false
    limits: Limits | UnsetType = UNSET
    plan: PlanName | UnsetType = UNSET  # by its name in config.yaml; nobody pays for it


class OperatedView(msgspec.Struct, frozen=True, kw_only=True):
    """An organization as its operator sees it. Money in nano-USD."""

    id: UUID
    name: str
    kind: str  # organization | personal
    is_suspended: bool
    plan: str
    limits: Limits
    granted_nanos: int
    spent_nanos: int
    balance_nanos: int
    created_at: datetime
    deleted_at: datetime | None
    version: int


class BookedView(msgspec.Struct, frozen=True, kw_only=True):
    """Money that is booked."""

    amount_nanos: int
    balance_nanos: int  # afterwards
    is_usable: bool  # false: a store is away, and calls learn of it once that is back


async def listed(desk: Desk, asked: Asked[Paged, Nothing]) -> Answer:
    """Every organization and account, the oldest first."""
    wanted = asked.query
    rows = await desk.pool.fetch(_LISTED, *moment_in(wanted.cursor), wanted.limit + 1)
    found = [_view(row) for row in rows[: wanted.limit]]
    more = len(rows) > wanted.limit
    after = cursor_at((found[-1].created_at, found[-1].id)) if more else None
    return Answer(Page[OperatedView](data=found, next_cursor=after))


async def get(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """One of them."""
    found = await _one(desk, asked.id("organization_id"))
    return Answer(found, found.version)


async def change(desk: Desk, asked: Asked[Nothing, OperatedChange]) -> Answer:
    """Suspend it, let it go on, or set its limits or plan; gateways obey within a second."""
    caller, wanted = asked.caller, asked.body
    before = await _one(desk, asked.id("organization_id"))
    is_suspended = before.is_suspended if wanted.is_suspended is UNSET else wanted.is_suspended
    limits = before.limits if wanted.limits is UNSET else wanted.limits
    plan = before.plan if wanted.plan is UNSET else wanted.plan
    if wanted.plan is not UNSET and plan not in desk.config.plans:
        raise BadRequest(
            f"There is no plan {plan!r}; there are {', '.join(desk.config.plans)}.",
            code="plan_not_found",
            param="plan",
        )
    expected = before.version if asked.if_match is None else asked.if_match
    changed = Change(
        caller.actor,
        "organization.operate",
        str(before.id),
        before=_said(is_suspended=before.is_suspended, limits=before.limits, plan=before.plan),
        after=_said(is_suspended=is_suspended, limits=limits, plan=plan),
        address=caller.address,
    )
    async with desk.pool.acquire() as connection, connection.transaction():
        text = msgspec.json.encode(limits).decode()
        done = await connection.fetchval(_SET, before.id, text, is_suspended, expected, plan)
        if done is None:
            raise ChangedMeanwhile
        await append_change(connection, str(before.id), changed)
    await api_keys.publish_all(desk.pool, desk.cache, before.id)
    view = await _one(desk, before.id)
    return Answer(view, view.version)


async def credit(desk: Desk, asked: Asked[Nothing, Credit]) -> Answer:
    """Give credits, or put a balance right."""
    wanted, found = asked.body, await _alive(desk, asked.id("organization_id"))
    if not wanted.amount_nanos or (wanted.kind is CreditKind.GRANT and wanted.amount_nanos < 0):
        raise BadRequest(
            "A grant is above zero, and an adjustment is not zero.",
            code="invalid_amount",
            param="amount_nanos",
        )
    grant = money.Grant(
        found.id,
        Nanos(wanted.amount_nanos),
        wanted.reason,
        asked.caller.actor,
        idempotency_key=asked.key,
        address=asked.caller.address,
    )
    book = money.grant if wanted.kind is CreditKind.GRANT else money.adjust
    done = await book(desk.pool, desk.redis, grant)
    return _booked(wanted.amount_nanos, done.balance, is_usable=done.is_usable)


async def refund(desk: Desk, asked: Asked[Nothing, Refund]) -> Answer:
    """Take credits out because their payer has the money back. Open calls keep what they hold."""
    wanted, found = asked.body, await _one(desk, asked.id("organization_id"))
    taking = money.Taking(
        found.id,
        Nanos(wanted.amount_nanos),
        WithdrawalKind.REFUND,
        wanted.reason,
        asked.caller.actor,
        idempotency_key=asked.key,
        address=asked.caller.address,
    )
    done = await money.take(desk.pool, desk.redis, taking)
    return _booked(-wanted.amount_nanos, done.balance, is_usable=done.is_usable)


async def transfer(desk: Desk, asked: Asked[Nothing, Transfer]) -> Answer:
    """Move credits from one organization to another; a deleted one may still give."""
    wanted = asked.body
    await _one(desk, wanted.from_organization_id)
    await _alive(desk, wanted.to_organization_id)
    if wanted.from_organization_id == wanted.to_organization_id:
        raise BadRequest(
            "A transfer goes to another organization.",
            code="same_organization",
            param="to_organization_id",
        )
    taking = money.Taking(
        wanted.from_organization_id,
        Nanos(wanted.amount_nanos),
        WithdrawalKind.TRANSFER,
        wanted.reason,
        asked.caller.actor,
        target_id=wanted.to_organization_id,
        idempotency_key=asked.key,
        address=asked.caller.address,
    )
    return Answer(await transferred(desk, taking))


async def _one(desk: Desk, organization_id: UUID) -> OperatedView:
    row = await desk.pool.fetchrow(_ONE, organization_id)
    if row is None:
        raise NotFound(
            f"There is no organization {organization_id}.", code="organization_not_found"
        )
    return _view(row)


async def _alive(desk: Desk, organization_id: UUID) -> OperatedView:
    found = await _one(desk, organization_id)
    if found.deleted_at is not None:
        raise Conflict(
            "This organization is deleted: nobody could use the credits.",
            code="organization_deleted",
        )
    return found


def _view(row: asyncpg.Record) -> OperatedView:
    return OperatedView(
        id=row["id"],
        name=row["name"],
        kind=row["kind"],
        is_suspended=row["suspended_at"] is not None,
        plan=row["plan"],
        limits=limits_in(row["limits"]),
        granted_nanos=row["base"],
        spent_nanos=row["spent"],
        balance_nanos=row["base"] - row["spent"],
        created_at=row["created_at"],
        deleted_at=row["deleted_at"],
        version=row["version"],
    )


def _said(*, is_suspended: bool, limits: Limits, plan: str) -> dict[str, object]:
    return {"is_suspended": is_suspended, "limits": msgspec.to_builtins(limits), "plan": plan}


def _booked(amount: int, balance: int, *, is_usable: bool) -> Answer:
    return Answer(BookedView(amount_nanos=amount, balance_nanos=balance, is_usable=is_usable))


_ORGANIZATIONS = "/operator/organizations"

ROUTES = (
    Route(
        method="GET",
        path=_ORGANIZATIONS,
        name="operator.organizations",
        says="Every organization and account, the oldest first.",
        access=OPERATOR,
        handle=listed,
        query=Paged,
        answers=Page[OperatedView],
    ),
    Route(
        method="GET",
        path=_ORGANIZATIONS + "/{organization_id}",
        name="operator.organization",
        says="One of them.",
        access=OPERATOR,
        handle=get,
        answers=OperatedView,
    ),
    Route(
        method="PATCH",
        path=_ORGANIZATIONS + "/{organization_id}",
        name="operator.change",
        says="Suspend it, let it go on, or set its limits or its plan.",
        access=OPERATOR,
        handle=change,
        body=OperatedChange,
        answers=OperatedView,
    ),
    Route(
        method="POST",
        path=_ORGANIZATIONS + "/{organization_id}/credits",
        name="operator.credit",
        says="Give credits, or put a balance right.",
        access=OPERATOR,
        handle=credit,
        body=Credit,
        answers=BookedView,
        status=201,
        is_once=True,
    ),
    Route(
        method="POST",
        path=_ORGANIZATIONS + "/{organization_id}/refunds",
        name="operator.refund",
        says="Take credits out because their payer has the money back.",
        access=OPERATOR,
        handle=refund,
        body=Refund,
        answers=BookedView,
        status=201,
        is_once=True,
    ),
    Route(
        method="POST",
        path="/operator/transfers",
        name="operator.transfer",
        says="Move credits from one organization to another.",
        access=OPERATOR,
        handle=transfer,
        body=Transfer,
        answers=TransferView,
        status=201,
        is_once=True,
        raises=(404,),
    ),
)
