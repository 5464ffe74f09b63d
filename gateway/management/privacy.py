"""What an organization keeps of its calls and how long, over HTTP; what they cost is for ever."""

from typing import Any
from uuid import UUID

import msgspec
from msgspec import UNSET, UnsetType

from gateway.errors import BadRequest
from gateway.management import api_keys
from gateway.management.audit import note
from gateway.management.desk import Desk
from gateway.management.limits import Days, LogLevel, allowed, limits_in, log_days_of
from gateway.policy import Permission
from gateway.rest.caller import Scope, member
from gateway.rest.problem import ChangedMeanwhile
from gateway.rest.route import Answer, Asked, Nothing, Route

_ONE = """
    SELECT plan, limits, log_level, log_days, content_logging, version FROM organization
    WHERE id = $1
"""
_SET = """
    UPDATE organization
    SET log_level = $2, log_days = $3, content_logging = $4, version = version + 1
    WHERE id = $1 AND deleted_at IS NULL AND version = $5
    RETURNING id
"""


class PrivacyChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is to be changed; what is left out stays."""

    log_level: LogLevel | UnsetType = UNSET
    log_days: Days | UnsetType | None = UNSET  # null: as long as the plan allows
    content_logging: bool | UnsetType = UNSET


class PrivacyView(msgspec.Struct, frozen=True, kw_only=True):
    """How long logs of calls are kept. Days are of UTC, and count from the end of a call's own."""

    log_level: LogLevel
    log_days: int | None  # as chosen; null: as long as the plan allows
    log_days_max: dict[LogLevel, int]  # what the plan allows at each level
    log_days_kept: int  # what follows: logs of calls older than that are deleted
    content_logging: bool  # projects may have kept what is said in their calls, as long as logs
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
    content = _content_logging(before, wanted, level)
    async with desk.pool.acquire() as connection, connection.transaction():
        expected = before.version if asked.if_match is None else asked.if_match
        chosen = (level, days, content)
        done = await connection.fetchval(_SET, place.organization_id, *chosen, expected)
        if done is None:
            raise ChangedMeanwhile
        names = ("log_level", "log_days", "content_logging")
        said: dict[str, Any] = {name: getattr(before, name) for name in names}
        now_said: dict[str, Any] = dict(zip(names, chosen, strict=True))
        await note(connection, asked, "privacy.update", before=said, after=now_said)
    if content is not before.content_logging:
        await api_keys.publish_all(desk.pool, desk.cache, place.organization_id)
    view = await _privacy(desk, place.organization_id)
    return Answer(view, view.version)


def _content_logging(before: PrivacyView, wanted: PrivacyChange, level: LogLevel) -> bool:
    """Whether it is allowed from now on; `none` ends it."""
    if wanted.content_logging is True and level is LogLevel.NONE:
        raise BadRequest(
            "At level none nothing is kept of what is said. Choose log_level retain with it.",
            code="content_needs_retain",
            param="content_logging",
        )
    if level is LogLevel.NONE:
        return False
    return before.content_logging if wanted.content_logging is UNSET else wanted.content_logging


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
        content_logging=row["content_logging"],
        version=row["version"],
    )


ROUTES = (
    Route(
        method="GET",
        path="/privacy",
        name="privacy.get",
        says="What is kept of calls, and how long.",
        access=member(Permission.ORGANIZATION_READ, Scope.ORGANIZATIONS_READ),
        handle=get,
        answers=PrivacyView,
    ),
    Route(
        method="PATCH",
        path="/privacy",
        name="privacy.change",
        says="Choose what is kept of calls, and how long, within what the plan allows.",
        access=member(Permission.PRIVACY_UPDATE, Scope.ORGANIZATIONS_WRITE),
        handle=change,
        body=PrivacyChange,
        answers=PrivacyView,
    ),
)
