"""API keys over HTTP: everybody in an organization sees its keys, their makers change their own.

A key is its organization's: any member may use any of them, so all are listed to all, never with
their secret. To change one takes that one made it oneself, or the permission for everybody's.
"""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
from msgspec import UNSET

from gateway.display import display
from gateway.errors import BadRequest, Conflict, Forbidden, NotFound
from gateway.keys import RANDOM_BYTES, issue
from gateway.management import api_keys
from gateway.management.api_keys import KeyLabel, KeyTerms
from gateway.management.audit import note
from gateway.management.budgets import Change, changed, check_budget, told
from gateway.management.desk import Desk
from gateway.management.ip_ranges import ranges_in
from gateway.management.key_forms import (
    ApiKeyChange,
    ApiKeyView,
    KeyState,
    KeysWanted,
    NewApiKey,
    NewKeyView,
)
from gateway.management.known_keys import CapOwner
from gateway.policy import Permission
from gateway.principal import Period
from gateway.rest.caller import Place, Scope, member
from gateway.rest.cursor import Page, cursor_at, moment_in
from gateway.rest.problem import ChangedMeanwhile
from gateway.rest.route import Answer, Asked, Nothing, Route
from ledger.money import Nanos

_EXPIRY_MAX = timedelta(days=100 * 365)

_COLUMNS = """
    SELECT k.id, k.name, k.description, k.project_id, p.name AS project, k.member_id,
           m.email AS maker, k.last4, k.models, k.default_model,
           k.ip_ranges, k.budget_limit AS budget_nanos, k.budget_period,
           k.rpm, k.tpm, k.concurrency, k.expires_at, k.disabled_at, k.disabled_by, k.revoked_at,
           k.created_at, k.version,
           (SELECT max(s.ends_at) FROM key_secret AS s
            WHERE s.key_id = k.id AND s.ends_at > now()) AS former_until
    FROM api_key AS k JOIN project AS p ON p.id = k.project_id
    LEFT JOIN member AS m ON m.id = k.member_id
"""
_ONE = _COLUMNS + "WHERE k.id = $1 AND k.organization_id = $2"
_LISTED = (
    _COLUMNS
    + """
    WHERE k.organization_id = $1 AND ($2 OR k.revoked_at IS NULL)
      AND ($3::uuid IS NULL OR k.project_id = $3)
      AND (k.created_at, k.id) > ($4::timestamptz, $5::uuid)
    ORDER BY k.created_at, k.id LIMIT $6
"""
)
_SET = """
    UPDATE api_key
    SET name = $2, description = $3, models = $4, budget_limit = $5, budget_period = $6, rpm = $7,
        tpm = $8, concurrency = $9, expires_at = $10, default_model = $11, ip_ranges = $12,
        version = version + 1
    WHERE id = $1 AND version = $13 AND revoked_at IS NULL
    RETURNING id
"""


async def listed(desk: Desk, asked: Asked[KeysWanted, Nothing]) -> Answer:
    """The organization's keys, the oldest first."""
    wanted = asked.query
    place = asked.caller.place
    rows = await desk.pool.fetch(
        _LISTED,
        place.organization_id,
        wanted.revoked,
        wanted.project_id,
        *moment_in(wanted.cursor),
        wanted.limit + 1,
    )
    found = [_view(desk, place, row) for row in rows[: wanted.limit]]
    more = len(rows) > wanted.limit
    return Answer(
        Page[ApiKeyView](
            data=found,
            next_cursor=cursor_at((found[-1].created_at, found[-1].id)) if more else None,
        )
    )


async def create(desk: Desk, asked: Asked[Nothing, NewApiKey]) -> Answer:
    """Make a key that works at once. It is its maker's; calls with it count as theirs."""
    caller, wanted = asked.caller, asked.body
    _check_expiry(desk, wanted.expires_at)
    check_budget(wanted.budget_nanos, wanted.budget_period)
    _check_default(desk, wanted.default_model, wanted.models)
    ranges = ranges_in(wanted.ip_ranges)
    new = issue(desk.random_bytes(RANDOM_BYTES))
    budget = None if wanted.budget_nanos is None else Nanos(wanted.budget_nanos)
    terms = KeyTerms(
        name=wanted.name,
        description=wanted.description,
        project_id=wanted.project_id,
        member_id=caller.place.member_id,
        budget=budget,
        period=wanted.budget_period,
        rpm=wanted.rpm,
        tpm=wanted.tpm,
        concurrency=wanted.concurrency,
        models=None if wanted.models is None else tuple(wanted.models),
        default_model=wanted.default_model,
        ip_ranges=None if ranges is None else tuple(ranges),
        expires_at=wanted.expires_at,
        actor=caller.actor,
        address=caller.address,
    )
    made = await api_keys.create(
        desk.pool,
        desk.cache,
        organization_id=caller.place.organization_id,
        label=KeyLabel(desk.digest(new.secret.reveal()), new.last4),
        terms=terms,
    )
    view = await one(desk, caller.place, made.id)
    return Answer(NewKeyView(key=view, secret=new.secret.reveal()), view.version)


async def get(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """One key."""
    view = await one(desk, asked.caller.place, asked.id("key_id"))
    return Answer(view, view.version)


async def change(desk: Desk, asked: Asked[Nothing, ApiKeyChange]) -> Answer:
    """Change its name, models, limits, budget or expiry; every gateway knows within a second."""
    place = asked.caller.place
    before = await manageable(desk, place, asked.id("key_id"))
    changes = {
        name: value
        for name, value in msgspec.structs.asdict(asked.body).items()
        if value is not UNSET
    }
    if "expires_at" in changes:
        _check_expiry(desk, changes["expires_at"])
    if changes.get("ip_ranges") is not None:
        changes["ip_ranges"] = ranges_in(changes["ip_ranges"])
    after = msgspec.structs.replace(before, **changes)
    check_budget(after.budget_nanos, after.budget_period)
    _check_default(desk, after.default_model, after.models)
    expected = before.version if asked.if_match is None else asked.if_match
    budget = Change(CapOwner.KEY, before.id, after.budget_nanos, after.budget_period)
    async with desk.pool.acquire() as connection, connection.transaction():
        limit = None
        if not changes.keys().isdisjoint({"budget_nanos", "budget_period"}):
            limit = await changed(connection, place, budget, now=desk.now())
        done = await connection.fetchval(
            _SET,
            before.id,
            after.name,
            after.description,
            after.models,
            after.budget_nanos,
            after.budget_period,
            after.rpm,
            after.tpm,
            after.concurrency,
            after.expires_at,
            after.default_model,
            after.ip_ranges,
            expected,
        )
        if done is None:
            raise ChangedMeanwhile
        was = {name: getattr(before, name) for name in changes}
        await note(
            connection,
            asked,
            "key.update",
            target=str(before.id),
            before=msgspec.to_builtins(was),
            after=msgspec.to_builtins(changes),
        )
    await told(desk, limit)
    return await published(desk, place, before.id)


async def one(desk: Desk, place: Place, key_id: UUID) -> ApiKeyView:
    """A key of the organization at hand; `NotFound`."""
    row = await desk.pool.fetchrow(_ONE, key_id, place.organization_id)
    if row is None:
        raise NotFound(f"There is no API key {key_id} here.", code="api_key_not_found")
    return _view(desk, place, row)


async def manageable(
    desk: Desk, place: Place, key_id: UUID, *, even_revoked: bool = False
) -> ApiKeyView:
    """A key that who asks may change; `NotFound`, `Forbidden`, or `Conflict` if it is revoked."""
    found = await one(desk, place, key_id)
    is_own = place.member_id is not None and place.member_id == found.member_id
    if not is_own and not place.allows(Permission.KEY_MANAGE):
        raise Forbidden(
            "Somebody else made this key. Ask them, or who manages everybody's keys"
            f" ({place.policy.audiences[Permission.KEY_MANAGE].value}).",
            code="not_your_key",
            extra={"permission": Permission.KEY_MANAGE.value},
        )
    if found.revoked_at is not None and not even_revoked:
        raise Conflict("This key is revoked, for ever. Make another.", code="api_key_revoked")
    return found


async def published(desk: Desk, place: Place, key_id: UUID) -> Answer:
    """The key as it is now, once the gateways were told."""
    await api_keys.publish_keys(desk.pool, desk.cache, [key_id])
    view = await one(desk, place, key_id)
    return Answer(view, view.version)


def _view(desk: Desk, place: Place, row: Any) -> ApiKeyView:
    said = dict(row)
    period = said.pop("budget_period")
    state = KeyState.ACTIVE
    if row["revoked_at"] is not None:
        state = KeyState.REVOKED
    elif row["disabled_at"] is not None:
        state = KeyState.DISABLED
    elif row["expires_at"] is not None and row["expires_at"] <= desk.now():
        state = KeyState.EXPIRED
    return ApiKeyView(
        **said,
        state=state,
        budget_period=None if period is None else Period(period),
        display=display(desk.unit_of(place.policy), has={"budget": row["budget_nanos"]}),
    )


def _check_expiry(desk: Desk, expires_at: datetime | None) -> None:
    now = desk.now()
    if expires_at is not None and not now < expires_at < now + _EXPIRY_MAX:
        raise BadRequest(
            "expires_at is a moment to come. To end a key now, revoke it.",
            code="invalid_expiry",
            param="expires_at",
        )


def _check_default(desk: Desk, model: str | None, models: list[str] | None) -> None:
    if model is None or models is None:
        return
    route = desk.config.route(model)
    if model not in models and (route is None or route.name not in models):
        raise BadRequest(
            f"default_model {model!r} is none of the key's models.",
            code="invalid_default_model",
            param="default_model",
        )


_READ = member(Permission.KEY_READ, Scope.KEYS_READ)
# To manage one's own; for another's the handlers want key.manage besides.
WRITE = member(Permission.KEY_CREATE, Scope.KEYS_WRITE)

ROUTES = (
    Route(
        method="GET",
        path="/api-keys",
        name="keys.list",
        says="The organization's keys, the oldest first.",
        access=_READ,
        handle=listed,
        query=KeysWanted,
        answers=Page[ApiKeyView],
    ),
    # No Idempotency-Key: its answer would be kept, and with it the secret.
    Route(
        method="POST",
        path="/api-keys",
        name="keys.create",
        says="Make a key; its secret is shown this once.",
        access=WRITE,
        handle=create,
        body=NewApiKey,
        answers=NewKeyView,
        status=201,
    ),
    Route(
        method="GET",
        path="/api-keys/{key_id}",
        name="keys.get",
        says="One key.",
        access=_READ,
        handle=get,
        answers=ApiKeyView,
    ),
    Route(
        method="PATCH",
        path="/api-keys/{key_id}",
        name="keys.change",
        says="Change its name, models, limits, budget or expiry.",
        access=WRITE,
        handle=change,
        body=ApiKeyChange,
        answers=ApiKeyView,
        raises=(409,),
    ),
)
