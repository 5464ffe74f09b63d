"""Auto top-up over HTTP: what is charged by itself when an organization has little left.

Owners and admins alone enable or change it, whatever the policy lets others do. Charged is a method
of the organization's, or of whoever sets it up; it is recorded which.
"""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import asyncpg
import msgspec

from gateway.bounds import USD_MAX
from gateway.display import Display, display
from gateway.errors import BadRequest, Conflict, Forbidden, NotFound
from gateway.management import payments
from gateway.management.audit import note
from gateway.management.desk import Desk
from gateway.management.purchases import Bought, checked
from gateway.management.top_ups import SPENT_THIS_MONTH
from gateway.payments.processor import MethodKind
from gateway.policy import Permission, Role
from gateway.rest.caller import Caller, Scope, member
from gateway.rest.problem import ChangedMeanwhile
from gateway.rest.route import Answer, Asked, Nothing, Route
from ledger.money import NANOS_PER_USD

THRESHOLD, AMOUNT = 10 * NANOS_PER_USD, 50 * NANOS_PER_USD

_ONE = f"""
    SELECT t.*, m.owner_kind, m.owner_id, {SPENT_THIS_MONTH.format(now="$2")} AS charged
    FROM organization AS o
    LEFT JOIN auto_top_up AS t ON t.organization_id = o.id
    LEFT JOIN payment_method AS m ON m.id = t.method_id
    WHERE o.id = $1
"""  # noqa: S608 - the part is a constant of ours
_METHOD = """
    SELECT id, kind FROM payment_method
    WHERE processor = $1 AND ready_at IS NOT NULL AND removed_at IS NULL
      AND ((owner_id = $2 AND $3) OR owner_id = $4::uuid)
      AND CASE WHEN $5::uuid IS NULL THEN is_default ELSE id = $5 END
    ORDER BY owner_kind LIMIT 1
"""
# The count of crossings stays: an id that was used is never used again.
_PUT = """
    INSERT INTO auto_top_up AS t (
        organization_id, is_enabled, threshold, amount, monthly_max, method_id, configured_by
    ) SELECT $1, $2, $3, $4, $5, $6, $7 WHERE $8::bigint IS NULL OR $8 = 0 OR EXISTS (
        SELECT FROM auto_top_up WHERE organization_id = $1
    )
    ON CONFLICT (organization_id) DO UPDATE
    SET is_enabled = EXCLUDED.is_enabled, threshold = EXCLUDED.threshold,
        amount = EXCLUDED.amount, monthly_max = EXCLUDED.monthly_max,
        method_id = EXCLUDED.method_id, configured_by = EXCLUDED.configured_by,
        declines = 0, retry_at = NULL, trouble = NULL, version = t.version + 1
    WHERE $8::bigint IS NULL OR t.version = $8
    RETURNING version
"""

Threshold = Annotated[int, msgspec.Meta(ge=1, le=USD_MAX, description="nano-USD")]
MonthlyMax = Annotated[int, msgspec.Meta(ge=1, le=2**53 - 1, description="nano-USD")]


class TopUpTerms(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When is charged how much."""

    is_enabled: bool
    threshold_nanos: Threshold = THRESHOLD  # charged once the balance is below it
    amount_nanos: Bought = AMOUNT
    monthly_max_nanos: MonthlyMax | None = None  # in a calendar month; null: no limit
    method_id: UUID | None = None  # null: the organization's default, else one's own


class TopUpView(msgspec.Struct, frozen=True, kw_only=True):
    """What is configured, and how it goes."""

    is_enabled: bool
    threshold_nanos: int
    amount_nanos: int
    monthly_max_nanos: int | None
    charged_this_month_nanos: int
    display: Display
    paid_by: payments.OwnerKind | None  # whose method is charged
    method_id: UUID | None  # null, too, for who may not see it
    configured_by: str | None
    trouble: str | None  # why it was switched off, or the latest decline
    retry_at: datetime | None  # after a decline
    version: int  # 0: nothing was configured


async def get(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """What is configured; the defaults if nothing is."""
    view = await _view(desk, asked.caller)
    return Answer(view, view.version)


async def put(desk: Desk, asked: Asked[Nothing, TopUpTerms]) -> Answer:
    """Configure it. Who is below the threshold already is charged within a minute."""
    caller, wanted = asked.caller, asked.body
    if caller.place.role is Role.MEMBER:
        raise Forbidden("Auto top-up is for owners and admins.", code="owners_and_admins_only")
    amount = checked(desk, caller, wanted.amount_nanos)
    if wanted.monthly_max_nanos is not None and wanted.monthly_max_nanos < amount:
        raise BadRequest(
            "With this monthly_max_nanos nothing could ever be charged: it is below amount_nanos.",
            code="monthly_max_too_small",
            param="monthly_max_nanos",
        )
    method = await _method(desk, caller, wanted.method_id)
    payments.coins_of(desk, amount, MethodKind(method["kind"]))  # SEPA may lack a price in euro
    before = await _view(desk, caller)
    terms = (wanted.is_enabled, wanted.threshold_nanos, amount, wanted.monthly_max_nanos)
    async with desk.pool.acquire() as connection, connection.transaction():
        done = await connection.fetchval(
            _PUT,
            caller.place.organization_id,
            *terms,
            method["id"],
            caller.actor,
            asked.if_match,
        )
        if done is None:
            raise ChangedMeanwhile
        said = {"before": _said(before), "after": msgspec.to_builtins(wanted)}
        await note(connection, asked, "auto_top_up.configure", **said)
    view = await _view(desk, caller)
    return Answer(view, view.version)


async def _method(desk: Desk, caller: Caller, wanted: UUID | None) -> asyncpg.Record:
    name = payments.processor_of(desk).name
    row = await desk.pool.fetchrow(_METHOD, name, *_sight(caller), wanted)
    if row is not None:
        return row
    if wanted is None:
        raise Conflict(
            "There is no payment method to charge. Add one at POST /api/v1/payment-methods.",
            code="no_payment_method",
        )
    raise NotFound(f"There is no payment method {wanted}.", code="payment_method_not_found")


async def _view(desk: Desk, caller: Caller) -> TopUpView:
    row = await desk.pool.fetchrow(_ONE, caller.place.organization_id, desk.now())
    assert row is not None, "the guard has seen it"
    is_there = row["version"] is not None
    place_id, manages, person_id = _sight(caller)
    is_seen = is_there and (
        row["owner_id"] == person_id or (row["owner_id"] == place_id and manages)
    )
    threshold = row["threshold"] if is_there else THRESHOLD
    amount = row["amount"] if is_there else AMOUNT
    shown = display(
        desk.unit_of(caller.place.policy),
        has={"threshold": threshold, "amount": amount, "monthly_max": row["monthly_max"]},
        gone={"charged_this_month": row["charged"]},
    )
    return TopUpView(
        is_enabled=bool(row["is_enabled"]),
        threshold_nanos=threshold,
        amount_nanos=amount,
        monthly_max_nanos=row["monthly_max"],
        charged_this_month_nanos=row["charged"],
        display=shown,
        paid_by=payments.OwnerKind(row["owner_kind"]) if is_there else None,
        method_id=row["method_id"] if is_seen else None,
        configured_by=row["configured_by"],
        trouble=row["trouble"],
        retry_at=row["retry_at"],
        version=row["version"] or 0,
    )


def _sight(caller: Caller) -> tuple[UUID, bool, UUID | None]:
    place = caller.place
    return place.organization_id, place.allows(Permission.BILLING_MANAGE), caller.person_id


def _said(view: TopUpView) -> dict[str, Any]:
    """Without its method, which may be somebody's own."""
    return {
        "is_enabled": view.is_enabled,
        "threshold_nanos": view.threshold_nanos,
        "amount_nanos": view.amount_nanos,
        "monthly_max_nanos": view.monthly_max_nanos,
    }


ROUTES = (
    Route(
        method="GET",
        path="/auto-top-up",
        name="auto_top_up.get",
        says="What is charged by itself when little is left.",
        access=member(Permission.AUTO_TOP_UP_MANAGE, Scope.BILLING_READ),
        handle=get,
        answers=TopUpView,
    ),
    Route(
        method="PUT",
        path="/auto-top-up",
        name="auto_top_up.put",
        says="Configure it, for owners and admins; below $10 charge $50 unless said otherwise.",
        access=member(Permission.AUTO_TOP_UP_MANAGE, Scope.BILLING_WRITE),
        handle=put,
        body=TopUpTerms,
        answers=TopUpView,
        raises=(404, 409),
    ),
)
