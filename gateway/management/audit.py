"""The audit log over HTTP: who changed what, and that nobody changed the log."""

from datetime import datetime
from typing import Annotated, Any

import asyncpg
import msgspec

from gateway.management.desk import Desk
from gateway.policy import Permission
from gateway.rest.caller import Scope, member
from gateway.rest.cursor import Page, Paged, cursor_at, place_in
from gateway.rest.route import Answer, Asked, Nothing, Route
from ledger.postgres import Connection
from ledger.trail import Change, append_change
from ledger.verify import verify_audit

Number = Annotated[int, msgspec.Meta(ge=1, le=2**62)]

_LISTED = """
    SELECT number, at, actor, action, target, before, after, address FROM audit_log
    WHERE organization_id = $1 AND ($2::bigint IS NULL OR number < $2)
    ORDER BY number DESC LIMIT $3
"""


async def note(
    connection: Connection,
    asked: Asked[Any, Any],
    action: str,
    *,
    target: str = "",
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> None:
    """A line of the audit log for what was asked, in its transaction."""
    organization_id = str(asked.caller.place.organization_id)
    changed = Change(
        asked.caller.actor,
        action,
        target or organization_id,
        before=before,
        after=after,
        address=asked.caller.address,
    )
    await append_change(connection, organization_id, changed)


class AuditLine(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody did."""

    number: int  # 1, 2, ... in each organization
    at: datetime
    actor: str
    action: str  # "credit.grant", "key.revoke", ...
    target: str  # the id of what it was done to
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    address: str | None  # where the request came from


class AuditCheck(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the log is as it was written."""

    is_whole: bool
    lines: int  # as many as there must be
    whole_to: int  # the last line that is as it was written, as are all before it


async def listed(desk: Desk, asked: Asked[Paged, Nothing]) -> Answer:
    """What was done here, the newest first."""
    wanted = asked.query
    rows = await desk.pool.fetch(
        _LISTED,
        asked.caller.place.organization_id,
        place_in(wanted.cursor, Number),
        wanted.limit + 1,
    )
    found = [_line(row) for row in rows[: wanted.limit]]
    more = len(rows) > wanted.limit
    return Answer(
        Page[AuditLine](data=found, next_cursor=cursor_at(found[-1].number) if more else None)
    )


async def check(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """Follow the hash chain from the first line to the last."""
    async with desk.pool.acquire() as connection:
        followed = await verify_audit(connection, asked.caller.place.organization_id)
    return Answer(
        AuditCheck(is_whole=followed.is_whole, lines=followed.lines, whole_to=followed.whole_to)
    )


def _line(row: asyncpg.Record) -> AuditLine:
    said = dict(row)
    for name in ("before", "after"):
        said[name] = None if said[name] is None else msgspec.json.decode(said[name])
    return AuditLine(**said)


ROUTES = (
    Route(
        method="GET",
        path="/audit-log",
        name="audit.list",
        says="What was done here, the newest first.",
        access=member(Permission.AUDIT_READ, Scope.AUDIT_READ),
        handle=listed,
        query=Paged,
        answers=Page[AuditLine],
    ),
    Route(
        method="GET",
        path="/audit-log/check",
        name="audit.check",
        says="Whether the log is as it was written, and up to which line.",
        access=member(Permission.AUDIT_READ, Scope.AUDIT_READ),
        handle=check,
        answers=AuditCheck,
    ),
)
