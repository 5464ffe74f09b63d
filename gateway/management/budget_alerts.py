"""Budgets: owners and admins are told when a share of a key's, project's or member's is spent.

Each share is told once in each window of a budget; a budget that gets another limit is another one,
of which shares are told anew. Of several shares that one look finds, the highest is mailed.
"""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

import asyncpg

from gateway.management.alert_settings import PERCENTS
from gateway.management.alerts import Alert, AlertKind, give
from gateway.management.desk import Desk
from gateway.management.known_keys import CapOwner
from gateway.management.watch import Sight

_SOME = 500  # alerts given in one transaction
_LONGEST = timedelta(days=32)  # no window lasts longer but one that never ends

_FOUND = """
    WITH budget AS (
        SELECT 'key' AS owner, id, organization_id, name, budget_period AS period
        FROM api_key WHERE budget_limit IS NOT NULL AND revoked_at IS NULL
          AND ($1::uuid[] IS NULL OR id = ANY ($1))
        UNION ALL
        SELECT 'project', id, organization_id, name, budget_period
        FROM project WHERE budget_limit IS NOT NULL AND archived_at IS NULL
          AND ($1::uuid[] IS NULL OR id = ANY ($1))
        UNION ALL
        SELECT 'member', id, organization_id, email, budget_period
        FROM member WHERE budget_limit IS NOT NULL AND removed_at IS NULL
          AND ($1::uuid[] IS NULL OR id = ANY ($1))
    )
    SELECT b.owner, b.id, b.organization_id, b.name, b.period, w.starts_ms, w.cap_limit, w.spent,
           percent, s.subject
    FROM budget AS b
    JOIN organization AS o ON o.id = b.organization_id AND o.deleted_at IS NULL
    LEFT JOIN alert_settings AS chosen ON chosen.organization_id = b.organization_id
    CROSS JOIN LATERAL (
        -- Late charges and corrections lower the base.
        SELECT id, starts_ms, cap_limit, spent + cap_limit - base AS spent FROM cap_window
        WHERE cap_id = b.owner || ':' || b.id ORDER BY starts_ms DESC LIMIT 1
    ) AS w
    CROSS JOIN LATERAL unnest(coalesce(chosen.budget_percents, $2::smallint[])) AS percent
    CROSS JOIN LATERAL (SELECT concat(w.id, ' of ', w.cap_limit, ' ', percent) AS subject) AS s
    WHERE w.cap_limit > 0 AND w.spent * 100 >= percent * w.cap_limit
      AND (w.starts_ms = 0 OR w.starts_ms > $3)
      AND NOT EXISTS (
          SELECT FROM alert AS a
          WHERE a.organization_id = b.organization_id AND a.kind = 'budget.percent'
            AND a.subject = s.subject
      )
    ORDER BY b.organization_id, b.owner, b.id, percent DESC LIMIT $4
"""


class BudgetAlerts:
    """Tells of budgets that are spent to a share."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def look(self, sight: Sight) -> None:
        """Tell of what these windows have reached. Two who find the same give it once."""
        owners = None if sight.windows is None else owners_of(sight.windows)
        if owners is not None and not owners:
            return
        while await self._look_at_some(owners) == _SOME:
            pass

    async def _look_at_some(self, owners: Sequence[UUID] | None) -> int:
        oldest_ms = int((self._desk.now() - _LONGEST).timestamp() * 1000)
        async with self._desk.pool.acquire() as connection:
            rows = await connection.fetch(_FOUND, owners, PERCENTS, oldest_ms, _SOME)
            mailed = set()
            alerts = []
            for row in rows:
                # The highest share comes first.
                alerts.append(_alert(row, is_mailed=row["id"] not in mailed))
                mailed.add(row["id"])
            async with connection.transaction():
                await give(connection, self._desk, alerts)
        return len(rows)


def owners_of(windows: Sequence[str]) -> list[UUID]:
    """Whose budgets these windows are; '<owner>:<id>@<start>'."""
    owners = set()
    for window in windows:
        owner, _, name = window.partition("@")[0].partition(":")
        if owner in set(CapOwner):
            try:
                owners.add(UUID(name))
            except ValueError:
                continue
    return [*owners]


def _alert(row: asyncpg.Record, *, is_mailed: bool) -> Alert:
    facts = {
        "owner": row["owner"],
        "owner_id": str(row["id"]),
        "name": row["name"],
        "period": row["period"],
        "percent": row["percent"],
        "limit_nanos": row["cap_limit"],
        "spent_nanos": row["spent"],
    }
    return Alert(
        row["organization_id"],
        AlertKind.BUDGET,
        row["subject"],
        facts,
        mail="budget" if is_mailed else None,
    )
