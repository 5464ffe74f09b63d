"""What a gateway learns of a key it meets: whose it is, and what limits hold for its calls.

All that is obeyed about a key comes from one query, whose columns only grow: a change of a member,
a project or the organization that it reads must raise the version of the keys concerned.
"""

from collections.abc import Sequence
from enum import StrEnum
from uuid import UUID

import asyncpg

from gateway.auth import StoreAway
from gateway.principal import Budget, KnownKey, Period, Principal
from ledger.money import Nanos
from ledger.postgres import AWAY

_BY_DIGEST = """
    SELECT s.digest, k.id, k.organization_id, k.project_id,
           coalesce(s.member_id, k.member_id) AS member_id, k.budget_limit,
           k.budget_period, k.rpm, k.tpm, k.concurrency, k.models,
           least(k.expires_at, s.ends_at) AS expires_at, k.disabled_at IS NOT NULL AS is_disabled,
           k.revoked_at IS NOT NULL OR o.deleted_at IS NOT NULL
           -- Or it was made while its member was being removed, and the removal has not seen it.
           OR m.removed_at IS NOT NULL
           OR coalesce(s.ends_at <= now(), false) AS is_revoked,
           o.partition, o.time_zone, o.unpriced_allowed,
           o.grace_nanos, o.suspended_at IS NOT NULL AS is_suspended,
           -- Both only grow, so whatever changes, the sum is above every one seen before.
           k.version + o.version AS version,
           k.default_model, k.ip_ranges, o.ip_ranges AS organization_ranges,
           m.budget_limit AS member_limit, m.budget_period AS member_period,
           p.budget_limit AS project_limit, p.budget_period AS project_period,
           o.log_level = 'retain' AND o.content_logging AND p.content_logging AS keeps_content
    FROM (
        SELECT digest, id AS key_id, NULL::uuid AS member_id, NULL::timestamptz AS ends_at
        FROM api_key WHERE digest = ANY($1::bytea[])
        UNION ALL
        SELECT digest, key_id, member_id, ends_at FROM key_secret WHERE digest = ANY($1::bytea[])
    ) AS s
    JOIN api_key AS k ON k.id = s.key_id
    JOIN organization AS o ON o.id = k.organization_id
    JOIN project AS p ON p.id = k.project_id
    LEFT JOIN member AS m ON m.id = coalesce(s.member_id, k.member_id)
"""


class CapOwner(StrEnum):
    """Whose calls a budget is for."""

    KEY = "key"
    MEMBER = "member"
    PROJECT = "project"


def cap_id(owner: CapOwner, owner_id: UUID | str) -> str:
    """The name under which the ledger knows the budget of this key, member or project."""
    return f"{owner}:{owner_id}"


async def find(pool: asyncpg.Pool, digests: Sequence[bytes]) -> dict[bytes, KnownKey]:
    """The keys of those digests that are known; raises `StoreAway`. Asked by the authenticator."""
    try:
        rows = await pool.fetch(_BY_DIGEST, digests)
    except (asyncpg.PostgresError, *AWAY) as error:
        raise StoreAway(str(error) or type(error).__name__) from error
    return {row["digest"]: _known(row) for row in rows}


def _known(row: asyncpg.Record) -> KnownKey:
    organization_id, key_id = str(row["organization_id"]), str(row["id"])
    member_id = "" if row["member_id"] is None else str(row["member_id"])
    budgets = [
        Budget(cap_id(owner, owner_id), Nanos(limit), Period(period))
        for owner, owner_id, limit, period in (
            (CapOwner.KEY, key_id, row["budget_limit"], row["budget_period"]),
            (CapOwner.MEMBER, member_id, row["member_limit"], row["member_period"]),
            (CapOwner.PROJECT, row["project_id"], row["project_limit"], row["project_period"]),
        )
        if limit is not None
    ]
    principal = Principal(
        organization_id=organization_id,
        partition=row["partition"],
        wallet=organization_id,
        project_id=str(row["project_id"]),
        key_id=key_id,
        member_id=member_id,
        version=row["version"],
        time_zone=row["time_zone"],
        budgets=tuple(budgets),
        rpm=row["rpm"],
        tpm=row["tpm"],
        concurrency=row["concurrency"],
        models=None if row["models"] is None else frozenset(row["models"]),
        expires_at_ms=_expiry_ms(row),
        is_suspended=row["is_suspended"],
        allows_unpriced=row["unpriced_allowed"],
        grace=Nanos(row["grace_nanos"]),
        default_model=row["default_model"],
        networks=tuple(
            tuple(ranges)
            for ranges in (row["ip_ranges"], row["organization_ranges"])
            if ranges is not None
        ),
        keeps_content=row["keeps_content"],
    )
    return KnownKey(principal, row["is_revoked"])


def _expiry_ms(row: asyncpg.Record) -> int | None:
    """When gateways stop taking it, unix ms.

    A disabled key is one that expired long ago: unlike a tombstone, such an entry is checked
    against Postgres, so that a key whose enabling Redis never heard of comes back all the same. And
    gateways of older releases obey it.
    """
    if row["is_disabled"]:
        return 0
    return None if row["expires_at"] is None else int(row["expires_at"].timestamp() * 1000)
