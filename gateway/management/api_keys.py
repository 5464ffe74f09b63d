"""API keys: made, listed and revoked here, and read from here by every gateway that meets one.

A key's text is never stored: a row holds its digest. Each change is committed, then written to
Redis under a higher version, then announced, in this order; whatever a crash leaves undone is found
by the gateways' own checks against Postgres within 30 s.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import asyncpg

from gateway.auth import StoreAway
from gateway.errors import BadRequest, NotFound
from gateway.key_cache import CacheAway, KeyCache, KeyChange
from gateway.principal import Budget, KnownKey, Period, Principal
from ledger.money import NANOS_MAX, Nanos
from ledger.postgres import AWAY
from ledger.trail import Change, append_change

NAME_CHARACTERS_MAX = 200
MODELS_MAX = 200
LISTED_MAX = 1_000
PUBLISH_S = 2.0
_PUBLISHED_MAX = 500  # keys at a time
_COUNT_MAX = 2**31 - 1  # of an integer column

_BY_DIGEST = """
    SELECT k.digest, k.id, k.organization_id, k.project_id, k.member_id, k.budget_limit,
           k.budget_period, k.rpm, k.tpm, k.concurrency, k.models, k.expires_at,
           k.revoked_at IS NOT NULL OR o.deleted_at IS NOT NULL
               -- Made while its member was being removed, so the removal has not seen it.
               OR m.removed_at IS NOT NULL AS is_revoked,
           o.partition, o.time_zone, o.unpriced_allowed,
           o.grace_nanos, o.suspended_at IS NOT NULL AS is_suspended,
           -- Both only grow, so whatever changes, the sum is above every one seen before.
           k.version + o.version AS version
    FROM api_key AS k JOIN organization AS o ON o.id = k.organization_id
    LEFT JOIN member AS m ON m.id = k.member_id
    WHERE k.digest = ANY($1::bytea[])
"""
_DIGESTS = "SELECT digest FROM api_key WHERE organization_id = $1"
_PROJECT_BY_NAME = """
    INSERT INTO project (id, organization_id, name) VALUES (gen_random_uuid(), $1, $2)
    ON CONFLICT (organization_id, name) DO UPDATE SET name = excluded.name
    RETURNING id
"""
_INSERT = """
    INSERT INTO api_key (id, organization_id, project_id, member_id, digest, name, last4,
                         budget_limit, budget_period, rpm, tpm, concurrency, models, expires_at)
    VALUES (gen_random_uuid(), $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
    RETURNING id
"""
_VIEW = """
    SELECT k.id, k.organization_id, p.name AS project, k.member_id, k.name, k.last4, k.budget_limit,
           k.budget_period, k.rpm, k.tpm, k.concurrency, k.models, k.expires_at, k.revoked_at,
           k.created_at
    FROM api_key AS k JOIN project AS p ON p.id = k.project_id
"""
_ONE = _VIEW + "WHERE k.id = $1"
_LISTED = _VIEW + "WHERE k.organization_id = $1 ORDER BY k.created_at, k.id LIMIT $2"
_MATCHING = """
    SELECT id FROM api_key
    WHERE ($1::uuid IS NULL OR organization_id = $1)
      AND (id::text = $2 OR last4 = $2 OR name = $2)
    ORDER BY created_at LIMIT 20
"""
_REVOKE = """
    UPDATE api_key
    SET version = version + 1, revoked_at = coalesce(revoked_at, now())
    WHERE id = $1
    RETURNING digest, organization_id, name
"""


class KeyLabel(NamedTuple):
    """What is kept of a key's text."""

    digest: bytes
    last4: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyTerms:
    """What a new key may do; `None`: without that limit."""

    name: str
    project: str | None = None  # made if there is none of this name; None: the default project
    member_id: UUID | None = None
    budget: Nanos | None = None
    period: Period | None = None
    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None
    models: tuple[str, ...] | None = None
    expires_at: datetime | None = None
    actor: str = "operator"


class ApiKey(NamedTuple):
    """A key as people see it."""

    id: UUID
    organization_id: UUID
    project: str
    member_id: UUID | None
    name: str
    last4: str
    budget: Nanos | None
    period: Period | None
    rpm: int | None
    tpm: int | None
    concurrency: int | None
    models: tuple[str, ...] | None
    expires_at: datetime | None
    revoked_at: datetime | None
    created_at: datetime


async def find(pool: asyncpg.Pool, digests: Sequence[bytes]) -> dict[bytes, KnownKey]:
    """The keys of those digests that are known; raises `StoreAway`. Asked by the authenticator."""
    try:
        rows = await pool.fetch(_BY_DIGEST, digests)
    except (asyncpg.PostgresError, *AWAY) as error:
        raise StoreAway(str(error) or type(error).__name__) from error
    return {row["digest"]: _known(row) for row in rows}


async def create(
    pool: asyncpg.Pool, cache: KeyCache, *, organization_id: UUID, label: KeyLabel, terms: KeyTerms
) -> ApiKey:
    """Make a key that works at once on every gateway."""
    _check(terms)
    async with pool.acquire() as connection, connection.transaction():
        project_id = await _project(connection, organization_id, terms.project)
        key_id = await connection.fetchval(
            _INSERT,
            organization_id,
            project_id,
            terms.member_id,
            label.digest,
            terms.name,
            label.last4,
            terms.budget,
            terms.period,
            terms.rpm,
            terms.tpm,
            terms.concurrency,
            terms.models,
            terms.expires_at,
        )
        made = Change(terms.actor, "key.create", str(key_id), after={"name": terms.name})
        await append_change(connection, str(organization_id), made)
    # A gateway that refused this key a moment ago would do so again; without the news, for 1 s.
    await publish(pool, cache, [label.digest])
    return await get(pool, key_id)


async def get(pool: asyncpg.Pool, key_id: UUID) -> ApiKey:
    """One key; raises `NotFound`."""
    row = await pool.fetchrow(_ONE, key_id)
    if row is None:
        raise NotFound(f"there is no API key {key_id}", code="api_key_not_found")
    return _view(row)


async def listed(pool: asyncpg.Pool, organization_id: UUID) -> list[ApiKey]:
    """The keys of an organization, the oldest first, revoked ones too."""
    return [_view(row) for row in await pool.fetch(_LISTED, organization_id, LISTED_MAX)]


async def resolve(pool: asyncpg.Pool, text: str, *, organization_id: UUID | None) -> UUID:
    """The one key with this id, name or last four characters; raises `NotFound`, `BadRequest`."""
    found = [row["id"] for row in await pool.fetch(_MATCHING, organization_id, text)]
    if not found:
        raise NotFound(f"there is no API key {text!r}", code="api_key_not_found")
    if len(found) > 1:
        ids = ", ".join(str(key_id) for key_id in found)
        raise BadRequest(f"{text!r} may be any of these keys: {ids}", code="ambiguous")
    return UUID(str(found[0]))


async def revoke(
    pool: asyncpg.Pool, cache: KeyCache, key_id: UUID, *, actor: str = "operator"
) -> bool:
    """End a key for ever. False: Redis was not told, so gateways may take it for 30 s more.

    Repeating it is harmless and tells Redis again.
    """
    async with pool.acquire() as connection, connection.transaction():
        row = await connection.fetchrow(_REVOKE, key_id)
        if row is None:
            raise NotFound(f"there is no API key {key_id}", code="api_key_not_found")
        done = Change(actor, "key.revoke", str(key_id), before={"name": row["name"]})
        await append_change(connection, str(row["organization_id"]), done)
    return await publish(pool, cache, [row["digest"]])


async def publish_all(pool: asyncpg.Pool, cache: KeyCache, organization_id: UUID) -> bool:
    """`publish` for every key of an organization, of which something has changed."""
    digests = [row["digest"] for row in await pool.fetch(_DIGESTS, organization_id)]
    batches = [digests[at : at + _PUBLISHED_MAX] for at in range(0, len(digests), _PUBLISHED_MAX)]
    return all([await publish(pool, cache, batch) for batch in batches])


async def publish(pool: asyncpg.Pool, cache: KeyCache, digests: Sequence[bytes]) -> bool:
    """Write keys to Redis as they are now and have every gateway forget what it knew of them.

    False: Redis did not answer. What was committed holds; gateways learn it by their own checks.
    """
    try:
        async with asyncio.timeout(PUBLISH_S):
            await cache.put(await find(pool, digests))
            await cache.announce(*[KeyChange(digest=digest) for digest in digests])
    except (CacheAway, StoreAway, TimeoutError):
        return False
    return True


async def _project(
    connection: asyncpg.pool.PoolConnectionProxy, organization_id: UUID, name: str | None
) -> UUID:
    if name is not None:
        project_id = await connection.fetchval(_PROJECT_BY_NAME, organization_id, name)
    else:
        project_id = await connection.fetchval(
            "SELECT id FROM project WHERE organization_id = $1 AND is_default", organization_id
        )
    if project_id is None:
        raise NotFound(f"there is no organization {organization_id}", code="organization_not_found")
    return UUID(str(project_id))


def _check(terms: KeyTerms) -> None:
    names = [terms.name] if terms.project is None else [terms.name, terms.project]
    for name in names:
        if not name.strip() or len(name) > NAME_CHARACTERS_MAX or not name.isprintable():
            raise BadRequest(
                f"a name has 1 to {NAME_CHARACTERS_MAX} printable characters", code="invalid_name"
            )
    for limit in (terms.rpm, terms.tpm, terms.concurrency):
        if limit is not None and not 0 < limit <= _COUNT_MAX:
            raise BadRequest(f"a limit is from 1 to {_COUNT_MAX}", code="invalid_limit")
    if (terms.budget is None) != (terms.period is None):
        raise BadRequest("a budget and its period come together", code="invalid_budget")
    if terms.budget is not None and not 0 <= terms.budget <= NANOS_MAX:
        raise BadRequest("a budget is not negative", code="invalid_budget")
    if terms.models is not None and not 0 < len(terms.models) <= MODELS_MAX:
        raise BadRequest(f"a key names 1 to {MODELS_MAX} models", code="invalid_models")


def _known(row: asyncpg.Record) -> KnownKey:
    organization_id, key_id = str(row["organization_id"]), str(row["id"])
    budgets: tuple[Budget, ...] = ()
    if row["budget_limit"] is not None:
        period = Period(row["budget_period"])
        budgets = (Budget(f"key:{key_id}", Nanos(row["budget_limit"]), period),)
    expires_at = row["expires_at"]
    principal = Principal(
        organization_id=organization_id,
        partition=row["partition"],
        wallet=organization_id,
        project_id=str(row["project_id"]),
        key_id=key_id,
        member_id="" if row["member_id"] is None else str(row["member_id"]),
        version=row["version"],
        time_zone=row["time_zone"],
        budgets=budgets,
        rpm=row["rpm"],
        tpm=row["tpm"],
        concurrency=row["concurrency"],
        models=None if row["models"] is None else frozenset(row["models"]),
        expires_at_ms=None if expires_at is None else int(expires_at.timestamp() * 1000),
        is_suspended=row["is_suspended"],
        allows_unpriced=row["unpriced_allowed"],
        grace=Nanos(row["grace_nanos"]),
    )
    return KnownKey(principal, row["is_revoked"])


def _view(row: asyncpg.Record) -> ApiKey:
    return ApiKey(
        id=row["id"],
        organization_id=row["organization_id"],
        project=row["project"],
        member_id=row["member_id"],
        name=row["name"],
        last4=row["last4"],
        budget=row["budget_limit"],
        period=None if row["budget_period"] is None else Period(row["budget_period"]),
        rpm=row["rpm"],
        tpm=row["tpm"],
        concurrency=row["concurrency"],
        models=None if row["models"] is None else tuple(row["models"]),
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
        created_at=row["created_at"],
    )
