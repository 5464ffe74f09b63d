"""Budgets over HTTP: what a key, a member or a project may spend in each period, and has spent.

A member's budget counts every call that is theirs: with keys they made and with secrets of their
own of shared keys. A call is admitted only if every budget it counts to has room for it, all in one
step of the ledger. A changed limit holds in the window under way, within a second on every gateway.
"""

from datetime import UTC, datetime
from typing import Annotated, NamedTuple
from uuid import UUID

import asyncpg
import msgspec

from gateway.display import Display, display
from gateway.errors import BadRequest, Forbidden, NotFound, Unavailable
from gateway.management import api_keys
from gateway.management.audit import note
from gateway.management.desk import Desk
from gateway.management.known_keys import CapOwner, cap_id
from gateway.policy import Permission
from gateway.principal import Period, window_starts
from gateway.rest.caller import Place, Scope, member
from gateway.rest.problem import ChangedMeanwhile
from gateway.rest.route import Answer, Asked, Nothing, Route
from ledger.caps import set_limit, tell_limit
from ledger.money import NANOS_MAX, Nanos
from ledger.postgres import Connection

_BORDER_MS = (
    5_000  # so close to the next window, gateways that know the old limit may still make it
)

Money = Annotated[int, msgspec.Meta(ge=0, le=NANOS_MAX, description="nano-USD")]

_LEDGERS = "SELECT partition, time_zone FROM organization WHERE id = $1"
_FOUND = {
    CapOwner.KEY: """
        SELECT budget_limit, budget_period, version FROM api_key
        WHERE organization_id = $1 AND id = $2
    """,
    CapOwner.MEMBER: """
        SELECT budget_limit, budget_period, version FROM member
        WHERE organization_id = $1 AND id = $2 AND removed_at IS NULL
    """,
    CapOwner.PROJECT: """
        SELECT budget_limit, budget_period, version FROM project
        WHERE organization_id = $1 AND id = $2
    """,
}
_SET = {
    CapOwner.MEMBER: """
        UPDATE member SET budget_limit = $3, budget_period = $4, version = version + 1
        WHERE organization_id = $1 AND id = $2 AND removed_at IS NULL AND version = $5
        RETURNING id
    """,
    CapOwner.PROJECT: """
        UPDATE project SET budget_limit = $3, budget_period = $4, version = version + 1
        WHERE organization_id = $1 AND id = $2 AND version = $5
        RETURNING id
    """,
}
# What gateways know of a key has its version. In order, as all who lock several of them do.
_KEYS = {
    CapOwner.MEMBER: """
        SELECT id FROM api_key
        WHERE organization_id = $1 AND revoked_at IS NULL AND (member_id = $2 OR id IN (
            SELECT key_id FROM key_secret WHERE member_id = $2 AND ends_at IS NULL))
        ORDER BY id FOR NO KEY UPDATE
    """,
    CapOwner.PROJECT: """
        SELECT id FROM api_key
        WHERE organization_id = $1 AND revoked_at IS NULL AND project_id = $2
        ORDER BY id FOR NO KEY UPDATE
    """,
}
_RAISE_KEYS = "UPDATE api_key SET version = version + 1 WHERE id = ANY ($1::uuid[])"
# Late charges and corrections lower the base.
_SPENT = "SELECT spent + cap_limit - base AS spent FROM cap_window WHERE id = $1"
_LOCK_ORGANIZATION = "SELECT id FROM organization WHERE id = $1 FOR NO KEY UPDATE"
_LOCK_PROJECT = "SELECT id FROM project WHERE id = $1 FOR NO KEY UPDATE"


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What may be spent in each period; both null: as much as there is."""

    budget_nanos: Money | None
    budget_period: Period | None


class BudgetView(msgspec.Struct, frozen=True, kw_only=True):
    """A budget and its window under way, by the calendar of the organization's time zone."""

    budget_nanos: int | None  # null: none is set
    budget_period: Period | None
    spent_nanos: int | None  # as far as it is booked: some tenths of a second behind
    left_nanos: int | None  # what open calls hold is not taken off; below zero after a late charge
    began_at: datetime | None  # null: it has but one window
    resets_at: datetime | None
    version: int  # of the key, member or project
    display: Display


class Change(NamedTuple):
    """The budget that a key, member or project gets."""

    owner: CapOwner
    owner_id: UUID
    limit: int | None
    period: Period | None


class Limit(NamedTuple):
    """A limit that is set and that Redis must be told of."""

    partition: int
    version: int


async def changed(
    connection: Connection, place: Place, change: Change, *, now: datetime
) -> Limit | None:
    """Have the window under way follow the new limit; first of all that the transaction does.

    None: there is no limit any more, so nothing is to be told. Raises `Unavailable`.
    """
    if change.limit is None or change.period is None:
        return None
    row = await connection.fetchrow(_LEDGERS, place.organization_id)
    assert row is not None, "the guard has seen it"
    now_ms = int(now.timestamp() * 1000)
    starts = window_starts(change.period, row["time_zone"], now_ms)
    begun = [start for start in starts[-2:] if start <= now_ms + _BORDER_MS]
    name = cap_id(change.owner, change.owner_id)
    try:
        version = await set_limit(
            connection, name, Nanos(change.limit), partition=row["partition"], starts_ms=begun
        )
    except asyncpg.LockNotAvailableError as error:
        raise Unavailable("The ledger is busy. Try again.", code="ledger_busy") from error
    return Limit(row["partition"], version)


async def told(desk: Desk, limit: Limit | None) -> None:
    """Tell Redis. What it cannot be told now, the flusher tells it once it is back."""
    if limit is not None:
        await tell_limit(desk.pool, desk.redis, partition=limit.partition, version=limit.version)


def check_budget(budget: int | None, period: Period | None) -> None:
    """`BadRequest` unless both are there or neither."""
    if (budget is None) != (period is None):
        raise BadRequest(
            "A budget and its period come together: send budget_nanos and budget_period.",
            code="invalid_budget",
            param="budget_nanos" if budget is None else "budget_period",
        )


async def of_key(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """A key's budget, and what is spent of it."""
    return await _shown(desk, asked.caller.place, CapOwner.KEY, asked.id("key_id"))


async def of_project(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """A project's budget, and what is spent of it."""
    return await _shown(desk, asked.caller.place, CapOwner.PROJECT, asked.id("project_id"))


async def of_member(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """One's own budget, or anybody's for who sets them."""
    place, member_id = asked.caller.place, asked.id("member_id")
    if member_id != place.member_id and not place.allows(Permission.MEMBER_BUDGET):
        raise Forbidden(
            "Members see their own budget; those of others are for who sets them.",
            code="not_permitted",
            extra={"permission": Permission.MEMBER_BUDGET.value},
        )
    return await _shown(desk, place, CapOwner.MEMBER, member_id)


async def set_of_member(desk: Desk, asked: Asked[Nothing, Budget]) -> Answer:
    """Set what a member's calls may cost in each period, or end that limit."""
    return await _set(desk, asked, CapOwner.MEMBER, asked.id("member_id"))


async def set_of_project(desk: Desk, asked: Asked[Nothing, Budget]) -> Answer:
    """Set what a project's calls may cost in each period, or end that limit."""
    return await _set(desk, asked, CapOwner.PROJECT, asked.id("project_id"))


async def _set(
    desk: Desk, asked: Asked[Nothing, Budget], owner: CapOwner, owner_id: UUID
) -> Answer:
    place, wanted = asked.caller.place, asked.body
    check_budget(wanted.budget_nanos, wanted.budget_period)
    before = await _one(desk, place, owner, owner_id)
    change = Change(owner, owner_id, wanted.budget_nanos, wanted.budget_period)
    expected = before["version"] if asked.if_match is None else asked.if_match
    async with desk.pool.acquire() as connection, connection.transaction():
        limit = await changed(connection, place, change, now=desk.now())
        if owner is CapOwner.PROJECT:
            await connection.execute(_LOCK_PROJECT, owner_id)
        rows = await connection.fetch(_KEYS[owner], place.organization_id, owner_id)
        keys = [row["id"] for row in rows]
        await connection.execute(_LOCK_ORGANIZATION, place.organization_id)
        done = await connection.fetchval(
            _SET[owner], place.organization_id, owner_id, change.limit, change.period, expected
        )
        if done is None:
            raise ChangedMeanwhile
        await connection.execute(_RAISE_KEYS, keys)
        await note(
            connection,
            asked,
            f"{owner}.budget",
            target=str(owner_id),
            before={"nanos": before["budget_limit"], "period": before["budget_period"]},
            after={"nanos": change.limit, "period": change.period},
        )
    await told(desk, limit)
    await api_keys.publish_keys(desk.pool, desk.cache, keys)
    return await _shown(desk, place, owner, owner_id)


async def _one(desk: Desk, place: Place, owner: CapOwner, owner_id: UUID) -> asyncpg.Record:
    row = await desk.pool.fetchrow(_FOUND[owner], place.organization_id, owner_id)
    if row is None:
        raise NotFound(f"There is no {owner} {owner_id} here.", code=f"{owner}_not_found")
    return row


async def _shown(desk: Desk, place: Place, owner: CapOwner, owner_id: UUID) -> Answer:
    row = await _one(desk, place, owner, owner_id)
    limit, began_at, resets_at, spent = row["budget_limit"], None, None, None
    period = None if row["budget_period"] is None else Period(row["budget_period"])
    if period is not None:
        zone = await desk.pool.fetchval(
            "SELECT time_zone FROM organization WHERE id = $1", place.organization_id
        )
        starts = window_starts(period, zone, int(desk.now().timestamp() * 1000))
        start = starts[0] if period is Period.ONCE else starts[-2]
        if period is not Period.ONCE:
            began_at, resets_at = (datetime.fromtimestamp(ms / 1000, UTC) for ms in starts[-2:])
        spent = await desk.pool.fetchval(_SPENT, f"{cap_id(owner, owner_id)}@{start}") or 0
    left = None if spent is None else limit - spent
    view = BudgetView(
        budget_nanos=limit,
        budget_period=period,
        spent_nanos=spent,
        left_nanos=left,
        began_at=began_at,
        resets_at=resets_at,
        version=row["version"],
        display=display(
            desk.unit_of(place.policy), has={"budget": limit, "left": left}, gone={"spent": spent}
        ),
    )
    return Answer(view, view.version)


ROUTES = (
    Route(
        method="GET",
        path="/api-keys/{key_id}/budget",
        name="budgets.of_key",
        says="A key's budget, and what is spent of it.",
        access=member(Permission.KEY_READ, Scope.KEYS_READ),
        handle=of_key,
        answers=BudgetView,
    ),
    Route(
        method="GET",
        path="/projects/{project_id}/budget",
        name="budgets.of_project",
        says="A project's budget, and what is spent of it.",
        access=member(Permission.PROJECT_READ, Scope.PROJECTS_READ),
        handle=of_project,
        answers=BudgetView,
    ),
    Route(
        method="PUT",
        path="/projects/{project_id}/budget",
        name="budgets.set_of_project",
        says="Set what a project's calls may cost in each period, or end that limit.",
        access=member(Permission.PROJECT_MANAGE, Scope.PROJECTS_WRITE),
        handle=set_of_project,
        body=Budget,
        answers=BudgetView,
    ),
    Route(
        method="GET",
        path="/members/{member_id}/budget",
        name="budgets.of_member",
        says="One's own budget, or anybody's for who sets them, and what is spent of it.",
        access=member(Permission.MEMBER_READ, Scope.MEMBERS_READ),
        handle=of_member,
        answers=BudgetView,
    ),
    Route(
        method="PUT",
        path="/members/{member_id}/budget",
        name="budgets.set_of_member",
        says="Set what a member's calls may cost in each period, or end that limit.",
        access=member(Permission.MEMBER_BUDGET, Scope.MEMBERS_WRITE),
        handle=set_of_member,
        body=Budget,
        answers=BudgetView,
    ),
)
