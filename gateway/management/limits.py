"""How much an organization may have: what its plan says, or what the operator set for it."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, NamedTuple
from uuid import UUID

import asyncpg
import msgspec

from gateway.plans import LOG_DAYS_MAX, Plan, plan_of
from ledger.postgres import Connection
from ledger.retention import Keeper

Most = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Days = Annotated[int, msgspec.Meta(ge=1, le=LOG_DAYS_MAX)]

_PAGE = 1_000
_ALLOWED = "SELECT plan, limits FROM organization WHERE id = $1"
_KEEPERS = """
    SELECT id, plan, limits, log_level, log_days, logs_swept_to FROM organization
    WHERE id > $1 ORDER BY id LIMIT $2
"""


class LogLevel(StrEnum):
    """How much of its calls an organization has kept."""

    NONE = "none"  # how they went, for a short time; never what was said
    RETAIN = "retain"


class Limits(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """What the operator set for one organization; null: as its plan says."""

    organizations_max: Most | None = None  # of the person whose own account it is
    projects_max: Most | None = None
    members_max: Most | None = None
    log_days_max: Days | None = None  # at level retain


class Allowed(NamedTuple):
    """What an organization may have: its plan, as the operator's limits leave it."""

    organizations_max: int
    projects_max: int
    members_max: int
    log_days_none: int
    log_days_retain: int

    def log_days_at(self, level: LogLevel) -> int:
        """The longest that how its calls went may be kept, in days."""
        return self.log_days_retain if level is LogLevel.RETAIN else self.log_days_none


def limits_in(text: str) -> Limits:
    """The limits of an organization's row. Those of a newer release are passed over."""
    said = msgspec.json.decode(text)
    known = {name: said[name] for name in Limits.__struct_fields__ if name in said}
    return msgspec.convert(known, Limits)


def allowed(plans: Mapping[str, Plan], plan: str, limits: Limits) -> Allowed:
    """What an organization of this plan and with these limits may have."""
    held = plan_of(plans, plan)
    return Allowed(
        organizations_max=limits.organizations_max or held.organizations_max,
        projects_max=limits.projects_max or held.projects_max,
        members_max=limits.members_max or held.members_max,
        log_days_none=held.log_days_none,
        log_days_retain=limits.log_days_max or held.log_days_retain,
    )


async def allowed_to(
    connection: Connection | asyncpg.Pool, plans: Mapping[str, Plan], organization_id: UUID
) -> Allowed:
    """What this organization may have now."""
    row = await connection.fetchrow(_ALLOWED, organization_id)
    assert row is not None, "an organization's row is never deleted"
    return allowed(plans, row["plan"], limits_in(row["limits"]))


def log_days_of(may: Allowed, level: LogLevel, chosen: int | None) -> int:
    """How long it keeps how its calls went: as chosen, within what it may."""
    most = may.log_days_at(level)
    return most if chosen is None else min(chosen, most)


async def keepers(connection: Connection, plans: Mapping[str, Plan]) -> list[Keeper]:
    """How long each organization there ever was keeps how its calls went."""
    found: list[Keeper] = []
    after = UUID(int=0)
    while rows := await connection.fetch(_KEEPERS, after, _PAGE):
        found += [_keeper(plans, row) for row in rows]
        after = rows[-1]["id"]
    return found


def _keeper(plans: Mapping[str, Plan], row: asyncpg.Record) -> Keeper:
    may = allowed(plans, row["plan"], limits_in(row["limits"]))
    days = log_days_of(may, LogLevel(row["log_level"]), row["log_days"])
    return Keeper(row["id"], days, row["logs_swept_to"])
