"""What an organization used and what it was charged: sums by model, day or key, and single calls.

Sums come from the hourly rollups, so a report reads hundreds of rows and not millions. A call
counts to the time it was admitted; an hour belongs to the day it begins in, in the organization's
time zone.
"""

from datetime import datetime
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

import asyncpg

RECENT_MAX = 1_000


class Grouping(StrEnum):
    """What a line of the report stands for."""

    MODEL = "model"
    DAY = "day"
    KEY = "key"


# One row per line of the report. $1 organization, $2 and $3 the first and the end of the hours.
_SUMS = """
    sum(h.calls)::bigint AS calls, sum(h.successes)::bigint AS successes,
    sum(h.estimated)::bigint AS estimated, sum(h.input)::bigint AS input,
    sum(h.cache_read)::bigint AS cache_read, sum(h.cache_write)::bigint AS cache_write,
    sum(h.output)::bigint AS output, sum(h.reasoning)::bigint AS reasoning,
    sum(h.charge)::bigint AS charge
    FROM usage_hourly AS h
"""
_WHERE = " WHERE h.organization_id = $1 AND h.hour >= $2 AND h.hour < $3 "
_REPORTS = {
    Grouping.MODEL: (
        "SELECT h.provider || '/' || h.model AS label,"
        + _SUMS
        + _WHERE
        + "GROUP BY h.provider, h.model ORDER BY charge DESC, label"
    ),
    Grouping.DAY: (
        "SELECT to_char(h.hour AT TIME ZONE o.time_zone, 'YYYY-MM-DD') AS label,"
        + _SUMS
        + "JOIN organization AS o ON o.id = h.organization_id"
        + _WHERE
        + "GROUP BY label ORDER BY label"
    ),
    Grouping.KEY: (
        "SELECT coalesce(k.name || ' (' || k.last4 || ')', h.key_id::text) AS label,"
        + _SUMS
        + "LEFT JOIN api_key AS k ON k.id = h.key_id"
        + _WHERE
        + "GROUP BY h.key_id, k.name, k.last4 ORDER BY charge DESC, label"
    ),
}
_RECENT = """
    SELECT r.call_id, r.admitted_at, r.key_id, k.name AS key_name, r.operation, r.provider,
           r.model_requested, r.model_target, r.outcome, r.kind, r.input, r.cache_read,
           r.cache_write, r.output, r.reasoning, r.usage_source, r.charge
    FROM usage_call AS r LEFT JOIN api_key AS k ON k.id = r.key_id
    WHERE r.organization_id = $1
    ORDER BY r.call_id DESC
    LIMIT $2
"""


class Line(NamedTuple):
    """One line of a report. Tokens; `charge` in nano-USD."""

    label: str
    calls: int
    successes: int
    estimated: int  # calls whose vendor reported no usage
    input: int  # neither read from a cache nor written to one
    cache_read: int
    cache_write: int
    output: int
    reasoning: int  # of output
    charge: int


class Call(NamedTuple):
    """One call, as it ended. Corrections that came later are not in it."""

    call_id: UUID
    admitted_at: datetime
    key: str
    operation: str
    provider: str
    model: str
    outcome: str
    kind: str
    input: int
    cache_read: int
    cache_write: int
    output: int
    reasoning: int
    usage_source: str
    charge: int


async def report(
    pool: asyncpg.Pool, organization_id: UUID, *, by: Grouping, since: datetime, until: datetime
) -> list[Line]:
    """What was used from `since` to `until`, whole hours, the dearest first, or by day."""
    rows = await pool.fetch(_REPORTS[by], organization_id, since, until)
    return [Line(**row) for row in rows]


async def recent(pool: asyncpg.Pool, organization_id: UUID, *, limit: int) -> list[Call]:
    """The newest calls that have ended, the newest first."""
    assert 0 < limit <= RECENT_MAX
    rows = await pool.fetch(_RECENT, organization_id, limit)
    return [
        Call(
            call_id=row["call_id"],
            admitted_at=row["admitted_at"],
            key=row["key_name"] or str(row["key_id"]),
            operation=row["operation"],
            provider=row["provider"],
            model=row["model_requested"] or row["model_target"],
            outcome=row["outcome"],
            kind=row["kind"],
            input=row["input"],
            cache_read=row["cache_read"],
            cache_write=row["cache_write"],
            output=row["output"],
            reasoning=row["reasoning"],
            usage_source=row["usage_source"],
            charge=row["charge"],
        )
        for row in rows
    ]
