"""Auto top-up: who has less than their threshold is charged, once for each time that happens.

A charge is begun by one conditional step on the organization's row: it counts the crossing that it
has seen, so whoever has seen the same one begins nothing, and the payment's id is made of both. The
row of the payment is the order for the cashier. While it is under way, or its credit is, no other
is begun. Balances are what is booked in Postgres.
"""

import logging
from datetime import timedelta
from uuid import NAMESPACE_URL, UUID, uuid5

import asyncpg

from gateway.errors import Conflict
from gateway.management.alerts import Alert, AlertKind, give
from gateway.management.desk import Desk
from gateway.management.payments import (
    NewPayment,
    Owner,
    OwnerKind,
    Purpose,
    begin,
    coins_of,
    later,
)
from gateway.management.watch import Sight
from gateway.payments.processor import MethodKind
from ledger.money import Nanos

log = logging.getLogger(__name__)

ACTOR = "auto top-up"
SPENT_THIS_MONTH = """
    coalesce((
        SELECT sum(p.amount) FROM payment AS p
        WHERE p.organization_id = o.id AND p.purpose = 'top_up' AND p.state <> 'failed'
          AND p.created_at >= date_trunc('month', {now}::timestamptz, o.time_zone)
    ), 0)::bigint
"""
# A person's own method is charged only as long as that person runs the organization.
_DUE = f"""
    SELECT t.organization_id, t.crossings, t.amount, t.method_id, m.owner_kind, m.owner_id, m.kind,
           to_char($2::timestamptz AT TIME ZONE o.time_zone, 'YYYY-MM') AS month,
           t.monthly_max IS NOT NULL
               AND {SPENT_THIS_MONTH.format(now="$2")} + t.amount > t.monthly_max AS is_capped
    FROM auto_top_up AS t
    JOIN organization AS o ON o.id = t.organization_id
    JOIN wallet AS w ON w.id = t.organization_id
    JOIN payment_method AS m ON m.id = t.method_id
    WHERE t.is_enabled AND ($1::uuid[] IS NULL OR t.organization_id = ANY ($1))
      AND w.base - w.spent < t.threshold
      AND o.deleted_at IS NULL AND o.suspended_at IS NULL
      AND (t.retry_at IS NULL OR t.retry_at <= $2)
      AND m.removed_at IS NULL AND m.ready_at IS NOT NULL AND m.processor = $3
      AND (m.owner_kind = 'organization' OR EXISTS (
          SELECT FROM seat AS s JOIN member AS r ON r.id = s.member_id
          WHERE s.person_id = m.owner_id AND s.organization_id = t.organization_id
            AND r.removed_at IS NULL AND r.role IN ('owner', 'admin')
      ))
      AND NOT EXISTS (
          SELECT FROM payment AS p
          WHERE p.organization_id = t.organization_id AND p.purpose = 'top_up'
            AND p.ended_at IS NULL
      )
"""  # noqa: S608 - both parts stand in this file
_CROSSED = """
    UPDATE auto_top_up SET crossings = crossings + 1, retry_at = NULL
    WHERE organization_id = $1 AND crossings = $2 AND is_enabled
    RETURNING crossings
"""


class TopUps:
    """Begins the payments that are due."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def look(self, sight: Sight) -> None:
        """Look at the balances of these organizations."""
        processor = self._desk.processor
        if processor is None or (sight.organizations is not None and not sight.organizations):
            return
        seen = (sight.organizations, self._desk.now(), processor.name)
        for row in await self._desk.pool.fetch(_DUE, *seen):
            if row["is_capped"]:
                await self._tell_capped(row)
            else:
                await self._begin(row)

    async def _begin(self, row: asyncpg.Record) -> None:
        organization_id, amount = row["organization_id"], Nanos(row["amount"])
        try:
            coins = coins_of(self._desk, amount, MethodKind(row["kind"]))
        except Conflict as error:
            said = {"organization": str(organization_id), "reason": error.message}
            log.warning("a top-up cannot be charged", extra={**said, "cause": "payment"})
            return
        try:
            async with self._desk.pool.acquire() as connection, connection.transaction():
                seen = (organization_id, row["crossings"])
                crossing = await connection.fetchval(_CROSSED, *seen)
                if crossing is None:
                    return  # somebody else has begun it
                new = NewPayment(
                    id=top_up_id(organization_id, crossing),
                    purpose=Purpose.TOP_UP,
                    organization_id=organization_id,
                    owner=Owner(OwnerKind(row["owner_kind"]), row["owner_id"]),
                    amount=amount,
                    coins=coins,
                    actor=ACTOR,
                    method_id=row["method_id"],
                )
                begun = await begin(connection, new, self._desk)
                # The cashier's at once: whoever looks at balances waits for no processor.
                await later(connection, begun, self._desk.now(), timedelta(0))
        except asyncpg.UniqueViolationError:
            return  # one is in flight, which was not when the balance was read

    async def _tell_capped(self, row: asyncpg.Record) -> None:
        """Once a month: what is configured is reached, and calls will be refused."""
        facts = {"amount_nanos": row["amount"], "method": "", "decline": "", "is_enabled": True}
        kind = AlertKind.TOP_UP_CAPPED
        alert = Alert(row["organization_id"], kind, row["month"], facts, mail="top_up")
        async with self._desk.pool.acquire() as connection, connection.transaction():
            await give(connection, self._desk, [alert])


def top_up_id(organization_id: UUID, crossing: int) -> UUID:
    """The id of the payment of an organization's n-th top-up."""
    return uuid5(NAMESPACE_URL, f"tollgate:top-up:{organization_id}:{crossing}")
