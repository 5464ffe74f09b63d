"""Events of Stripe over HTTP, signed; Checkout and ACH after Stripe's documentation."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from stripe import WebhookSignature

from tests.gateway.management.office import Browser, Office, open_office
from tests.gateway.management.till import (
    TEN_USD,
    buys,
    credited,
    everything_is_finished,
    open_till,
)
from tests.gateway.payments import played
from tests.gateway.payments.played import Played, filled
from tests.gateway.payments.stripe_there import WEBHOOK_SECRET, settings

SESSIONS = "/v1/checkout/sessions"
PAGE = "cs_test_a11YYufWQzNY63zpQ6QSNRQhkUpVph4WRmzW0zWJO2znZKdVujZ0N0S22u"
URL = '"https://checkout.stripe.com/c/pay/cs_test_a11"'
INTENT = '"pi_3MtwBwLkdIwHu7ix28a3tqPa"'


@dataclass(slots=True)
class Shop:
    """An office whose Stripe is played."""

    office: Office
    stripe: Played
    ada: Browser

    async def opened(self) -> str:
        """A purchase at a page; its id."""
        session = filled(played.SESSION, status="open", paid="unpaid", intent="null", url=URL)
        self.stripe.answers[f"POST {SESSIONS}"] = session
        got = await buys(self.ada, None)
        assert (got.status, got.body["state"]) == (201, "open"), got
        return str(got.body["id"])

    async def told(
        self, text: str, *, secret: str = WEBHOOK_SECRET, age: timedelta = timedelta()
    ) -> int:
        """The status of an event that is signed so."""
        signed_at = int((self.office.desk.now() - age).timestamp())
        header = WebhookSignature.generate_signature_header(text, secret, signed_at)
        http = self.office.browsers[0]
        headers = {"Stripe-Signature": header, "Content-Type": "application/json"}
        url = f"{self.office.url}/webhooks/stripe"
        async with http.post(url, data=text.encode(), headers=headers) as answer:
            return answer.status


def by_page(order: str, status: str, paid: str) -> str:
    return filled(played.SESSION, order=order, status=status, paid=paid, intent=INTENT, url="null")


def intent(order: str, status: str, received: str = "0", error: str = "null") -> str:
    return filled(played.INTENT, order=order, status=status, received=received, error=error)


def event(kind: str, found: str, number: str = "evt_1") -> str:
    return filled(played.EVENT, id=number, kind=kind, object=found)


@pytest.fixture
async def shop(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Shop]:
    async with AsyncExitStack() as stack:
        stripe = await stack.enter_async_context(played.played())
        office = await stack.enter_async_context(
            open_office(postgres_url, redis_url, tmp_path, changes=settings(stripe.url))
        )
        yield Shop(office, stripe, await office.signed_up("ada@example.com"))


async def test_what_is_paid_at_stripes_page_is_credited_by_its_event_once(shop: Shop) -> None:
    order = await shop.opened()
    assert (await shop.ada.get(f"/purchases/{order}")).body["checkout_url"] == URL.strip('"')
    asked = dict(shop.stripe.asked[-1][1])
    assert asked["line_items[0][price_data][unit_amount]"] == "1000"
    assert (asked["client_reference_id"], asked["mode"]) == (order, "payment")
    done = event("checkout.session.completed", by_page(order, "complete", "paid"))
    again = event("checkout.session.completed", by_page(order, "complete", "paid"), "evt_2")
    paid = event("payment_intent.succeeded", intent(order, "succeeded", "1000"), "evt_3")
    for text in (done, done, again, paid):
        assert await shop.told(text) == 200
    assert await credited(shop.office) == [TEN_USD]


async def test_an_event_that_was_lost_is_made_up_for_by_asking(shop: Shop) -> None:
    order = await shop.opened()
    shop.stripe.answers[f"GET {SESSIONS}/{PAGE}"] = by_page(order, "complete", "paid")
    await everything_is_finished(shop.office)
    assert await credited(shop.office) == [TEN_USD]


async def test_a_page_that_nobody_paid_at_comes_to_nothing(shop: Shop) -> None:
    order = await shop.opened()
    assert await shop.told(event("checkout.session.expired", by_page(order, "expired", "unpaid")))
    assert (await shop.ada.get(f"/purchases/{order}")).body["state"] == "failed"


async def test_at_a_page_a_declined_card_may_be_followed_by_another(shop: Shop) -> None:
    order = await shop.opened()
    error = '{"code": "card_declined", "decline_code": "stolen_card"}'
    failed = intent(order, "requires_payment_method", error=error)
    marked = failed.replace('"metadata": {', '"metadata": {"by": "page", ')
    await shop.told(event("payment_intent.payment_failed", marked))
    assert (await shop.ada.get(f"/purchases/{order}")).body["state"] == "open"


@pytest.mark.parametrize("ends_as", ["succeeded", "requires_payment_method"])
async def test_a_us_bank_account_pays_days_later_or_not(shop: Shop, ends_as: str) -> None:
    answers = shop.stripe.answers
    answers["POST /v1/setup_intents"] = filled(played.SETUP, status="requires_payment_method")
    answers["GET /v1/setup_intents/seti_1Mm8s8LkdIwHu7ix0OXBfTRG"] = filled(
        played.SETUP, status="succeeded"
    )
    answers["GET /v1/payment_methods/pm_1MqLiJLkdIwHu7ixUEgbFdYF"] = played.BANK
    answers["POST /v1/payment_intents"] = intent("$ORDER", "processing")
    started = (await shop.ada.post("/payment-methods", {"kind": "us_bank_account"})).body
    path = f"/payment-methods/{started['id']}/confirmation"
    kept = (await shop.ada.post(path, {})).body
    assert (kept["kind"], kept["brand"], kept["last4"]) == (
        "us_bank_account",
        "STRIPE TEST BANK",
        "6789",
    )
    got = (await buys(shop.ada, kept["id"])).body
    assert got["state"] == "processing"
    is_paid = ends_as == "succeeded"
    error = "null" if is_paid else '{"code": "debit_not_authorized"}'
    end = intent(got["id"], ends_as, "1000" if is_paid else "0", error)
    kind = "payment_intent.succeeded" if is_paid else "payment_intent.payment_failed"
    early = event("payment_intent.processing", intent(got["id"], "processing"), "evt_0")
    for text in (event(kind, end), early):  # in the wrong order
        assert await shop.told(text) == 200
    seen = (await shop.ada.get(f"/purchases/{got['id']}")).body
    assert (seen["state"], seen["decline"]) == (
        ("paid", None) if is_paid else ("failed", "debit_not_authorized")
    )
    assert await credited(shop.office) == ([TEN_USD] if is_paid else [])


async def test_no_event_is_believed_that_stripe_has_not_signed_just_now(shop: Shop) -> None:
    order = await shop.opened()
    text = event("checkout.session.completed", by_page(order, "complete", "paid"))
    assert await shop.told(text, secret="whsec_of_somebody_else") == 400
    assert await shop.told(text, secret="") == 400
    assert await shop.told(text, age=timedelta(seconds=301)) == 400
    assert await shop.told(text, age=timedelta(seconds=-310)) == 400
    http, url = shop.office.browsers[0], f"{shop.office.url}/webhooks/stripe"
    old = int((shop.office.desk.now() - timedelta(hours=1)).timestamp())
    good = WebhookSignature.generate_signature_header(text, WEBHOOK_SECRET, old)
    now = int(shop.office.desk.now().timestamp())
    for header in ("", "x", f" t={now},{good}", f"{good},t={now}", good.replace("t=", "t= ")):
        async with http.post(url, data=text.encode(), headers={"Stripe-Signature": header}) as got:
            assert got.status == 400, header
    async with http.post(url, data=text.encode()) as got:
        assert got.status == 400
    assert await credited(shop.office) == []
    assert await shop.told(text) == 200
    assert await credited(shop.office) == [TEN_USD]


@pytest.mark.parametrize("change", [("1000", "999"), ('"usd"', '"eur"')])
async def test_an_event_about_another_amount_credits_nothing(
    shop: Shop, change: tuple[str, str]
) -> None:
    order = await shop.opened()
    text = by_page(order, "complete", "paid").replace(*change)
    assert await shop.told(event("checkout.session.completed", text)) == 200
    assert await credited(shop.office) == []


async def test_events_that_are_none_of_ours_are_thanked_for(shop: Shop) -> None:
    order = await shop.opened()
    foreign = by_page("00000000-0000-4000-8000-000000000000", "complete", "paid")
    for number, text in enumerate((foreign, by_page("x", "complete", "paid"), '{"object": "x"}')):
        assert await shop.told(event("checkout.session.completed", text, f"evt_{number}")) == 200
    assert await shop.told('{"id": "evt_9"}') == 400
    assert await shop.told("\ud800".encode("utf-8", "surrogatepass").decode("latin-1")) == 400
    assert (await shop.ada.get(f"/purchases/{order}")).body["state"] == "open"


async def test_without_stripe_there_is_no_door_for_its_events(office: Office) -> None:
    await office.stranger().get("/openapi.json")
    async with office.browsers[0].post(f"{office.url}/webhooks/stripe", data=b"{}") as answer:
        assert answer.status == 404


async def test_the_sandbox_has_a_page_to_pay_on_and_none_for_events(
    postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    async with open_till(postgres_url, redis_url, tmp_path) as office:
        office.stranger()
        http = office.browsers[0]
        for method, path, status in (
            ("POST", "/webhooks/sandbox", 404),
            ("GET", "/paid", 200),
            ("POST", "/sandbox/nothing", 404),
        ):
            data = {"value": "approve"}
            async with http.request(method, office.url + path, data=data) as answer:
                assert answer.status == status, path
        async with http.post(f"{office.url}/sandbox/x", data={"value": "?"}) as answer:
            assert answer.status == 400
