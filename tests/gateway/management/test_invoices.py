"""Invoices over HTTP: each for who paid it, with what the processor made for it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.gateway.management.office import Office, open_office
from tests.gateway.management.team import founded
from tests.gateway.management.till import TEN_USD, buys, method_of, open_till
from tests.gateway.payments import played
from tests.gateway.payments.played import filled
from tests.gateway.payments.stripe_there import GOOD_CARD, localstripe, settings


@pytest.fixture
async def office(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Office]:
    async with open_till(postgres_url, redis_url, tmp_path) as opened:
        yield opened


async def test_a_members_invoice_is_the_members_and_the_organizations_its_treasurers(
    office: Office,
) -> None:
    team = await founded(office, "open-team")
    await team.switched(permissions={"billing.read": "admins"})
    bob = await team.joined("bob@example.com")
    own = (await buys(bob, await method_of(bob))).body["id"]
    shared = (await buys(team.owner, await method_of(team.owner, owner="organization"))).body["id"]
    assert [one["id"] for one in (await bob.get("/invoices")).body["data"]] == [own]
    assert [one["id"] for one in (await team.owner.get("/invoices")).body["data"]] == [shared]
    assert (await team.owner.get(f"/invoices/{own}")).code == "purchase_not_found"
    assert (await bob.get(f"/invoices/{shared}")).code == "purchase_not_found"
    assert (await bob.get(f"/invoices/{own}")).body["billed_to"] == "Bob"


async def test_an_organizations_invoice_says_what_it_wants_on_it(office: Office) -> None:
    team = await founded(office)
    invoicing = {"name": "Acme Ltd", "address": ["1 Road"], "tax_id": "DE1", "reference": "PO 7"}
    assert (await team.owner.patch("/billing", {"invoicing": invoicing})).status == 200
    made = (await buys(team.owner, await method_of(team.owner, owner="organization"))).body["id"]
    got = (await team.owner.get(f"/invoices/{made}")).body
    assert (got["billed_to"], got["invoicing"]) == ("Acme Ltd", invoicing)
    assert (got["invoice"]["amount_nanos"], got["invoice"]["charged"]) == (TEN_USD, 1_000)
    assert got["documents"] == [], "the sandbox makes none"


async def test_what_is_not_paid_has_no_invoice(office: Office) -> None:
    ada = await office.signed_up("ada@example.com")
    opened = (await buys(ada, None)).body["id"]
    assert (await ada.get("/invoices")).body["data"] == []
    assert (await ada.get(f"/invoices/{opened}")).code == "purchase_not_found"


async def test_a_list_of_invoices_has_pages_the_newest_first(office: Office) -> None:
    ada = await office.signed_up("ada@example.com")
    method = await method_of(ada)
    made = [(await buys(ada, method)).body["id"] for _ in range(3)]
    first = (await ada.get("/invoices?limit=2")).body
    second = (await ada.get(f"/invoices?limit=2&cursor={first['next_cursor']}")).body
    assert [one["id"] for one in first["data"] + second["data"]] == made[::-1]


async def test_stripes_own_invoice_is_shown_with_its_address(
    postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    async with (
        played.played() as stripe,
        open_office(postgres_url, redis_url, tmp_path, changes=settings(stripe.url)) as office,
    ):
        ada = await office.signed_up("ada@example.com")
        session = filled(played.SESSION, status="open", paid="unpaid", intent="null", url="null")
        stripe.answers["POST /v1/checkout/sessions"] = session
        made = (await buys(ada, None)).body["id"]
        await office.pool.execute(
            "UPDATE payment SET state = 'paid', reference = 'pi_1', paid_at = now(),"
            " ended_at = now()"
        )
        stripe.answers["GET /v1/invoices"] = filled(played.INVOICES, order=made)
        stripe.answers["GET /v1/payment_intents/pi_1"] = filled(
            played.INTENT, order=made, status="succeeded", received="1000", error="null"
        )
        got = (await ada.get(f"/invoices/{made}")).body
    assert got["documents"] == [
        {"number": "A1B2C3-0001", "url": "https://invoice.stripe.com/i/acct_1/test_1"}
    ]


async def test_without_an_answer_of_stripes_it_is_said_so(
    postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    async with localstripe() as stripe:
        opened = open_office(postgres_url, redis_url, tmp_path, changes=settings(stripe.url))
        async with opened as office:
            ada = await office.signed_up("ada@example.com")
            started = (await ada.post("/payment-methods", {"kind": "card"})).body
            await stripe.enters(started["client_secret"], card=GOOD_CARD)
            path = f"/payment-methods/{started['id']}/confirmation"
            method = (await ada.post(path, {})).body["id"]
            made = (await buys(ada, method)).body["id"]
            assert (await ada.get(f"/invoices/{made}")).body["documents"] == []
            await office.pool.execute("UPDATE payment SET reference = 'pi_unknown'")
            got = await ada.get(f"/invoices/{made}")
    assert (got.status, got.code) == (503, "processor_away")
