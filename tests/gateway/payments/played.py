"""Stripe's answers for what localstripe has not: Checkout, and bank accounts of the US.

These are no recordings: nobody here has an account at Stripe. They are written by hand, with the
members that the types of Stripe's client name and ids and amounts of the tests in them, and are
played byte for byte on a real socket. What Stripe really answers has not been seen.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote

CUSTOMER = """{"id": "cus_NffrFeUfNV2Hib", "object": "customer", "created": 1680893993,
 "currency": null, "email": "ada@example.com", "livemode": false, "metadata": {}, "name": "Ada"}"""

SESSION = """{"id": "cs_test_a11YYufWQzNY63zpQ6QSNRQhkUpVph4WRmzW0zWJO2znZKdVujZ0N0S22u",
 "object": "checkout.session", "amount_subtotal": 1000, "amount_total": 1000,
 "client_reference_id": "$ORDER", "created": 1679600215, "currency": "usd",
 "customer": "cus_NffrFeUfNV2Hib", "expires_at": 1679686615, "livemode": false,
 "metadata": {"order": "$ORDER", "by": "page"}, "mode": "payment", "payment_intent": $INTENT,
 "payment_method_types": ["card", "us_bank_account"], "payment_status": "$PAID",
 "status": "$STATUS", "success_url": "http://127.0.0.1:8081/paid", "url": $URL}"""

INTENT = """{"id": "pi_3MtwBwLkdIwHu7ix28a3tqPa", "object": "payment_intent", "amount": 1000,
 "amount_received": $RECEIVED, "client_secret": "pi_3MtwBwLkdIwHu7ix28a3tqPa_secret_x",
 "created": 1680800504, "currency": "usd", "customer": "cus_NffrFeUfNV2Hib",
 "last_payment_error": $ERROR, "latest_charge": "ch_3MmlLrLkdIwHu7ix0snN0B15",
 "livemode": false, "metadata": {"order": "$ORDER"}, "next_action": null,
 "payment_method": "pm_1MqLiJLkdIwHu7ixUEgbFdYF",
 "payment_method_types": ["us_bank_account"], "status": "$STATUS"}"""

SETUP = """{"id": "seti_1Mm8s8LkdIwHu7ix0OXBfTRG", "object": "setup_intent",
 "client_secret": "seti_1Mm8s8LkdIwHu7ix0OXBfTRG_secret_x", "created": 1678942624,
 "customer": "cus_NffrFeUfNV2Hib", "livemode": false, "metadata": {},
 "payment_method": "pm_1MqLiJLkdIwHu7ixUEgbFdYF", "payment_method_types": ["us_bank_account"],
 "status": "$STATUS", "usage": "off_session"}"""

BANK = """{"id": "pm_1MqLiJLkdIwHu7ixUEgbFdYF", "object": "payment_method",
 "created": 1679945299, "customer": "cus_NffrFeUfNV2Hib", "livemode": false, "metadata": {},
 "type": "us_bank_account", "us_bank_account": {"account_holder_type": "individual",
 "account_type": "checking", "bank_name": "STRIPE TEST BANK", "fingerprint": "TqMLySRVzTgBJPqv",
 "last4": "6789", "networks": {"preferred": "ach", "supported": ["ach"]},
 "routing_number": "110000000", "status_details": {}}}"""

EVENT = """{"id": "$ID", "object": "event", "api_version": "2026-10-28.endive",
 "created": 1680064028, "data": {"object": $OBJECT}, "livemode": false, "pending_webhooks": 1,
 "request": {"id": null, "idempotency_key": null}, "type": "$KIND"}"""

INVOICES = """{"object": "list", "url": "/v1/invoices", "has_more": false, "data": [
 {"id": "in_1MtHbELkdIwHu7ixl4OzzPMv", "object": "invoice", "amount_paid": 1000,
 "created": 1680644467, "currency": "usd", "customer": "cus_NffrFeUfNV2Hib",
 "hosted_invoice_url": "https://invoice.stripe.com/i/acct_1/test_1", "invoice_pdf":
 "https://pay.stripe.com/invoice/acct_1/test_1/pdf", "metadata": {"order": "$ORDER"},
 "number": "A1B2C3-0001", "status": "paid", "total": 1000}]}"""


def filled(text: str, **values: str) -> str:
    """A text with its `$NAMES` in place."""
    for name, value in values.items():
        text = text.replace(f"${name.upper()}", value)
    return text


@dataclass(slots=True)
class Played:
    """What is answered, by method and path; what was asked."""

    answers: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, a request after the other."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = re.search(rb"(?i)content-length: (\d+)", head)
                body = await reader.readexactly(int(length[1])) if length else b""
                method, target, _ = head.decode().split(" ", 2)
                what = f"{method} {unquote(target.partition('?')[0])}"
                fields = {name: value[0] for name, value in parse_qs(body.decode()).items()}
                self.asked.append((what, fields))
                text = filled(self.answers[what], order=fields.get("metadata[order]", "$ORDER"))
                data = text.encode()
                top = f"HTTP/1.1 200 OK\r\nContent-Length: {len(data)}\r\nrequest-id: req_1"
                writer.write(f"{top}\r\nContent-Type: application/json\r\n\r\n".encode() + data)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def played() -> AsyncIterator[Played]:
    """Them, on a socket."""
    made = Played()
    made.answers["POST /v1/customers"] = CUSTOMER
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        server.close()
