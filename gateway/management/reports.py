"""Usage over HTTP: what an organization's calls used and cost, by day, model, key, project, member.

Sums come from the hourly rollups, which equal the records. A call counts to the hour it was
admitted in, an hour to the day it begins in, in the organization's time zone. Where the policy's
activity scope is `own`, members are told of their own calls alone.
"""

from datetime import date, timedelta
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec

from gateway.display import Display, DisplayUnit, display
from gateway.errors import BadRequest, Forbidden
from gateway.management.desk import Desk
from gateway.policy import ActivityScope, Permission, Role
from gateway.rest.caller import Place, Scope, member
from gateway.rest.cursor import Paged, cursor_at, place_in
from gateway.rest.route import Answer, Asked, Nothing, Route

DAYS_MAX = 400
_DAYS = 30
_YEARS = 2000, 9000  # what days lie between
_NOBODY = UUID(int=0)

Count = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]

_SUMS = """
    coalesce(sum(h.calls), 0)::bigint AS calls, coalesce(sum(h.successes), 0)::bigint AS successes,
    coalesce(sum(h.estimated), 0)::bigint AS estimated,
    coalesce(sum(h.input), 0)::bigint AS input_tokens,
    coalesce(sum(h.cache_read), 0)::bigint AS cache_read_tokens,
    coalesce(sum(h.cache_write), 0)::bigint AS cache_write_tokens,
    coalesce(sum(h.output), 0)::bigint AS output_tokens,
    coalesce(sum(h.reasoning), 0)::bigint AS reasoning_tokens,
    coalesce(sum(h.charge), 0)::bigint AS charge_nanos
    FROM usage_hourly AS h
    WHERE h.organization_id = $1
      AND h.hour >= $2::date::timestamp AT TIME ZONE $4
      AND h.hour < ($3::date + 1)::timestamp AT TIME ZONE $4
      AND ($5::uuid IS NULL OR h.project_id = $5) AND ($6::uuid IS NULL OR h.key_id = $6)
      AND ($7::uuid IS NULL OR h.member_id = $7)
"""
_TOTAL = "SELECT" + _SUMS
# One row per line: what it is not told apart by is null.
_LINES = (
    """
    SELECT u.*, k.name || ' (' || k.last4 || ')' AS key, p.name AS project, m.email AS member
    FROM (
        SELECT CASE WHEN $8 THEN (h.hour AT TIME ZONE $4)::date END AS day,
               CASE WHEN $9 THEN h.provider END AS provider, CASE WHEN $9 THEN h.model END AS model,
               CASE WHEN $10 THEN h.key_id END AS key_id,
               CASE WHEN $11 THEN h.project_id END AS project_id,
               CASE WHEN $12 THEN h.member_id END AS member_id,
"""  # noqa: S608 - the inserted text is the constant above
    + _SUMS
    + """
        GROUP BY 1, 2, 3, 4, 5, 6
        ORDER BY 1, charge_nanos DESC, 2, 3, 4, 5, 6 LIMIT $13 OFFSET $14
    ) AS u
    LEFT JOIN api_key AS k ON k.id = u.key_id AND k.organization_id = $1
    LEFT JOIN project AS p ON p.id = u.project_id AND p.organization_id = $1
    LEFT JOIN member AS m ON m.id = u.member_id AND m.organization_id = $1
    ORDER BY u.day, u.charge_nanos DESC, u.provider, u.model, u.key_id, u.project_id, u.member_id
"""
)


class Dimension(StrEnum):
    """What the lines of a report are told apart by."""

    DAY = "day"
    MODEL = "model"  # and its provider
    KEY = "key"
    PROJECT = "project"
    MEMBER = "member"


class UsageWanted(Paged, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which calls, and how they are told apart."""

    since: date | None = None  # the first day; left out: 29 days before the last
    until: date | None = None  # the last day; left out: today
    by: Dimension = Dimension.DAY
    then_by: Dimension | None = None
    project_id: UUID | None = None
    key_id: UUID | None = None
    member_id: UUID | None = None


class Sums(msgspec.Struct, frozen=True, kw_only=True):
    """What calls used. The kinds of tokens are disjoint, but for reasoning, which is output."""

    calls: int
    successes: int
    estimated: int  # whose vendor reported no usage
    input_tokens: int  # neither read from a cache nor written to one
    cache_read_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    charge_nanos: int
    display: Display


class UsageLine(Sums, frozen=True, kw_only=True):
    """The sums of one day, model, key, project, member; null: not told apart by it."""

    day: date | None
    provider: str | None
    model: str | None
    key_id: UUID | None
    key: str | None  # its name and last four characters
    project_id: UUID | None
    project: str | None
    member_id: UUID | None  # null, too: the calls of nobody who is a member
    member: str | None  # their e-mail address


class UsageView(msgspec.Struct, frozen=True, kw_only=True):
    """A report: days in their order, the dearest line of a day first."""

    since: date
    until: date
    time_zone: str  # whose days they are
    total: Sums  # of all lines, also those that follow
    data: list[UsageLine]
    next_cursor: str | None


async def report(desk: Desk, asked: Asked[UsageWanted, Nothing]) -> Answer:
    """What was used and what it cost, as far as it is booked: some tenths of a second behind."""
    place, wanted = asked.caller.place, asked.query
    zone = await desk.pool.fetchval(
        "SELECT time_zone FROM organization WHERE id = $1", place.organization_id
    )
    since, until = _days(wanted, today=desk.now().astimezone(ZoneInfo(zone)).date())
    calls = (
        *(place.organization_id, since, until, zone),
        *(wanted.project_id, wanted.key_id, _member(place, wanted.member_id)),
    )
    apart = {wanted.by, wanted.then_by}
    skipped = place_in(wanted.cursor, Count) or 0
    rows = await desk.pool.fetch(
        _LINES, *calls, *(one in apart for one in Dimension), wanted.limit + 1, skipped
    )
    total = await desk.pool.fetchrow(_TOTAL, *calls)
    assert total is not None, "sums of nothing are a row, too"
    unit = desk.unit_of(place.policy)
    more = len(rows) > wanted.limit
    return Answer(
        UsageView(
            since=since,
            until=until,
            time_zone=zone,
            total=Sums(**total, display=_shown(total["charge_nanos"], unit)),
            data=[_line(dict(row), unit) for row in rows[: wanted.limit]],
            next_cursor=cursor_at(skipped + wanted.limit) if more else None,
        )
    )


def _days(wanted: UsageWanted, *, today: date) -> tuple[date, date]:
    until = wanted.until or today
    if not _YEARS[0] < until.year < _YEARS[1]:
        raise BadRequest("until is no day that calls were on.", code="invalid_days", param="until")
    since = wanted.since or until - timedelta(days=_DAYS - 1)
    if not timedelta() <= until - since < timedelta(days=DAYS_MAX):
        raise BadRequest(
            f"A report is from `since` to `until`, both included, {DAYS_MAX} days at most.",
            code="invalid_days",
            param="since",
        )
    return since, until


def _member(place: Place, wanted: UUID | None) -> UUID | None:
    """Whose calls are counted; None: everybody's."""
    if place.role is not Role.MEMBER or place.policy.activity_scope is ActivityScope.ORGANIZATION:
        return wanted
    if place.member_id is None or wanted not in {None, place.member_id}:
        raise Forbidden(
            "Members see their own usage here (the policy's activity_scope); ask an owner or admin"
            " for that of others.",
            code="own_activity_only",
        )
    return place.member_id


def _line(row: dict[str, Any], unit: DisplayUnit) -> UsageLine:
    if row["member_id"] == _NOBODY:
        row["member_id"] = None
    return UsageLine(**row, display=_shown(row["charge_nanos"], unit))


def _shown(charge: int, unit: DisplayUnit) -> Display:
    return display(unit, has={}, gone={"charge": charge})


ROUTES = (
    Route(
        method="GET",
        path="/usage",
        name="usage.report",
        says="What calls used and cost, by day, model, key, project or member, or by two of them.",
        access=member(Permission.USAGE_READ, Scope.USAGE_READ),
        handle=report,
        query=UsageWanted,
        answers=UsageView,
    ),
)
