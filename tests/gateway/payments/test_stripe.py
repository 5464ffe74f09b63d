"""Stripe's API as localstripe plays it, in a process of its own, through the management API."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from gateway.management import cashier
from gateway.management.top_ups import TopUps
from gateway.management.watch import Sight
from gateway.payments.processor import Coins, ProcessorRefused, Progress
from tests.gateway.management.office import Browser, Office, open_office
from tests.gateway.management.till import TEN_USD, buys, credited, tops_up
from tests.gateway.payments.stripe_there import (
    ASKING_CARD,
    BAD_CARD,
    BAD_IBAN,
    GOOD_CARD,
    GOOD_IBAN,
    PUBLISHABLE_KEY,
    Localstripe,
    Wire,
    localstripe,
    settings,
    wire,
)
from tests.gateway.tenancy import until

CHARGE = ("POST", "/v1/payment_intents")


@dataclass(slots=True)
class Shop:
    """An office with Stripe behind it, and somebody who buys."""

    office: Office
    stripe: Localstripe
    wire: Wire
    ada: Browser

    async def method(self, **details: str) -> str:
        """A method of hers, entered as in a browser."""
        kind = "sepa_debit" if "iban" in details else "card"
        started = await self.ada.post("/payment-methods", {"kind": kind})
        assert started.status == 201, started
        assert started.body["publishable_key"] == PUBLISHABLE_KEY
        await self.stripe.enters(started.body["client_secret"], **details)
        path = f"/payment-methods/{started.body['id']}/confirmation"
        done = await self.ada.post(path, {})
        assert done.status == 200, done
        return str(done.body["id"])

    async def is_credited(self) -> bool:
        return await credited(self.office) == [TEN_USD]


@pytest.fixture
async def shop(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Shop]:
    async with AsyncExitStack() as stack:
        stripe = await stack.enter_async_context(localstripe())
        between = await stack.enter_async_context(wire(stripe.url))
        office = await stack.enter_async_context(
            open_office(postgres_url, redis_url, tmp_path, changes=settings(between.url))
        )
        await stripe.tells(f"{office.url}/webhooks/stripe")
        yield Shop(office, stripe, between, await office.signed_up("ada@example.com"))


async def test_a_card_is_charged_once_and_its_event_credits_nothing_more(shop: Shop) -> None:
    method = await shop.method(card=GOOD_CARD)
    (listed,) = (await shop.ada.get("/payment-methods")).body["data"]
    assert (listed["brand"], listed["last4"], listed["expires"]) == ("visa", "4242", "2040-12")
    got = await buys(shop.ada, method)
    assert (got.status, got.body["state"], got.body["is_credited"]) == (201, "paid", True)

    async def is_told() -> bool:
        handled = "SELECT count(*) FROM payment_event WHERE handled_at IS NOT NULL AND kind = $1"
        return bool(await shop.office.pool.fetchval(handled, "payment_intent.succeeded"))

    await until(is_told, within_s=20)
    assert (await credited(shop.office), await shop.stripe.charges()) == ([TEN_USD], [1_000])


async def test_fifty_purchases_at_once_under_one_key_are_one_charge(shop: Shop) -> None:
    method = await shop.method(card=GOOD_CARD)
    shop.office.clock.is_rushing = True
    got = await asyncio.gather(*(buys(shop.ada, method, key="same") for _ in range(50)))
    assert 201 in {one.status for one in got}
    assert (await credited(shop.office), await shop.stripe.charges()) == ([TEN_USD], [1_000])


async def test_a_sepa_debit_is_taken_in_euro_and_credited_in_dollars(shop: Shop) -> None:
    got = await buys(shop.ada, await shop.method(iban=GOOD_IBAN))
    assert (got.status, got.body["charged"], got.body["currency"]) == (201, 900, "eur")
    await until(shop.is_credited, within_s=20)
    assert await shop.stripe.charges() == [900]


async def test_a_sepa_debit_that_bounces_is_not_credited(shop: Shop) -> None:
    got = await buys(shop.ada, await shop.method(iban=BAD_IBAN))
    assert got.body["state"] == "processing"

    async def has_failed() -> bool:
        state = "SELECT state FROM payment"  # over HTTP one may not ask so often
        return bool(await shop.office.pool.fetchval(state) == "failed")

    await until(has_failed, within_s=20)
    assert await credited(shop.office) == []


async def test_a_declined_card_is_told_and_nothing_credited(shop: Shop) -> None:
    got = await buys(shop.ada, await shop.method(card=BAD_CARD))
    assert (got.status, got.code, got.body["decline"]) == (402, "payment_declined", "card_declined")
    assert (await credited(shop.office), await shop.stripe.charges()) == ([], [])


async def test_a_charge_whose_answer_was_lost_is_found_and_not_made_again(shop: Shop) -> None:
    method = await shop.method(card=GOOD_CARD)
    shop.wire.loses.add(CHARGE)
    got = await buys(shop.ada, method)
    assert (got.status, got.body["state"]) == (201, "pending")
    assert await shop.stripe.charges() == [1_000]
    shop.wire.loses.clear()
    shop.office.clock.ahead += timedelta(minutes=2)
    await cashier.finish_some(shop.office.desk)
    assert (await credited(shop.office), await shop.stripe.charges()) == ([TEN_USD], [1_000])


async def test_each_thing_is_made_under_a_key_of_its_own(shop: Shop) -> None:
    method = await shop.method(card=GOOD_CARD)
    await buys(shop.ada, method)
    await buys(shop.ada, method)
    ours = ("customer", "setup", "charge")
    keys = [key for key in shop.wire.keys if key.partition("-")[0] in ours]
    assert [key.partition("-")[0] for key in keys] == [*ours, "charge"]
    assert len(set(keys)) == 4


async def test_a_card_that_asks_for_its_owner_is_declined_and_cannot_be_charged_later(
    shop: Shop,
) -> None:
    """The owner is away, so the intent is given up."""
    method = await shop.method(card=GOOD_CARD)
    card = {"number": ASKING_CARD, "exp_month": 12, "exp_year": 2040, "cvc": "123"}
    made = await shop.stripe.ask("POST", "/v1/payment_methods", {"type": "card", "card": card})
    await shop.office.pool.execute("UPDATE payment_method SET reference = $1", made["id"])
    got = await buys(shop.ada, method)
    assert (got.status, got.body["decline"]) == (402, "authentication_required")
    (intent,) = (await shop.stripe.ask("GET", "/v1/payment_intents"))["data"]
    assert intent["status"] == "canceled"


async def test_a_method_that_was_not_entered_is_not_kept(shop: Shop) -> None:
    started = (await shop.ada.post("/payment-methods", {"kind": "card"})).body
    path = f"/payment-methods/{started['id']}/confirmation"
    got = await shop.ada.post(path, {})
    assert (got.status, got.code) == (409, "setup_unfinished")
    assert (await shop.ada.get("/payment-methods")).body["data"] == []
    with_value = await shop.ada.post(path, {"sandbox_value": "approve"})
    assert (with_value.status, with_value.code) == (409, "sandbox_value")


async def test_a_removed_method_is_detached(shop: Shop) -> None:
    method = await shop.method(card=GOOD_CARD)
    reference = await shop.office.pool.fetchval("SELECT reference FROM payment_method")
    assert (await shop.ada.delete(f"/payment-methods/{method}")).status == 204
    found = await shop.stripe.ask("GET", f"/v1/payment_methods/{reference}")
    assert found["customer"] is None
    assert (await buys(shop.ada, method)).code == "payment_method_not_found"


async def test_a_refund_is_made_once_however_often_it_is_asked_for(shop: Shop) -> None:
    await buys(shop.ada, await shop.method(card=GOOD_CARD))
    reference = str(await shop.office.pool.fetchval("SELECT reference FROM payment"))
    processor = shop.office.desk.processor
    assert processor is not None
    for _ in range(3):
        done = await processor.refund("r1", payment=reference, coins=Coins(400, "usd"))
        assert done.progress is Progress.PAID
    assert await shop.stripe.refunds() == [400]


async def test_a_top_up_charges_the_saved_card(shop: Shop) -> None:
    await shop.method(card=GOOD_CARD)
    assert (await tops_up(shop.ada)).status == 200
    for _ in range(2):
        await TopUps(shop.office.desk).look(Sight(None, None))
        await cashier.finish_some(shop.office.desk)
    assert await shop.stripe.charges() == [5_000]
    assert await credited(shop.office) == [5 * TEN_USD]


async def test_what_stripe_knows_nothing_of_is_refused(shop: Shop) -> None:
    processor = shop.office.desk.processor
    assert processor is not None
    with pytest.raises(ProcessorRefused):
        await processor.refund("r1", payment="pi_unknown", coins=Coins(400, "usd"))
    assert await processor.receipt(await _paid(shop)) is None, "localstripe writes none"


async def _paid(shop: Shop) -> str:
    await buys(shop.ada, await shop.method(card=GOOD_CARD))
    return str(await shop.office.pool.fetchval("SELECT reference FROM payment"))
