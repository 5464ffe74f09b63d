"""Low balances: owners and admins are told when what an organization has falls below a level.

A level fires when the balance has been above it and is not any more; above it again it is armed
anew. However often that happens, `low` is told once in 72 hours and `critical` once in 24: a fall
that comes sooner is told when that time is over, if the balance is still below. Balances are what
is booked in Postgres; what open calls hold is not spent yet.
"""

from datetime import timedelta

import asyncpg

from gateway.display import DisplayUnit, worth
from gateway.management.alerts import Alert, AlertKind, give
from gateway.management.desk import Desk
from gateway.management.watch import Sight
from gateway.settings import Credits
from ledger.money import Nanos

LOW_PAUSE = timedelta(hours=72)
CRITICAL_PAUSE = timedelta(hours=24)
_OWN_PAUSE = timedelta(hours=24)
_SOME = 5_000  # levels turned in one transaction

# One row per level that turned: it compares and marks in one step, and a level that somebody else
# has turned since it was read keeps its turn. A level nobody has looked at fires if what was given
# reached it once, so who never had anything is not warned.
_TURN = """
    WITH wanted AS (
        SELECT w.id AS organization_id, w.base, w.base - w.spent AS balance,
               l.kind, l.own_nanos, l.at_nanos, l.pause
        FROM wallet AS w
        JOIN organization AS o ON o.id = w.id AND o.deleted_at IS NULL
        LEFT JOIN alert_settings AS s ON s.organization_id = w.id
        CROSS JOIN LATERAL (
            VALUES ('balance.low', 0::bigint, coalesce(s.low_nanos, $2::bigint), $5::interval),
                   ('balance.critical', 0, coalesce(s.critical_nanos, $3::bigint), $6::interval)
            UNION ALL
            SELECT 'balance.threshold', own, own, $7::interval FROM unnest(s.thresholds) AS own
        ) AS l (kind, own_nanos, at_nanos, pause)
        WHERE $1::uuid[] IS NULL OR w.id = ANY ($1)
    ), due AS (
        SELECT n.*, coalesce(b.turn, 0) + 1 AS turn, n.balance >= n.at_nanos AS is_armed
        FROM wanted AS n LEFT JOIN balance_level AS b USING (organization_id, kind, own_nanos)
        WHERE CASE
            WHEN b.turn IS NULL THEN n.base >= n.at_nanos AND n.base > 0
            WHEN b.is_armed THEN n.balance < n.at_nanos
                AND (b.fired_at IS NULL OR b.fired_at <= $4::timestamptz - n.pause)
            ELSE n.balance >= n.at_nanos
        END
        ORDER BY organization_id, kind, own_nanos LIMIT $8
    ), turned AS (
        INSERT INTO balance_level AS b
            (organization_id, kind, own_nanos, turn, is_armed, fired_at)
        SELECT organization_id, kind, own_nanos, turn, is_armed,
               CASE WHEN NOT is_armed THEN $4::timestamptz END
        FROM due
        ON CONFLICT (organization_id, kind, own_nanos) DO UPDATE
        SET turn = EXCLUDED.turn, is_armed = EXCLUDED.is_armed,
            fired_at = coalesce(EXCLUDED.fired_at, b.fired_at)
        WHERE b.turn = EXCLUDED.turn - 1
        RETURNING organization_id, kind, own_nanos
    )
    SELECT organization_id, kind, own_nanos, turn, is_armed, at_nanos, balance
    FROM turned JOIN due USING (organization_id, kind, own_nanos)
    ORDER BY organization_id, at_nanos
"""
# Who sets a level above the balance sees that; it warns once it was reached.
ARM = """
    INSERT INTO balance_level AS b (organization_id, kind, own_nanos, turn, is_armed)
    SELECT $1, l.kind, l.own_nanos, 1, w.base - w.spent >= l.at_nanos
    FROM unnest($2::text[], $3::bigint[], $4::bigint[]) AS l (kind, own_nanos, at_nanos)
    JOIN wallet AS w ON w.id = $1
    ON CONFLICT (organization_id, kind, own_nanos) DO UPDATE
    SET turn = b.turn + 1, is_armed = EXCLUDED.is_armed
"""


def defaults(credit: Credits) -> tuple[Nanos, Nanos]:
    """The levels of who set none, low and critical: so much of the installation's unit."""
    unit = DisplayUnit(name=credit.unit, per_usd=credit.per_usd, decimals=credit.decimals)
    return worth(credit.low_balance, unit), worth(credit.critical_balance, unit)


class LowBalances:
    """Tells of balances that fell below a level."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._low, self._critical = defaults(desk.config.credits)

    async def look(self, sight: Sight) -> None:
        """Turn the levels of these organizations, and tell of those that fired."""
        if sight.organizations is not None and not sight.organizations:
            return
        while await self._look_at_some(sight) == _SOME:
            pass

    async def _look_at_some(self, sight: Sight) -> int:
        async with self._desk.pool.acquire() as connection, connection.transaction():
            rows = await connection.fetch(
                _TURN,
                sight.organizations,
                self._low,
                self._critical,
                self._desk.now(),
                LOW_PAUSE,
                CRITICAL_PAUSE,
                _OWN_PAUSE,
                _SOME,
            )
            mailed = set()
            alerts = []
            for row in rows:
                if not row["is_armed"]:
                    # The lowest level comes first: one mail tells of a fall through several.
                    alerts.append(_alert(row, is_mailed=row["organization_id"] not in mailed))
                    mailed.add(row["organization_id"])
            await give(connection, self._desk, alerts)
        return len(rows)


def _alert(row: asyncpg.Record, *, is_mailed: bool) -> Alert:
    return Alert(
        row["organization_id"],
        AlertKind(row["kind"]),
        f"{row['at_nanos']} turn {row['turn']}",
        {"balance_nanos": row["balance"], "threshold_nanos": row["at_nanos"]},
        mail="balance" if is_mailed else None,
    )
