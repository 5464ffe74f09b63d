"""How long an organization keeps how its calls went, over HTTP; what they cost is kept for ever."""

from typing import Any
from uuid import UUID

import msgspec
from msgspec import UNSET, UnsetType

from gateway.errors import BadRequest
from gateway.management.audit import note
from gateway.management.desk import Desk
from gateway.management.limits import Days, LogLevel, allowed, limits_in, log_days_of
from gateway.policy import Permission
from gateway.rest.caller import Scope, member
from gateway.rest.problem import ChangedMeanwhile
from gateway.rest.route import Answer, Asked, Nothing, Route

_ONE = """
    SELECT plan, limits, log_level, log_days, version FROM organization WHERE id = $1
"""
_SET = """
    UPDATE organization SET log_level = $2, log_days = $3, version = version + 1
    WHERE id = $1 AND deleted_at IS NULL AND version = $4
    RETURNING id
"""


class PrivacyChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is to be changed; what is left out stays."""

    log_level: LogLevel | UnsetType = UNSET
    log_days: Days | UnsetType | None = UNSET  # null: as long as the plan allows


class PrivacyView(msgspec.Struct, frozen=True, kw_only=True):
    """How long logs of calls are kept. Days are of UTC, and count from the end of a call's own."""

    log_level: LogLevel
    log_days: int | None  # as chosen; null: as long as the plan allows
    log_days_max: dict[LogLevel, int]  # what the plan allows at each level
    log_days_kept: int  # what follows: logs of calls older than that are deleted
    version: int


async def get(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """How long logs are kept here."""
    view = await _privacy(desk, asked.caller.place.organization_id)
    return Answer(view, view.version)


async def change(desk: Desk, asked: Asked[Nothing, PrivacyChange]) -> Answer:
    """Choose how long logs are kept, within what the plan allows."""
    place, wanted = asked.caller.place, asked.body
    before = await _privacy(desk, place.organization_id)
    level = before.log_level if wanted.log_level is UNSET else wanted.log_level
    days = before.log_days if wanted.log_days is UNSET else wanted.log_days
    most = before.log_days_max[level]
    # What was chosen under a larger plan stays chosen: it holds again under the next one.
    if wanted.log_days is not UNSET and days is not None and days > most:
        raise BadRequest(
            f"At level {level.value} the plan keeps logs for {most} days at most. Choose fewer, or"
            " a larger plan.",
            code="log_days_max",
            param="log_days",
            extra={"log_days_max": most},
        )
    async with desk.pool.acquire() as connection, connection.transaction():
        expected = before.version if asked.if_match is None else asked.if_match
        done = await connection.fetchval(_SET, place.organization_id, level, days, expected)
        if done is None:
            raise ChangedMeanwhile
        said: dict[str, Any] = {"log_level": before.log_level, "log_days": before.log_days}
        now_said: dict[str, Any] = {"log_level": level, "log_days": days}
        await note(connection, asked, "privacy.update", before=said, after=now_said)
    view = await _privacy(desk, place.organization_id)
    return Answer(view, view.version)


async def _privacy(desk: Desk, organization_id: UUID) -> PrivacyView:
    row = await desk.pool.fetchrow(_ONE, organization_id)
    assert row is not None, "the guard has seen it"
    may = allowed(desk.config.plans, row["plan"], limits_in(row["limits"]))
    level = LogLevel(row["log_level"])
    return PrivacyView(
        log_level=level,
        log_days=row["log_days"],
        log_days_max={one: may.log_days_at(one) for one in LogLevel},
        log_days_kept=log_days_of(may, level, row["log_days"]),
        version=row["version"],
    )


ROUTES = (
    Route(
        method="GET",
        path="/privacy",
        name="privacy.get",
        says="How long it is kept how calls went.",
        access=member(Permission.ORGANIZATION_READ, Scope.ORGANIZATIONS_READ),
        handle=get,
        answers=PrivacyView,
    ),
    Route(
        method="PATCH",
        path="/privacy",
        name="privacy.change",
        says="Choose how long it is kept how calls went, within what the plan allows.",
        access=member(Permission.PRIVACY_UPDATE, Scope.ORGANIZATIONS_WRITE),
        handle=change,
        body=PrivacyChange,
        answers=PrivacyView,
    ),
)
