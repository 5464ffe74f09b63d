"""What the end of a top-up means for the next one; in the transaction that ends its payment.

Paid: all is well again. A soft decline is tried once more after a day; the second one in a row, or
a hard one, switches the top-up off. Owners and admins are told of each, once.
"""

from datetime import timedelta
from typing import NamedTuple
from uuid import UUID

from gateway.management.alerts import Alert, AlertKind, give
from gateway.management.desk import Desk
from ledger.postgres import Connection

RETRY_AFTER = timedelta(hours=24)
_DECLINES_MAX = 2  # the first, and the one a day later

_PAID = """
    UPDATE auto_top_up SET declines = 0, retry_at = NULL, trouble = NULL, version = version + 1
    WHERE organization_id = $1
"""
_DECLINED = """
    UPDATE auto_top_up
    SET declines = declines + 1, trouble = $2, version = version + 1,
        retry_at = CASE WHEN NOT $4 AND declines + 1 < $5 THEN $3::timestamptz END,
        is_enabled = is_enabled AND NOT $4 AND declines + 1 < $5
    WHERE organization_id = $1
    RETURNING is_enabled
"""
_METHOD = "SELECT kind, brand, last4 FROM payment_method WHERE id = $1"


class TopUpEnd(NamedTuple):
    """How a top-up's payment has ended."""

    organization_id: UUID
    payment_id: UUID
    method_id: UUID | None
    amount: int
    decline: str | None  # None: it was paid
    is_hard: bool = False


async def concluded(connection: Connection, desk: Desk, end: TopUpEnd) -> None:
    """Mark it and tell it. The caller does this once for each payment, in a transaction."""
    card = None if end.method_id is None else await connection.fetchrow(_METHOD, end.method_id)
    facts = {
        "amount_nanos": end.amount,
        "payment_id": str(end.payment_id),
        "method": "" if card is None else f"{card['brand'] or card['kind']} {card['last4']}",
        "decline": end.decline or "",
        "is_enabled": True,
    }
    if end.decline is None:
        await connection.execute(_PAID, end.organization_id)
        kind = AlertKind.TOP_UP_PAID
    else:
        retry_at = desk.now() + RETRY_AFTER
        declined = (end.organization_id, end.decline, retry_at, end.is_hard, _DECLINES_MAX)
        facts["is_enabled"] = bool(await connection.fetchval(_DECLINED, *declined))
        kind = AlertKind.TOP_UP_DECLINED
    alert = Alert(end.organization_id, kind, str(end.payment_id), facts, mail="top_up")
    await give(connection, desk, [alert])
