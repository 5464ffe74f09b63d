"""A processor for development: it plays one, in Postgres, and nobody pays anything.

What a method does when it is charged is what was entered instead of a card number:

    approve              it is paid at once
    insufficient_funds   it is declined, and may go well another time
    stolen_card          it is declined for good
    slow                 it is paid two seconds later, as a bank's debit is some days later
    slow_decline         it is declined two seconds later
"""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import asyncpg
import orjson

from gateway.payments.processor import (
    Coins,
    Document,
    Event,
    Forged,
    Method,
    MethodKind,
    Order,
    Payment,
    ProcessorRefused,
    Progress,
    Returned,
    Setup,
)

NAME = "sandbox"
_SLOW = timedelta(seconds=2)

_PUT = """
    INSERT INTO sandbox_object (id, kind, key, body, created_at) VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (kind, key) DO NOTHING
"""
_GET = "SELECT body FROM sandbox_object WHERE id = $1"
_LOCK = "SELECT body FROM sandbox_object WHERE id = $1 FOR UPDATE"
_SET = "UPDATE sandbox_object SET body = $2 WHERE id = $1"
_DELETE = "DELETE FROM sandbox_object WHERE id = $1"
_REFUNDED = """
    SELECT coalesce(sum((body ->> 'amount')::bigint), 0)::bigint FROM sandbox_object
    WHERE kind = 'refund' AND body ->> 'payment' = $1 AND key <> $2
"""
_PAID = """
    SELECT id, body, created_at FROM sandbox_object
    WHERE kind = 'payment' AND body ->> 'customer' = $1 AND body ->> 'progress' = 'paid'
    ORDER BY created_at DESC LIMIT 100
"""


class Entered(StrEnum):
    """The test values."""

    APPROVE = "approve"
    INSUFFICIENT_FUNDS = "insufficient_funds"
    STOLEN_CARD = "stolen_card"
    SLOW = "slow"
    SLOW_DECLINE = "slow_decline"


class Sandbox:
    """Fulfils `Processor`."""

    name = NAME
    publishable_key = ""

    def __init__(self, pool: asyncpg.Pool, now: Callable[[], datetime], site: str) -> None:
        self._pool, self._now, self._site = pool, now, site

    async def customer(self, owner_id: str, *, email: str, name: str) -> str:
        """Make somebody known."""
        return await self._put("customer", owner_id, {"email": email, "name": name})

    async def start_setup(self, method_id: str, *, customer: str, kind: MethodKind) -> Setup:
        """There is no page to enter a card on: see `finish_setup`."""
        setup = await self._put("setup", method_id, {"customer": customer, "kind": kind})
        return Setup(setup, "")

    async def finish_setup(self, setup: str, *, customer: str, entered: str | None) -> Method:
        """The method, which will do as `entered` says."""
        try:
            value = Entered(entered or "")
        except ValueError as error:
            raise ProcessorRefused(
                f"Say in sandbox_value what the method is to do: {', '.join(Entered)}.",
                code="sandbox_value",
            ) from error
        found = await self._get(setup)
        if found is None or found["customer"] != customer:
            raise ProcessorRefused("There is no such setup.", code="no_setup")
        body = {"customer": customer, "does": value}
        reference = await self._put("method", setup, body)
        kind = MethodKind(found["kind"])
        return Method(reference, kind, value, "0000", _expiry(kind))

    async def remove(self, method: str) -> None:
        """Forget a method."""
        await self._pool.execute(_DELETE, method)

    async def charge(self, order: Order) -> Payment:
        """What the method does."""
        assert order.method is not None, "an order without a method is paid at a page"
        method = await self._get(order.method)
        if method is None or method["customer"] != order.customer:
            raise ProcessorRefused("There is no such method any more.", code="no_method")
        outcome = _outcome(Entered(method["does"]), self._now())
        return await self._ordered(order, outcome)

    async def checkout(self, order: Order, *, back_url: str) -> Payment:
        """A page with a button for each test value."""
        return await self._ordered(order, {"progress": Progress.OPEN, "back": back_url})

    async def find(self, order: Order) -> Payment | None:
        """What became of an order."""
        body = await self._get(_id("payment", order.id))
        return None if body is None else self._payment(order.id, body)

    async def refund(self, refund_id: str, *, payment: str, coins: Coins) -> Returned:
        """Give it back, as long as that much is left."""
        async with self._pool.acquire() as connection, connection.transaction():
            row = await connection.fetchval(_LOCK, payment)
            before = await connection.fetchval(_REFUNDED, payment, refund_id)
            if row is None or orjson.loads(row)["amount"] - before < coins.amount:
                raise ProcessorRefused("That much was not paid.", code="amount_too_large")
            body = {"payment": payment, "amount": coins.amount}
            reference = _id("refund", refund_id)
            text = orjson.dumps(body).decode()
            await connection.execute(_PUT, reference, "refund", refund_id, text, self._now())
        return Returned(reference, Progress.PAID)

    async def documents(self, customer: str) -> tuple[Document, ...]:
        """One for each payment."""
        rows = await self._pool.fetch(_PAID, customer)
        return tuple(_document(row) for row in rows)

    async def receipt(self, payment: str) -> str | None:
        """It makes none."""
        del payment
        return None

    def event(self, body: bytes, headers: Mapping[str, str], *, now: datetime) -> Event:
        """The sandbox tells nothing by itself."""
        del body, headers, now
        raise Forged("the sandbox sends no events")

    async def pay(self, order_id: str, entered: Entered) -> str | None:
        """What the button on its page does; where the payer goes then. None: no such page."""
        reference = _id("payment", order_id)
        async with self._pool.acquire() as connection, connection.transaction():
            row = await connection.fetchval(_LOCK, reference)
            if row is None:
                return None
            body = orjson.loads(row)
            if body["progress"] == Progress.OPEN:
                body |= _outcome(entered, self._now())
                await connection.execute(_SET, reference, orjson.dumps(body).decode())
        return str(body["back"]) if "back" in body else None

    async def _ordered(self, order: Order, outcome: dict[str, Any]) -> Payment:
        body = {**outcome, **order.coins._asdict(), "customer": order.customer}
        reference = await self._put("payment", order.id, body)
        kept = await self._get(reference)
        assert kept is not None, "it was put there"
        return self._payment(order.id, kept)

    def _payment(self, order_id: str, body: dict[str, Any]) -> Payment:
        progress = Progress(body["progress"])
        if progress is Progress.PROCESSING and self._now() >= datetime.fromisoformat(body["until"]):
            progress = Progress(body["then"])
        reference = _id("payment", order_id)
        is_open = progress is Progress.OPEN
        return Payment(
            order=order_id,
            progress=progress,
            coins=Coins(body["amount"], body["currency"]),
            reference=reference,
            checkout=reference if "back" in body else None,
            url=f"{self._site}/sandbox/{order_id}" if is_open else None,
            decline=body.get("decline") if progress is Progress.DECLINED else None,
            is_hard=progress is Progress.DECLINED and body.get("decline") == Entered.STOLEN_CARD,
        )

    async def _put(self, kind: str, key: str, body: dict[str, Any]) -> str:
        """Keep it, unless there is one under this key; its id."""
        made = _id(kind, key)
        await self._pool.execute(_PUT, made, kind, key, orjson.dumps(body).decode(), self._now())
        return made

    async def _get(self, reference: str) -> dict[str, Any] | None:
        text = await self._pool.fetchval(_GET, reference)
        return None if text is None else dict(orjson.loads(text))


def _id(kind: str, key: str) -> str:
    return f"sandbox_{kind}_{key}"


def _expiry(kind: MethodKind) -> str | None:
    return "2099-12" if kind is MethodKind.CARD else None


def _outcome(entered: Entered, now: datetime) -> dict[str, Any]:
    """What it comes to; JSON as it is kept."""
    match entered:
        case Entered.APPROVE:
            return {"progress": Progress.PAID}
        case Entered.INSUFFICIENT_FUNDS | Entered.STOLEN_CARD:
            return {"progress": Progress.DECLINED, "decline": entered}
        case Entered.SLOW | Entered.SLOW_DECLINE:
            is_good = entered is Entered.SLOW
            then = Progress.PAID if is_good else Progress.DECLINED
            later = {"until": (now + _SLOW).isoformat(), "then": then, "decline": entered}
            return {"progress": Progress.PROCESSING, **later}


def _document(row: asyncpg.Record) -> Document:
    body = orjson.loads(row["body"])
    coins = Coins(body["amount"], body["currency"])
    order = row["id"].removeprefix(_id("payment", ""))
    return Document(row["id"], order, order[:8], coins, row["created_at"], None)
