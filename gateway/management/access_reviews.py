"""Reviews of access: each quarter owners and admins have the list of who is in and was active.

An organization that was made in the quarter is asked from the next one on, and one with a single
member has nobody to review.
"""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from gateway.management.alerts import Alert, AlertKind, give
from gateway.management.desk import Desk
from gateway.management.watch import Sight
from ledger.postgres import Connection

_EVERY = timedelta(hours=1)
_SOME = 50  # organizations in one transaction
_MEMBERS_SHOWN = 200
_ACTIVE_WITHIN = timedelta(days=92)

_DUE = """
    SELECT o.id FROM organization AS o
    LEFT JOIN alert_settings AS s ON s.organization_id = o.id
    WHERE o.kind = 'organization' AND o.deleted_at IS NULL AND o.created_at < $1
      AND coalesce(s.reviews, true)
      AND (SELECT count(*) FROM member AS m
           WHERE m.organization_id = o.id AND m.removed_at IS NULL) > 1
      AND NOT EXISTS (
          SELECT FROM alert AS a
          WHERE a.organization_id = o.id AND a.kind = 'access.review' AND a.subject = $2
      )
    ORDER BY o.id LIMIT $3
"""
_MEMBERS = """
    SELECT m.email, m.role, m.created_at AS joined_at, greatest(
        (SELECT max(n.seen_at) FROM seat AS s JOIN session AS n ON n.person_id = s.person_id
         WHERE s.member_id = m.id),
        (SELECT max(u.hour) FROM usage_hourly AS u
         WHERE u.organization_id = $1 AND u.hour > $2 AND u.member_id = m.id)
    ) AS active_at
    FROM member AS m WHERE m.organization_id = $1 AND m.removed_at IS NULL
    ORDER BY active_at NULLS FIRST, m.email LIMIT $3
"""


def quarter_of(now: datetime) -> tuple[datetime, str]:
    """When the quarter began, and its name: "2026-Q4". By UTC."""
    number = (now.month - 1) // 3
    return datetime(now.year, 3 * number + 1, 1, tzinfo=UTC), f"{now.year}-Q{number + 1}"


class AccessReviews:
    """Asks for reviews."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._looked_at: datetime | None = None

    async def look(self, sight: Sight) -> None:
        """Once in an hour, ask those who were not asked in this quarter. Two of us ask once."""
        del sight
        now = self._desk.now().astimezone(UTC)
        if self._looked_at is not None and now - self._looked_at < _EVERY:
            return
        began_at, name = quarter_of(now)
        while await self._ask_some(began_at, name) == _SOME:
            pass
        self._looked_at = now

    async def _ask_some(self, began_at: datetime, name: str) -> int:
        async with self._desk.pool.acquire() as connection, connection.transaction():
            rows = await connection.fetch(_DUE, began_at, name, _SOME)
            alerts = []
            for row in rows:
                members = await self._members(connection, row["id"])
                facts = {"quarter": name, "members": members}
                kind = AlertKind.ACCESS_REVIEW
                alerts.append(Alert(row["id"], kind, name, facts, mail="access_review"))
            await give(connection, self._desk, alerts)
        return len(rows)

    async def _members(self, connection: Connection, organization_id: UUID) -> list[dict[str, Any]]:
        since = self._desk.now() - _ACTIVE_WITHIN
        rows = await connection.fetch(_MEMBERS, organization_id, since, _MEMBERS_SHOWN)
        return [
            {
                "email": row["email"],
                "role": row["role"],
                "joined_on": row["joined_at"].date().isoformat(),
                "active_on": None
                if row["active_at"] is None
                else row["active_at"].date().isoformat(),
            }
            for row in rows
        ]
