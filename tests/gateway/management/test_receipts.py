"""Billing contacts are told of the organization's payments once each, and of nobody else's."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from gateway.management import payments, refunds
from gateway.management.refunds import NewRefund
from gateway.management.top_up_ends import TopUpEnd, concluded
from ledger.money import Nanos
from tests.gateway.management.office import Browser, Office
from tests.gateway.management.team import Team, founded
from tests.gateway.management.till import (
    TEN_USD,
    buys,
    everything_is_finished,
    method_of,
    open_till,
)
from tests.gateway.tenancy import Tenancy, activate

ADA, CFO = "ada@example.com", "cfo@example.com"


@pytest.fixture
async def office(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Office]:
    async with open_till(postgres_url, redis_url, tmp_path) as opened:
        await activate(Tenancy(opened.pool, opened.redis))
        yield opened


async def billed(office: Office, **settings: Any) -> Team:
    """An organization whose treasurer is no member."""
    team = await founded(office, "platform")
    change = {"contacts": [CFO, "Cfo@Example.com"], "billing_email": "CFO@example.com", **settings}
    assert (await team.owner.patch("/billing", change)).status == 200
    return team


async def subjects(office: Office, address: str) -> list[str]:
    """Of the mails about money, the oldest first."""
    found = [str(mail["subject"]) for mail in await office.mails_to(address)]
    return [one for one in found if one.startswith(("Purchase", "Refund", "Top-up"))]


async def bought(office: Office, browser: Browser, owner: str) -> payments.Row:
    """Ten dollars' worth, paid so."""
    got = await buys(browser, await method_of(browser, owner=owner))
    assert got.status == 201, got
    await everything_is_finished(office)
    found = await payments.one(office.pool, UUID(got.body["id"]))
    assert found is not None
    return found


async def test_what_the_organization_buys_is_told_to_each_contact_once(office: Office) -> None:
    team = await billed(office)
    payment = await bought(office, team.owner, "organization")
    assert (await subjects(office, CFO), await subjects(office, ADA)) == (["Purchase: Acme"], [])
    (alert,) = (await team.owner.get("/alerts?kind=purchase.paid")).body["data"]
    assert alert["facts"] == {
        "amount_nanos": TEN_USD,
        "payment_id": str(payment.id),
        "charged": 1_000,
        "currency": "usd",
    }
    text = (await office.mails_to(CFO))[-1]["text"]
    assert "10.00 USD were charged" in text
    assert str(payment.id) in text


async def test_what_a_member_pays_is_nobody_elses(office: Office) -> None:
    team = await billed(office)
    payment = await bought(office, team.owner, "person")
    back = NewRefund(refunds.refund_id(payment.id, "x"), Nanos(TEN_USD // 2), "root", "sorry")
    await refunds.refund(office.desk, payment, back)
    assert (await subjects(office, CFO), await subjects(office, ADA)) == ([], [])


async def test_what_goes_back_is_told_once_however_often_it_is_asked_for(office: Office) -> None:
    team = await billed(office, contacts=[CFO, ADA])
    payment = await bought(office, team.owner, "organization")
    back = NewRefund(refunds.refund_id(payment.id, "x"), Nanos(TEN_USD // 4), "root", "sorry")
    for _ in range(3):
        await refunds.refund(office.desk, payment, back)
    for address in (CFO, ADA):
        assert await subjects(office, address) == ["Purchase: Acme", "Refund: Acme"]
    text = (await office.mails_to(CFO))[-1]["text"]
    assert "2.50 USD return" in text


@pytest.mark.parametrize("decline", [None, "stolen_card"])
async def test_of_top_ups_owners_and_contacts_have_one_mail_each(
    office: Office, decline: str | None
) -> None:
    team = await billed(office, contacts=[CFO, "ADA@example.com", "third@example.com"])
    end = TopUpEnd(UUID(team.id), uuid4(), None, TEN_USD, decline, is_hard=True)
    for _ in range(2):
        async with office.pool.acquire() as connection, connection.transaction():
            await concluded(connection, office.desk, end)
    told = "Top-up: Acme" if decline is None else "Top-up declined: Acme"
    for address in (ADA, CFO, "third@example.com"):
        assert await subjects(office, address) == [told], address
