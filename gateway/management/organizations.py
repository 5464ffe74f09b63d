"""Organizations: made, listed, found and changed. Each has one wallet, under its own id."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID
from zoneinfo import available_timezones

import asyncpg
from redis.asyncio import Redis

from gateway.errors import BadRequest, NotFound, Unavailable
from gateway.key_cache import KeyCache
from gateway.management import api_keys
from ledger.bases import tell
from ledger.book import Book
from ledger.money import NANOS_MAX, Nanos, usd_text
from ledger.trail import Change, append_change

NAME_CHARACTERS_MAX = 200
LISTED_MAX = 1_000
AMBIGUOUS_SHOWN = 5

_VIEW = """
    SELECT o.id, o.name, o.kind, o.partition, o.time_zone, o.unpriced_allowed, o.suspended_at,
           o.created_at, o.grace_nanos, w.base, w.spent
    FROM organization AS o JOIN wallet AS w ON w.id = o.id
"""
_LISTED = _VIEW + "ORDER BY o.created_at, o.id LIMIT $1"
_MATCHING = _VIEW + "WHERE o.id::text = lower($1) OR o.name = $1 ORDER BY o.created_at LIMIT $2"
_ALLOW_UNPRICED = """
    UPDATE organization SET unpriced_allowed = true, version = version + 1 WHERE id = $1
"""

_GRACE = """
    UPDATE organization AS o SET grace_nanos = $2, version = o.version + 1
    FROM organization AS was WHERE o.id = $1 AND was.id = o.id
    RETURNING was.grace_nanos
"""


class OrganizationKind(StrEnum):
    """Whose it is."""

    ORGANIZATION = "organization"
    PERSONAL = "personal"  # one person's own account


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganizationTerms:
    """What a new organization is to be."""

    name: str
    kind: OrganizationKind = OrganizationKind.ORGANIZATION
    time_zone: str = "UTC"  # where its days, budgets and reports begin
    allows_unpriced: bool = False  # models without a price pass at zero
    actor: str = "operator"


class Organization(NamedTuple):
    """An organization as people see it. Money in nano-USD."""

    id: UUID
    name: str
    kind: OrganizationKind
    partition: int
    time_zone: str
    allows_unpriced: bool
    suspended_at: datetime | None
    created_at: datetime
    granted: int  # credits, less what was taken back
    spent: int
    grace: int  # what it may use while Redis is away, over all gateways

    @property
    def balance(self) -> int:
        """What it has, money held by open calls included."""
        return self.granted - self.spent


async def create(pool: asyncpg.Pool, redis: Redis, terms: OrganizationTerms) -> Organization:
    """Make an organization with an empty wallet and a default project; raises `BadRequest`."""
    _check(terms)
    book = Book(pool)
    try:
        made = await book.create_organization(
            terms.name, actor=terms.actor, kind=terms.kind.value, time_zone=terms.time_zone
        )
    except asyncpg.LockNotAvailableError as error:
        raise Unavailable("The ledger is busy. Try again.", code="ledger_busy") from error
    if terms.allows_unpriced:
        await pool.execute(_ALLOW_UNPRICED, made.id)
    wallet = await book.wallet(made.id)
    assert wallet is not None, "an organization is made with its wallet"
    # So that its first call finds the wallet. If Redis is away now, that call loads it.
    await tell(pool, redis, wallet)
    return await resolve(pool, made.id)


async def set_grace(
    pool: asyncpg.Pool, cache: KeyCache, organization_id: UUID, amount: Nanos, *, actor: str
) -> bool:
    """Let it use so much while Redis is away; 0: nothing. Raises `BadRequest` and `NotFound`.

    False: Redis was not told, so gateways may go by the old amount for 30 s more.
    """
    if not 0 <= amount <= NANOS_MAX:
        raise BadRequest(f"a grace is from 0 to {usd_text(NANOS_MAX)}", code="invalid_grace")
    async with pool.acquire() as connection, connection.transaction():
        before = await connection.fetchval(_GRACE, organization_id, amount)
        if before is None:
            raise NotFound(
                f"there is no organization {organization_id}", code="organization_not_found"
            )
        changed = Change(
            actor,
            "organization.grace",
            str(organization_id),
            before={"grace_nanos": before},
            after={"grace_nanos": amount},
        )
        await append_change(connection, str(organization_id), changed)
    return await api_keys.publish_all(pool, cache, organization_id)


async def listed(pool: asyncpg.Pool) -> list[Organization]:
    """The organizations, the oldest first."""
    return [_view(row) for row in await pool.fetch(_LISTED, LISTED_MAX)]


async def resolve(pool: asyncpg.Pool, text: str) -> Organization:
    """The one organization with this id or name; raises `NotFound` or `BadRequest`."""
    rows = await pool.fetch(_MATCHING, text, AMBIGUOUS_SHOWN)
    if not rows:
        raise NotFound(f"there is no organization {text!r}", code="organization_not_found")
    if len(rows) > 1:
        ids = ", ".join(str(row["id"]) for row in rows)
        raise BadRequest(f"{text!r} is the name of several organizations: {ids}", code="ambiguous")
    return _view(rows[0])


def _check(terms: OrganizationTerms) -> None:
    name = terms.name
    if not name.strip() or len(name) > NAME_CHARACTERS_MAX or not name.isprintable():
        raise BadRequest(
            f"a name has 1 to {NAME_CHARACTERS_MAX} printable characters", code="invalid_name"
        )
    if terms.time_zone not in available_timezones():
        raise BadRequest(
            f"{terms.time_zone!r} is no time zone like Europe/Berlin", code="invalid_time_zone"
        )


def _view(row: asyncpg.Record) -> Organization:
    return Organization(
        id=row["id"],
        name=row["name"],
        kind=OrganizationKind(row["kind"]),
        partition=row["partition"],
        time_zone=row["time_zone"],
        allows_unpriced=row["unpriced_allowed"],
        suspended_at=row["suspended_at"],
        created_at=row["created_at"],
        granted=row["base"],
        spent=row["spent"],
        grace=row["grace_nanos"],
    )
