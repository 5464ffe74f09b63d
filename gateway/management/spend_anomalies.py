"""Odd spending: owners and admins are told of a day that costs far more than is usual for them.

What is spent today is compared with the same hours of the fourteen days before, by their median and
how far days usually are from it, which single odd days hardly move. At most once a day.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from statistics import median_low
from uuid import UUID

from gateway.management.alert_settings import ANOMALY_MIN
from gateway.management.alerts import Alert, AlertKind, give
from gateway.management.desk import Desk
from gateway.management.watch import Sight

_EVERY = timedelta(minutes=10)
_DAYS = 14
_DAYS_MIN = 7  # before that nothing is usual yet
_TIMES_USUAL = 3
_DEVIATIONS = 6  # of the median deviation; four standard deviations where days vary as by chance

# One row per organization that spent enough today, with what it spent by now on each day before,
# since its first.
_SPENT = """
    WITH here AS (
        SELECT o.id, date_trunc('day', $2::timestamptz, o.time_zone) AS today,
               coalesce(s.anomaly_min_nanos, $3::bigint) AS least
        FROM organization AS o LEFT JOIN alert_settings AS s ON s.organization_id = o.id
        WHERE o.deleted_at IS NULL AND coalesce(s.anomalies, true)
          AND ($1::uuid[] IS NULL OR o.id = ANY ($1))
    ), spending AS (
        SELECT h.*, t.charge
        FROM here AS h
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(u.charge), 0)::bigint AS charge FROM usage_hourly AS u
            WHERE u.organization_id = h.id AND u.hour >= h.today AND u.hour <= $2
        ) AS t
        WHERE t.charge > 0 AND t.charge >= h.least
    )
    SELECT n.id, n.today, n.charge, n.least, array(
        SELECT (
            SELECT coalesce(sum(u.charge), 0)::bigint FROM usage_hourly AS u
            WHERE u.organization_id = n.id AND u.hour >= n.today - back * interval '1 day'
              AND u.hour < $2 - back * interval '1 day'
        )
        FROM generate_series(1, $4::integer) AS back
        WHERE n.today - back * interval '1 day' >= (
            SELECT date_trunc('day', min(u.hour)) FROM usage_hourly AS u
            WHERE u.organization_id = n.id
        )
    ) AS before
    FROM spending AS n
"""


def is_odd(charge: int, before: Sequence[int], *, least: int) -> bool:
    """Whether a day that cost `charge` stands far out of those before it, all by the same hour."""
    if len(before) < _DAYS_MIN or charge < least:
        return False
    usual = median_low(before)
    deviation = median_low([abs(one - usual) for one in before])
    return charge > _TIMES_USUAL * usual and charge > usual + _DEVIATIONS * deviation


class SpendAnomalies:
    """Tells of odd days."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._spent: set[UUID] | None = None  # since the last look; None: anybody
        self._looked_at: datetime | None = None

    async def look(self, sight: Sight) -> None:
        """Compare, every few minutes, those who spent since. Two who find the same give it once."""
        now = self._desk.now()
        if self._spent is not None and sight.organizations is not None:
            self._spent.update(sight.organizations)
        if self._looked_at is not None and now - self._looked_at < _EVERY:
            return
        wanted = None if self._spent is None else [*self._spent]
        # What another process has flushed is not seen here, so a look at all takes all.
        if sight.organizations is None:
            wanted = None
        async with self._desk.pool.acquire() as connection:
            rows = await connection.fetch(_SPENT, wanted, now, ANOMALY_MIN, _DAYS)
            alerts = [
                Alert(
                    row["id"],
                    AlertKind.SPEND_ANOMALY,
                    row["today"].date().isoformat(),
                    {
                        "since": row["today"].isoformat(),
                        "spent_nanos": row["charge"],
                        "usual_nanos": median_low(row["before"]),
                    },
                    mail="anomaly",
                )
                for row in rows
                if is_odd(row["charge"], row["before"], least=row["least"])
            ]
            async with connection.transaction():
                await give(connection, self._desk, alerts)
        self._spent, self._looked_at = set(), now
