"""Webhooks over HTTP: the programs that an organization has told of its alerts.

Messages are signed as Standard Webhooks has it (standardwebhooks.com). The secret is shown when it
is made; after a rotation the former one signs, too, for a day, so that no message is refused.
"""

import base64
from datetime import datetime, timedelta
from typing import Annotated, Any
from uuid import UUID, uuid4

import asyncpg
import msgspec
from msgspec import UNSET, Meta, UnsetType

from gateway.errors import BadRequest, Conflict, NotFound
from gateway.management.alerts import READ, WRITE, AlertKind, message
from gateway.management.audit import note
from gateway.management.desk import Desk
from gateway.management.tenants import Description
from gateway.notify import URL_CHARACTERS_MAX, flaw_of
from gateway.rest.cursor import Page, Paged, cursor_at, moment_in
from gateway.rest.problem import ChangedMeanwhile
from gateway.rest.route import Answer, Asked, Nothing, Route

WEBHOOKS_MAX = 10  # of one organization
TEST = "webhook.test"
_SECRET_BYTES = 32
_FORMER = timedelta(days=1)

Url = Annotated[str, Meta(max_length=URL_CHARACTERS_MAX, examples=["https://example.com/hooks"])]
Events = Annotated[list[AlertKind], Meta(min_length=1, max_length=len(AlertKind))]

_COLUMNS = """
    SELECT id, url, description, events, created_by, created_at, succeeded_at, failing_since,
           disabled_at, disabled_why, former_until, version
    FROM webhook
"""
_ONE = _COLUMNS + "WHERE id = $1 AND organization_id = $2"
_LISTED = _COLUMNS + "WHERE organization_id = $1 ORDER BY created_at, id"
_LOCK = "SELECT id FROM organization WHERE id = $1 FOR NO KEY UPDATE"
_COUNT = "SELECT count(*) FROM webhook WHERE organization_id = $1"
_MAKE = """
    INSERT INTO webhook (id, organization_id, url, description, events, secret, created_by,
                         created_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
"""
_SET = """
    UPDATE webhook
    SET url = $2, description = $3, events = $4, version = version + 1,
        disabled_at = CASE WHEN $5 THEN NULL ELSE coalesce(disabled_at, $6) END,
        disabled_why = CASE WHEN $5 THEN NULL ELSE coalesce(disabled_why, 'disabled by hand') END,
        failing_since = CASE WHEN $5 AND disabled_at IS NOT NULL THEN NULL ELSE failing_since END
    WHERE id = $1 AND version = $7
    RETURNING id
"""
_ROTATE = """
    UPDATE webhook SET former_secret = secret, former_until = $3, secret = $2, version = version + 1
    WHERE id = $1
"""
_DELETE = "DELETE FROM webhook WHERE id = $1 AND organization_id = $2 RETURNING url"
_SEND = """
    INSERT INTO webhook_delivery (id, webhook_id, kind, body, created_at, next_at)
    VALUES ($1, $2, $3, $4, $5, $5)
"""
_DELIVERY = """
    SELECT d.id, d.kind, d.created_at, d.tries, d.next_at, d.ended_at, d.status, d.error
    FROM webhook_delivery AS d JOIN webhook AS w ON w.id = d.webhook_id
    WHERE w.organization_id = $1 AND w.id = $2
"""
_DELIVERIES = (
    _DELIVERY
    + """
    AND ($3::timestamptz IS NULL OR (d.created_at, d.id) < ($3, $4::uuid))
    ORDER BY d.created_at DESC, d.id DESC LIMIT $5
"""
)


class NewWebhook(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A program that is to be told."""

    url: Url
    description: Description = ""
    events: Events | None = None  # null: of everything


class WebhookChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is to be changed; what is left out stays."""

    url: Url | UnsetType = UNSET
    description: Description | UnsetType = UNSET
    events: Events | UnsetType | None = UNSET
    is_enabled: bool | UnsetType = UNSET


class WebhookView(msgspec.Struct, frozen=True, kw_only=True):
    """A webhook, without its secret."""

    id: UUID
    url: str
    description: str
    events: list[str] | None
    is_enabled: bool
    disabled_at: datetime | None
    disabled_why: str | None
    succeeded_at: datetime | None  # the last time
    failing_since: datetime | None  # null: the latest try succeeded
    former_secret_until: datetime | None  # until then messages are signed with it, too
    created_by: str
    created_at: datetime
    version: int


class MadeWebhook(msgspec.Struct, frozen=True, kw_only=True):
    """A webhook with a secret just made, which is shown this once."""

    webhook: WebhookView
    secret: str  # "whsec_...", as every library of Standard Webhooks takes it


class DeliveryView(msgspec.Struct, frozen=True, kw_only=True):
    """A message, and what became of it."""

    id: UUID
    kind: str
    state: str  # waiting | delivered | failed
    tries: int
    status: int | None  # of the latest answer; null: there was none
    error: str | None
    created_at: datetime
    next_at: datetime | None  # null: it is not tried any more
    ended_at: datetime | None


async def listed(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """The organization's webhooks, the oldest first."""
    rows = await desk.pool.fetch(_LISTED, asked.caller.place.organization_id)
    return Answer(Page[WebhookView](data=[_view(row) for row in rows], next_cursor=None))


async def create(desk: Desk, asked: Asked[Nothing, NewWebhook]) -> Answer:
    """Have a program told; its secret is shown this once."""
    wanted, organization_id = asked.body, asked.caller.place.organization_id
    _check_url(desk, wanted.url)
    webhook_id, secret = uuid4(), _secret(desk)
    async with desk.pool.acquire() as connection, connection.transaction():
        await connection.execute(_LOCK, organization_id)  # of two at once the second counts both
        if await connection.fetchval(_COUNT, organization_id) >= WEBHOOKS_MAX:
            raise Conflict(
                f"There are {WEBHOOKS_MAX} webhooks, which is the most. Delete one first.",
                code="webhooks_max",
            )
        await connection.execute(
            _MAKE,
            webhook_id,
            organization_id,
            wanted.url,
            wanted.description,
            wanted.events,
            desk.sealer.seal(secret, str(webhook_id)),
            asked.caller.actor,
            desk.now(),
        )
        said = {"url": wanted.url, "events": wanted.events}
        await note(connection, asked, "webhook.create", target=str(webhook_id), after=said)
    view = await _one(desk, asked, webhook_id)
    return Answer(MadeWebhook(webhook=view, secret=secret), view.version)


async def get(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """One of them."""
    view = await _one(desk, asked)
    return Answer(view, view.version)


async def change(desk: Desk, asked: Asked[Nothing, WebhookChange]) -> Answer:
    """Change where it is and of what it is told, disable it, or enable it again."""
    before = await _one(desk, asked)
    changes = {
        name: value
        for name, value in msgspec.structs.asdict(asked.body).items()
        if value is not UNSET
    }
    after = msgspec.structs.replace(before, **changes)
    if "url" in changes:
        _check_url(desk, after.url)
    async with desk.pool.acquire() as connection, connection.transaction():
        done = await connection.fetchval(
            _SET,
            before.id,
            after.url,
            after.description,
            after.events,
            after.is_enabled,
            desk.now(),
            before.version if asked.if_match is None else asked.if_match,
        )
        if done is None:
            raise ChangedMeanwhile
        was = {name: getattr(before, name) for name in changes}
        await note(
            connection, asked, "webhook.update", target=str(before.id), before=was, after=changes
        )
    view = await _one(desk, asked)
    return Answer(view, view.version)


async def rotate(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """Give it another secret; the former one signs, too, for a day."""
    found, secret = await _one(desk, asked), _secret(desk)
    sealed = desk.sealer.seal(secret, str(found.id))
    async with desk.pool.acquire() as connection, connection.transaction():
        await connection.execute(_ROTATE, found.id, sealed, desk.now() + _FORMER)
        await note(connection, asked, "webhook.rotate", target=str(found.id))
    view = await _one(desk, asked)
    return Answer(MadeWebhook(webhook=view, secret=secret), view.version)


async def delete(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """Tell it nothing more, and forget what it was told."""
    found = await _one(desk, asked)
    async with desk.pool.acquire() as connection, connection.transaction():
        place = asked.caller.place
        if await connection.fetchval(_DELETE, found.id, place.organization_id) is not None:
            said = {"url": found.url}
            await note(connection, asked, "webhook.delete", target=str(found.id), before=said)
    return Answer()


async def test(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """Send it a message that means nothing; the list of deliveries says what became of it."""
    found, now, delivery_id = await _one(desk, asked), desk.now(), uuid4()
    if not found.is_enabled:
        raise Conflict("It is disabled. Enable it first.", code="webhook_disabled")
    organization_id = asked.caller.place.organization_id
    body = message(TEST, now, delivery_id, organization_id, {})
    await desk.pool.execute(_SEND, delivery_id, found.id, TEST, body, now)
    row = await desk.pool.fetchrow(
        _DELIVERY + "AND d.id = $3", organization_id, found.id, delivery_id
    )
    if row is None:
        raise _no_webhook(found.id)
    return Answer(_delivery(row))


async def deliveries(desk: Desk, asked: Asked[Paged, Nothing]) -> Answer:
    """What it was told in the last month, the newest first."""
    wanted, found = asked.query, await _one(desk, asked)
    after = (None, None) if wanted.cursor is None else moment_in(wanted.cursor)
    rows = await desk.pool.fetch(
        _DELIVERIES, asked.caller.place.organization_id, found.id, *after, wanted.limit + 1
    )
    shown = [_delivery(row) for row in rows[: wanted.limit]]
    more = len(rows) > wanted.limit
    following = cursor_at((shown[-1].created_at, shown[-1].id)) if more else None
    return Answer(Page[DeliveryView](data=shown, next_cursor=following))


async def _one(desk: Desk, asked: Asked[Any, Any], webhook_id: UUID | None = None) -> WebhookView:
    wanted = webhook_id or asked.id("webhook_id")
    row = await desk.pool.fetchrow(_ONE, wanted, asked.caller.place.organization_id)
    if row is None:
        raise _no_webhook(wanted)
    return _view(row)


def _view(row: asyncpg.Record) -> WebhookView:
    said = dict(row)
    return WebhookView(
        **said | {"former_secret_until": said.pop("former_until")},
        is_enabled=row["disabled_at"] is None,
    )


def _delivery(row: asyncpg.Record) -> DeliveryView:
    state = "waiting" if row["ended_at"] is None else "failed" if row["error"] else "delivered"
    return DeliveryView(**dict(row), state=state)


def _secret(desk: Desk) -> str:
    return "whsec_" + base64.b64encode(desk.random_bytes(_SECRET_BYTES)).decode()


def _check_url(desk: Desk, url: str) -> None:
    flaw = flaw_of(url, allows_private=desk.config.management.private_webhooks)
    if flaw:
        raise BadRequest(f"This URL cannot be told: {flaw}.", code="invalid_url", param="url")


def _no_webhook(webhook_id: UUID) -> NotFound:
    return NotFound(f"There is no webhook {webhook_id} here.", code="webhook_not_found")


_PATH = "/webhooks"
_ITS = "/webhooks/{webhook_id}"

ROUTES = (
    Route(
        method="GET",
        path=_PATH,
        name="webhooks.list",
        says="The organization's webhooks.",
        access=READ,
        handle=listed,
        answers=Page[WebhookView],
    ),
    # No Idempotency-Key, here and for the rotation: the answer would be kept, and the secret.
    Route(
        method="POST",
        path=_PATH,
        name="webhooks.create",
        says="Have a program told of alerts; its secret is shown this once.",
        access=WRITE,
        handle=create,
        body=NewWebhook,
        answers=MadeWebhook,
        status=201,
        raises=(409,),
    ),
    Route(
        method="GET",
        path=_ITS,
        name="webhooks.get",
        says="One of them.",
        access=READ,
        handle=get,
        answers=WebhookView,
    ),
    Route(
        method="PATCH",
        path=_ITS,
        name="webhooks.change",
        says="Change where it is and of what it is told, disable or enable it.",
        access=WRITE,
        handle=change,
        body=WebhookChange,
        answers=WebhookView,
    ),
    Route(
        method="DELETE",
        path=_ITS,
        name="webhooks.delete",
        says="Tell it nothing more.",
        access=WRITE,
        handle=delete,
    ),
    Route(
        method="POST",
        path=_ITS + "/rotation",
        name="webhooks.rotate",
        says="Give it another secret; the former one signs, too, for a day.",
        access=WRITE,
        handle=rotate,
        answers=MadeWebhook,
    ),
    Route(
        method="POST",
        path=_ITS + "/test",
        name="webhooks.test",
        says="Send it a message that means nothing.",
        access=WRITE,
        handle=test,
        answers=DeliveryView,
        status=202,
        raises=(409,),
    ),
    Route(
        method="GET",
        path=_ITS + "/deliveries",
        name="webhooks.deliveries",
        says="What it was told, the newest first.",
        access=READ,
        handle=deliveries,
        query=Paged,
        answers=Page[DeliveryView],
    ),
)
