"""What billing contacts are told of credits that the organization paid for, or was paid back for.

Once each, in the transaction that marks it. What members pay by themselves is theirs alone: nobody
is told of that.
"""

from typing import NamedTuple
from uuid import UUID

from gateway.management.alerts import Alert, AlertKind, give
from gateway.management.desk import Desk
from gateway.payments.processor import Coins
from ledger.money import Nanos
from ledger.postgres import Connection


class Receipt(NamedTuple):
    """Money that has moved."""

    kind: AlertKind
    organization_id: UUID
    id: UUID  # of the payment, or of the refund
    payment_id: UUID
    amount: Nanos  # what it is worth to us
    coins: Coins  # what was charged, or goes back


async def told(connection: Connection, desk: Desk, receipt: Receipt) -> None:
    """Write it down; the second time it does nothing."""
    facts = {
        "amount_nanos": receipt.amount,
        "payment_id": str(receipt.payment_id),
        "charged": receipt.coins.amount,
        "currency": receipt.coins.currency,
    }
    alert = Alert(receipt.organization_id, receipt.kind, str(receipt.id), facts, mail="receipt")
    await give(connection, desk, [alert])
