"""Stripe, by its own client: methods, charges, pages to pay on, refunds, signed events.

Every request that makes something carries an Idempotency-Key made of our id. Stripe forgets those
after a day, so a charge is looked for among the customer's before it is asked for again.
"""

from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, TypeVar

import aiohttp
import stripe
from stripe import StripeClient

from gateway.bounds import Endpoint
from gateway.payments import stripe_words as words
from gateway.payments.processor import (
    Coins,
    Document,
    Event,
    Method,
    MethodKind,
    Order,
    Payment,
    ProcessorAway,
    ProcessorRefused,
    Returned,
    Setup,
)
from providers.adapter import Secret

NAME = "stripe"
_ANSWER_S = 20.0  # a charge asks the bank, which may take ten
_PAGE_LIVES = timedelta(hours=23)  # Stripe allows 24 h from its own clock
_CLOCKS_DIFFER = timedelta(minutes=10)  # ours and Stripe's, at most
_LIST_MAX = 100

Answered = TypeVar("Answered")


@asynccontextmanager
async def opened(
    secret_key: Secret, publishable_key: str, webhook_secret: Secret, api_url: Endpoint | None
) -> AsyncIterator["Stripe"]:
    """The account of this key. `api_url` None: at Stripe itself."""
    timeout = aiohttp.ClientTimeout(total=_ANSWER_S)
    # Without a session of ours the client makes one that nobody closes when a stop cuts it off.
    async with aiohttp.ClientSession(timeout=timeout) as session:
        client = StripeClient(
            secret_key.reveal(),
            http_client=stripe.AIOHTTPClient(timeout=timeout, session=session),
            # Who asks again is our job, which looks first.
            max_network_retries=0,
            base_addresses=None if api_url is None else {"api": _url(api_url)},
        )
        yield Stripe(client, publishable_key, webhook_secret)


class Stripe:
    """Fulfils `Processor`."""

    name = NAME

    def __init__(self, client: StripeClient, publishable_key: str, webhook_secret: Secret) -> None:
        self._v1, self._webhook_secret = client.v1, webhook_secret
        self.publishable_key = publishable_key

    async def customer(self, owner_id: str, *, email: str, name: str) -> str:
        """Make somebody known."""
        asked: Any = {"email": email, "name": name, "metadata": {"owner": owner_id}}
        made = await _asked(self._v1.customers.create_async(asked, _once("customer", owner_id)))
        return made.id

    async def start_setup(self, method_id: str, *, customer: str, kind: MethodKind) -> Setup:
        """A SetupIntent, which the payer's browser confirms with Stripe."""
        asked: Any = {
            "customer": customer,
            "usage": "off_session",
            "payment_method_types": [kind.value],
            "metadata": {"method": method_id},
        }
        made = await _asked(self._v1.setup_intents.create_async(asked, _once("setup", method_id)))
        return Setup(made.id, made.client_secret or "")

    async def finish_setup(self, setup: str, *, customer: str, entered: str | None) -> Method:
        """The method of a SetupIntent that succeeded."""
        if entered is not None:
            raise ProcessorRefused("sandbox_value is for the sandbox.", code="sandbox_value")
        found = words.plain(await _asked(self._v1.setup_intents.retrieve_async(setup)))
        if found.get("status") != "succeeded" or found.get("customer") != customer:
            raise ProcessorRefused(
                f"Stripe says that it is {found.get('status')}: enter the method in the browser"
                " with the client_secret first.",
                code="setup_unfinished",
            )
        reference = str(found["payment_method"])
        method = words.plain(await _asked(self._v1.payment_methods.retrieve_async(reference)))
        if method.get("customer") is None:
            attach: Any = {"customer": customer}
            await _asked(self._v1.payment_methods.attach_async(reference, attach))
        return words.method(method)

    async def remove(self, method: str) -> None:
        """Detach it: nobody can charge it any more, us included."""
        try:
            await _asked(self._v1.payment_methods.detach_async(method))
        except ProcessorRefused as error:
            if error.code not in {"resource_missing", "payment_method_not_attached"}:
                raise

    async def charge(self, order: Order) -> Payment:
        """A PaymentIntent, confirmed while its payer is away."""
        assert order.method is not None, "an order without a method is paid at a page"
        assert order.method_kind is not None, "every method has a kind"
        asked: Any = {
            "amount": order.coins.amount,
            "currency": order.coins.currency,
            "customer": order.customer,
            "payment_method": order.method,
            "payment_method_types": [order.method_kind.value],
            "confirm": True,
            "off_session": True,
            "metadata": {"order": order.id},
        }
        try:
            made = await self._v1.payment_intents.create_async(asked, _once("charge", order.id))
        except stripe.CardError as error:
            return words.declined(order, words.plain(error.error))
        except _WRONG as error:
            raise _meaning(error) from error
        return await self._settled(order, words.plain(made))

    async def checkout(self, order: Order, *, back_url: str) -> Payment:
        """A Checkout Session, which makes an invoice, too."""
        mark = {"order": order.id, "by": words.PAGE}
        asked: Any = {
            "mode": "payment",
            "customer": order.customer,
            "client_reference_id": order.id,
            "line_items": [
                {
                    "quantity": 1,
                    "price_data": {
                        "currency": order.coins.currency,
                        "unit_amount": order.coins.amount,
                        "product_data": {"name": order.says},
                    },
                }
            ],
            "payment_method_types": words.PAGE_METHODS[order.coins.currency],
            "payment_intent_data": {"metadata": mark},
            "invoice_creation": {"enabled": True, "invoice_data": {"metadata": mark}},
            "metadata": mark,
            "success_url": back_url,
            "cancel_url": back_url,
            "expires_at": int((order.began_at + _PAGE_LIVES).timestamp()),
        }
        options = _once("checkout", order.id)
        made = await _asked(self._v1.checkout.sessions.create_async(asked, options))
        return words.by_page(words.plain(made))

    async def find(self, order: Order) -> Payment | None:
        """By its id where that is known, else among the customer's charges since it began."""
        if order.checkout is not None:
            expand: Any = {"expand": ["payment_intent"]}
            page = await _asked(self._v1.checkout.sessions.retrieve_async(order.checkout, expand))
            return words.by_page(words.plain(page))
        if order.reference is not None:
            found = await _asked(self._v1.payment_intents.retrieve_async(order.reference))
            return await self._settled(order, words.plain(found))
        asked: Any = {
            "customer": order.customer,
            "created": {"gt": int((order.began_at - _CLOCKS_DIFFER).timestamp())},
            "limit": _LIST_MAX,
            "expand": ["data.payment_intent"],
        }
        charges = await _asked(self._v1.charges.list_async(asked))
        while True:
            for charge in charges.data:
                intent = words.plain(charge).get("payment_intent") or {}
                if (intent.get("metadata") or {}).get("order") == order.id:
                    return await self._settled(order, intent)
            if not charges.has_more:
                return None
            charges = await _asked(charges.next_page_async())

    async def refund(self, refund_id: str, *, payment: str, coins: Coins) -> Returned:
        """Look for it among the payment's refunds, and make it if it is not there."""
        asked: Any = {"payment_intent": payment, "limit": _LIST_MAX}
        before = await _asked(self._v1.refunds.list_async(asked))
        for one in before.data:
            found = words.plain(one)
            if (found.get("metadata") or {}).get("refund") == refund_id:
                return words.returned(found)
        make: Any = {
            "payment_intent": payment,
            "amount": coins.amount,
            "metadata": {"refund": refund_id},
        }
        made = await _asked(self._v1.refunds.create_async(make, _once("refund", refund_id)))
        return words.returned(words.plain(made))

    async def documents(self, customer: str) -> tuple[Document, ...]:
        """The invoices of its pages."""
        asked: Any = {"customer": customer, "limit": _LIST_MAX}
        found = await _asked(self._v1.invoices.list_async(asked))
        return tuple(words.document(words.plain(one)) for one in found.data)

    async def receipt(self, payment: str) -> str | None:
        """Where the payer reads what was charged."""
        expand: Any = {"expand": ["latest_charge"]}
        found = await _asked(self._v1.payment_intents.retrieve_async(payment, expand))
        charge = words.plain(found).get("latest_charge")
        return charge.get("receipt_url") if isinstance(charge, dict) else None

    def event(self, body: bytes, headers: Mapping[str, str], *, now: datetime) -> Event:
        """What Stripe told, if it is Stripe's and not older than five minutes."""
        signature = headers.get("Stripe-Signature")
        return words.event(body, signature, secret=self._webhook_secret.reveal(), now=now)

    async def _settled(self, order: Order, intent: dict[str, Any]) -> Payment:
        """What an intent has come to. One that waits for its payer, who is away, is given up."""
        if intent.get("status") in words.WAITING:
            try:
                cancelled = await self._v1.payment_intents.cancel_async(str(intent["id"]))
                intent = words.plain(cancelled)
            except stripe.InvalidRequestError:  # it has come to something meanwhile
                found = self._v1.payment_intents.retrieve_async(str(intent["id"]))
                intent = words.plain(await _asked(found))
            except _WRONG as error:
                raise _meaning(error) from error
        return words.by_intent(intent, order=order.id)


# What the client raises; aiohttp's own where an answer breaks off.
_WRONG = (stripe.StripeError, aiohttp.ClientError, TimeoutError, OSError)


def _once(what: str, own_id: str) -> Any:
    return {"idempotency_key": f"{what}-{own_id}"}


async def _asked(request: Awaitable[Answered]) -> Answered:
    try:
        return await request
    except _WRONG as error:
        raise _meaning(error) from error


def _meaning(error: Exception) -> ProcessorAway | ProcessorRefused:
    """Whether it may have been done all the same."""
    match error:
        case stripe.RateLimitError():
            return ProcessorAway("Stripe: too many requests")
        case stripe.AuthenticationError() | stripe.PermissionError():
            # The operator's mistake, who puts it right: no payer's payment fails of it.
            return ProcessorAway("Stripe refuses the key, payments.stripe.secret_key")
        case stripe.CardError() | stripe.InvalidRequestError() | stripe.IdempotencyError():
            text = error.user_message or "it gives no reason"
            return ProcessorRefused(f"Stripe: {text}", code=error.code or "refused")
        case _:
            return ProcessorAway(f"Stripe: {type(error).__name__}")


def _url(endpoint: Endpoint) -> str:
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    return f"{endpoint.scheme}://{host}:{endpoint.port}{endpoint.path}"
