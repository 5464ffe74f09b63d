"""API keys: made, listed and revoked here; `known_keys` is what gateways read of them.

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

from gateway.addresses import Ranges
from gateway.auth import StoreAway
from gateway.errors import BadRequest, NotFound
from gateway.key_cache import CacheAway, KeyCache, KeyChange
from gateway.management.known_keys import find
from gateway.principal import Period
from ledger.money import NANOS_MAX, Nanos
from ledger.postgres import AWAY
from ledger.trail import Change, append_change

NAME_CHARACTERS_MAX = 200
MODELS_MAX = 200
LISTED_MAX = 1_000
PUBLISH_S = 2.0
_PUBLISHED_MAX = 500  # keys at a time
_COUNT_MAX = 2**31 - 1  # of an integer column

_OF_ORGANIZATION = "SELECT id FROM api_key WHERE organization_id = $1"
# Secrets that ended some days ago are refused everywhere and need no news.
_DIGESTS = """
    SELECT digest FROM api_key WHERE id = ANY($1::uuid[])
    UNION ALL
    SELECT digest FROM key_secret
    WHERE key_id = ANY($1::uuid[]) AND (ends_at IS NULL OR ends_at > now() - interval '8 days')
"""
_PROJECT_BY_NAME = """
    INSERT INTO project (id, organization_id, name) VALUES (gen_random_uuid(), $1, $2)
    ON CONFLICT (organization_id, name) DO UPDATE SET name = excluded.name
    RETURNING id
"""
# Shared, so that it is not archived while a key is made in it.
_PROJECT_BY_ID = """
    SELECT id FROM project
    WHERE organization_id = $1 AND id = $2 AND archived_at IS NULL FOR SHARE
"""
_DEFAULT_PROJECT = "SELECT id FROM project WHERE organization_id = $1 AND is_default"
_INSERT = """
    INSERT INTO api_key (id, organization_id, project_id, member_id, digest, name, last4,
                         budget_limit, budget_period, rpm, tpm, concurrency, models, expires_at,
                         description, default_model, ip_ranges)
    VALUES (gen_random_uuid(), $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15,
            $16)
    RETURNING id
"""
_VIEW = """
    SELECT k.id, k.organization_id, p.name AS project, k.member_id, k.name, k.last4, k.budget_limit,
           k.budget_period, k.rpm, k.tpm, k.concurrency, k.models, k.expires_at, k.revoked_at,
           k.created_at, k.default_model, k.ip_ranges
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
LOCK = "SELECT id FROM api_key WHERE id = $1 FOR UPDATE"
_REVOKE = """
    UPDATE api_key
    SET version = version + 1, revoked_at = coalesce(revoked_at, now())
    WHERE id = $1
    RETURNING organization_id, name
"""


class KeyLabel(NamedTuple):
    """What is kept of a key's text."""

    digest: bytes
    last4: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyTerms:
    """What a new key may do; `None`: without that limit."""

    name: str
    description: str = ""
    project: str | None = None  # made if there is none of this name; None: the default project
    project_id: UUID | None = None  # one that there is; instead of its name
    member_id: UUID | None = None
    budget: Nanos | None = None
    period: Period | None = None
    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None
    models: tuple[str, ...] | None = None
    default_model: str | None = None  # of calls that name none
    ip_ranges: Ranges | None = None  # where its calls may come from
    expires_at: datetime | None = None
    actor: str = "operator"
    address: str | None = None  # where the request came from


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
    default_model: str | None
    ip_ranges: Ranges | None


async def create(
    pool: asyncpg.Pool, cache: KeyCache, *, organization_id: UUID, label: KeyLabel, terms: KeyTerms
) -> ApiKey:
    """Make a key that works at once on every gateway."""
    _check(terms)
    async with pool.acquire() as connection, connection.transaction():
        project_id = await _project(connection, organization_id, terms)
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
            terms.description,
            terms.default_model,
            terms.ip_ranges,
        )
        made = Change(
            terms.actor,
            "key.create",
            str(key_id),
            after={"name": terms.name},
            address=terms.address,
        )
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
    pool: asyncpg.Pool,
    cache: KeyCache,
    key_id: UUID,
    *,
    actor: str = "operator",
    address: str | None = None,
) -> bool:
    """End a key for ever. False: Redis was not told, so gateways may take it for 30 s more.

    Repeating it is harmless and tells Redis again.
    """
    async with pool.acquire() as connection, connection.transaction():
        row = await connection.fetchrow(_REVOKE, key_id)
        if row is None:
            raise NotFound(f"there is no API key {key_id}", code="api_key_not_found")
        before = {"name": row["name"]}
        done = Change(actor, "key.revoke", str(key_id), before=before, address=address)
        await append_change(connection, str(row["organization_id"]), done)
    return await publish_keys(pool, cache, [key_id])


async def publish_all(pool: asyncpg.Pool, cache: KeyCache, organization_id: UUID) -> bool:
    """`publish` for every key of an organization, of which something has changed."""
    try:
        rows = await pool.fetch(_OF_ORGANIZATION, organization_id)
    except (asyncpg.PostgresError, *AWAY):
        return False
    return await publish_keys(pool, cache, [row["id"] for row in rows])


async def publish_keys(pool: asyncpg.Pool, cache: KeyCache, key_ids: Sequence[UUID]) -> bool:
    """`publish` for every secret of these keys. What it cannot do is no error: it is committed."""
    try:
        digests = [row["digest"] for row in await pool.fetch(_DIGESTS, key_ids)]
    except (asyncpg.PostgresError, *AWAY):
        return False
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
    connection: asyncpg.pool.PoolConnectionProxy, organization_id: UUID, terms: KeyTerms
) -> UUID:
    if terms.project_id is not None:
        found = await connection.fetchval(_PROJECT_BY_ID, organization_id, terms.project_id)
        if found is None:
            raise NotFound(
                f"There is no project {terms.project_id} here that is not archived.",
                code="project_not_found",
                param="project_id",
            )
    elif terms.project is not None:
        found = await connection.fetchval(_PROJECT_BY_NAME, organization_id, terms.project)
    else:
        found = await connection.fetchval(_DEFAULT_PROJECT, organization_id)
    if found is None:
        raise NotFound(f"there is no organization {organization_id}", code="organization_not_found")
    return UUID(str(found))


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
        default_model=row["default_model"],
        ip_ranges=None if row["ip_ranges"] is None else tuple(row["ip_ranges"]),
    )
