"""Alerts: given once, as a row, with mails to those concerned and messages to webhooks.

Whoever notices something calls `give` in a transaction. What it is about is its subject, and a row
of the same organization, kind and subject is written once, whoever notices it how often: mails and
messages belong to the row's transaction, and jobs send them.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import asyncpg
import msgspec

from gateway.display import text
from gateway.management.audit import note
from gateway.management.desk import Desk
from gateway.management.guard import switches_in
from gateway.management.mails import Mail, post
from gateway.policy import Permission, Preset, policy_of
from gateway.rest.caller import Scope, member
from gateway.rest.cursor import Page, Paged, cursor_at, moment_in
from gateway.rest.route import Answer, Asked, Nothing, Route
from ledger.postgres import Connection

_GIVE = """
    INSERT INTO alert (id, organization_id, kind, subject, facts, fired_at)
    SELECT id, organization_id, kind, subject, facts, $6
    FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::jsonb[])
        AS a (id, organization_id, kind, subject, facts)
    ORDER BY organization_id, kind, subject
    ON CONFLICT (organization_id, kind, subject) DO NOTHING
    RETURNING id
"""
_ORGANIZATIONS = """
    SELECT o.id, o.name, o.preset, o.switches, o.billing_email, b.contacts
    FROM organization AS o LEFT JOIN billing AS b ON b.organization_id = o.id
    WHERE o.id = ANY ($1)
"""
_RECIPIENTS = """
    SELECT DISTINCT m.organization_id, lower(coalesce(p.email, m.email)) AS email
    FROM member AS m
    LEFT JOIN seat AS s ON s.member_id = m.id
    LEFT JOIN person AS p ON p.id = s.person_id
    WHERE m.organization_id = ANY ($1) AND m.removed_at IS NULL AND m.role IN ('owner', 'admin')
      AND p.disabled_at IS NULL
      AND NOT EXISTS (
          SELECT FROM alert_unwanted AS u
          WHERE u.person_id = s.person_id AND u.organization_id = m.organization_id
      )
"""
_TELL = """
    INSERT INTO webhook_delivery (id, webhook_id, alert_id, kind, body, created_at, next_at)
    SELECT gen_random_uuid(), w.id, a.id, a.kind, a.body, $5, $5
    FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[])
        AS a (id, organization_id, kind, body)
    JOIN webhook AS w ON w.organization_id = a.organization_id
    WHERE w.disabled_at IS NULL AND (w.events IS NULL OR a.kind = ANY (w.events))
"""
_LISTED = """
    SELECT id, kind, facts, fired_at FROM alert
    WHERE organization_id = $1 AND ($2::text IS NULL OR kind = $2)
      AND ($3::timestamptz IS NULL OR (fired_at, id) < ($3, $4::uuid))
    ORDER BY fired_at DESC, id DESC LIMIT $5
"""
_WANTED = """
    SELECT NOT EXISTS (
        SELECT FROM alert_unwanted WHERE person_id = $1 AND organization_id = $2
    )
"""
_WANT = "DELETE FROM alert_unwanted WHERE person_id = $1 AND organization_id = $2"
_WANT_NOT = """
    INSERT INTO alert_unwanted (person_id, organization_id) VALUES ($1, $2) ON CONFLICT DO NOTHING
"""


class AlertKind(StrEnum):
    """What somebody is told of."""

    BALANCE_LOW = "balance.low"
    BALANCE_CRITICAL = "balance.critical"
    BALANCE_THRESHOLD = "balance.threshold"  # one that the organization set itself
    BUDGET = "budget.percent"
    SPEND_ANOMALY = "spend.anomaly"
    ACCESS_REVIEW = "access.review"
    TOP_UP_PAID = "top_up.paid"
    TOP_UP_DECLINED = "top_up.declined"
    TOP_UP_CAPPED = "top_up.capped"  # its monthly limit is reached
    PURCHASE_PAID = "purchase.paid"
    PURCHASE_REFUNDED = "purchase.refunded"
    PLAN_DECLINED = "plan.declined"  # to be tried again
    WEBHOOK_DISABLED = "webhook.disabled"


# Of which billing contacts are told, too; of receipts only they are.
_RECEIPTS = {AlertKind.PURCHASE_PAID, AlertKind.PURCHASE_REFUNDED}
_ABOUT_PAYMENTS = _RECEIPTS | {
    AlertKind.TOP_UP_PAID,
    AlertKind.TOP_UP_DECLINED,
    AlertKind.TOP_UP_CAPPED,
    AlertKind.PLAN_DECLINED,
}


class Alert(NamedTuple):
    """Something to tell an organization."""

    organization_id: UUID
    kind: AlertKind
    subject: str  # what it is about: told once
    facts: dict[str, Any]  # for programs; money as int, nano-USD, under names that end in _nanos
    mail: str | None  # the template of its mails; None: it is told to programs alone


class AlertView(msgspec.Struct, frozen=True, kw_only=True):
    """An alert that was given."""

    id: UUID
    kind: str
    facts: dict[str, Any]  # as in the webhook's message
    fired_at: datetime


class AlertsWanted(Paged, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which alerts are listed."""

    kind: AlertKind | None = None  # null: all


class Subscription(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Whether one is told of the organization's alerts by mail, if one is an owner or an admin."""

    by_mail: bool


async def give(connection: Connection, desk: Desk, alerts: Sequence[Alert]) -> int:
    """Write down those that are new, with what is to be sent; how many were new.

    In the transaction that marks what caused them, if anything does.
    """
    if not alerts:
        return 0
    now, ids = desk.now(), {uuid4(): alert for alert in alerts}
    rows = await connection.fetch(
        _GIVE,
        list(ids),
        [alert.organization_id for alert in alerts],
        [alert.kind.value for alert in alerts],
        [alert.subject for alert in alerts],
        [msgspec.json.encode(alert.facts).decode() for alert in alerts],
        now,
    )
    new = {row["id"]: ids[row["id"]] for row in rows}
    if new:
        await _tell(connection, new, now)
        await _mail(connection, desk, [alert for alert in new.values() if alert.mail], now)
    return len(new)


def message(kind: str, at: datetime, alert_id: UUID, organization_id: UUID, facts: Any) -> str:
    """The body of a webhook's message, as Standard Webhooks has it."""
    data = {"id": str(alert_id), "organization_id": str(organization_id), **facts}
    said = {"type": kind, "timestamp": at.isoformat(), "data": data}
    return msgspec.json.encode(said).decode()


async def _tell(connection: Connection, alerts: Mapping[UUID, Alert], now: datetime) -> None:
    given = alerts.items()
    await connection.execute(
        _TELL,
        [alert_id for alert_id, _ in given],
        [alert.organization_id for _, alert in given],
        [alert.kind.value for _, alert in given],
        [message(one.kind, now, name, one.organization_id, one.facts) for name, one in given],
        now,
    )


async def _mail(connection: Connection, desk: Desk, alerts: Sequence[Alert], now: datetime) -> None:
    wanted = list({alert.organization_id for alert in alerts})
    organizations = {row["id"]: row for row in await connection.fetch(_ORGANIZATIONS, wanted)}
    recipients = defaultdict(set)
    for row in await connection.fetch(_RECIPIENTS, wanted):
        recipients[row["organization_id"]].add(row["email"])
    for alert in alerts:
        row = organizations[alert.organization_id]
        addresses = _addresses(alert.kind, row, recipients[alert.organization_id])
        facts = {
            **alert.facts,
            **_amounts(desk, row, alert.facts),
            "organization": row["name"],
            "kind": alert.kind.value,
            "site": desk.site,
        }
        assert alert.mail is not None, "only those with a mail are asked for"
        for address in sorted(addresses):
            await post(connection, Mail(address, alert.mail, facts), now)


def _addresses(kind: AlertKind, row: asyncpg.Record, people: set[str]) -> set[str]:
    """Who has a mail about it, each address once; `people`: owners and admins who want mails."""
    found = set() if kind in _RECEIPTS else set(people)
    if kind in _ABOUT_PAYMENTS or kind.value.startswith("balance."):
        found |= {row["billing_email"] or ""}
    if kind in _ABOUT_PAYMENTS:
        found |= {*(row["contacts"] or ())}
    return {address.lower() for address in found if address}


def _amounts(desk: Desk, row: asyncpg.Record, facts: Mapping[str, Any]) -> dict[str, str]:
    """The money of the facts in the organization's unit: balance_nanos -> balance: "900 GP"."""
    unit = desk.unit_of(policy_of(Preset(row["preset"]), switches_in(row["switches"])))
    return {
        name.removesuffix("_nanos"): f"{text(amount, unit)} {unit.name}"
        for name, amount in facts.items()
        if name.endswith("_nanos")
    }


async def listed(desk: Desk, asked: Asked[AlertsWanted, Nothing]) -> Answer:
    """What was told, the newest first."""
    wanted = asked.query
    after = (None, None) if wanted.cursor is None else moment_in(wanted.cursor)
    rows = await desk.pool.fetch(
        _LISTED,
        asked.caller.place.organization_id,
        None if wanted.kind is None else wanted.kind.value,
        *after,
        wanted.limit + 1,
    )
    found = [
        AlertView(
            id=row["id"],
            kind=row["kind"],
            facts=msgspec.json.decode(row["facts"]),
            fired_at=row["fired_at"],
        )
        for row in rows[: wanted.limit]
    ]
    more = len(rows) > wanted.limit
    following = cursor_at((found[-1].fired_at, found[-1].id)) if more else None
    return Answer(Page[AlertView](data=found, next_cursor=following))


async def subscription(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """Whether one is told by mail."""
    return Answer(await _subscription(desk, asked))


async def subscribe(desk: Desk, asked: Asked[Nothing, Subscription]) -> Answer:
    """Have mails about this organization's alerts, or none."""
    caller = asked.caller
    query = _WANT if asked.body.by_mail else _WANT_NOT
    async with desk.pool.acquire() as connection, connection.transaction():
        await connection.execute(query, caller.person, caller.place.organization_id)
        said = {"by_mail": asked.body.by_mail}
        await note(connection, asked, "alerts.subscribe", target=str(caller.person), after=said)
    return Answer(await _subscription(desk, asked))


async def _subscription(desk: Desk, asked: Asked[Nothing, Any]) -> Subscription:
    caller = asked.caller
    is_wanted = await desk.pool.fetchval(_WANTED, caller.person, caller.place.organization_id)
    return Subscription(by_mail=is_wanted)


READ = member(Permission.ALERT_MANAGE, Scope.ALERTS_READ)
WRITE = member(Permission.ALERT_MANAGE, Scope.ALERTS_WRITE)

ROUTES = (
    Route(
        method="GET",
        path="/alerts",
        name="alerts.list",
        says="What owners and admins were told, the newest first.",
        access=READ,
        handle=listed,
        query=AlertsWanted,
        answers=Page[AlertView],
    ),
    Route(
        method="GET",
        path="/alerts/subscription",
        name="alerts.subscription",
        says="Whether one is told of alerts by mail.",
        access=member(Permission.ALERT_MANAGE, None),
        handle=subscription,
        answers=Subscription,
    ),
    Route(
        method="PATCH",
        path="/alerts/subscription",
        name="alerts.subscribe",
        says="Have mails about alerts, or none.",
        access=member(Permission.ALERT_MANAGE, None),
        handle=subscribe,
        body=Subscription,
        answers=Subscription,
    ),
)
