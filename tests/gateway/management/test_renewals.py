"""Periods that follow each other, declines, and when nobody is charged any more."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from gateway.management.renewals import renew_some
from tests.gateway.management.office import Browser, Office
from tests.gateway.management.subscribers import (
    lasting,
    open_plans,
    passes,
    plan_of,
    subscribed,
    subscriber,
    subscribes,
    work,
)
from tests.gateway.management.team import founded, rested
from tests.gateway.management.till import charged, method_of


@pytest.fixture
async def office(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Office]:
    async with open_plans(postgres_url, redis_url, tmp_path) as opened:
        yield opened


async def ends_of(browser: Browser) -> datetime:
    return datetime.fromisoformat((await plan_of(browser))["subscription"]["ends_at"])


async def test_each_period_is_charged_once_however_many_processes_look(office: Office) -> None:
    ada = await subscriber(office)
    await subscribed(ada)
    for month in range(1, 4):
        before = await ends_of(ada)
        office.clock.ahead += before - office.desk.now() + timedelta(minutes=1)
        await asyncio.gather(*(renew_some(office.desk) for _ in range(4)))
        await work(office)
        assert await charged(office) == [5_000] * (month + 1)
        assert timedelta(days=28) <= await ends_of(ada) - before <= timedelta(days=31)
    assert await office.pool.fetchval("SELECT count(*) FROM plan_period WHERE state = 'paid'") == 4


async def test_a_year_is_renewed_after_a_year(office: Office) -> None:
    ada = await subscriber(office)
    await subscribed(ada, "pro", "yearly")
    await passes(office, days=364)
    assert await charged(office) == [50_000]
    await passes(office, days=3)
    assert await charged(office) == [50_000, 50_000]


async def test_periods_that_are_over_when_the_job_comes_back_are_not_charged(
    office: Office,
) -> None:
    ada = await subscriber(office)
    await subscribed(ada)
    await passes(office, days=100)
    assert await charged(office) == [5_000, 5_000]
    assert await ends_of(ada) > office.desk.now()


@pytest.mark.parametrize(("does", "after_days"), [("insufficient_funds", 1), ("stolen_card", 0)])
async def test_a_decline_is_tried_again_a_day_later_if_that_may_help_and_then_the_plan_ends(
    office: Office, does: str, after_days: int
) -> None:
    team = await founded(office)
    team.owner = await lasting(office, "ada@example.com", team.id)
    contacts = {"contacts": ["ADA@example.com", "cfo@example.com"]}
    assert (await team.owner.patch("/billing", contacts)).status == 200
    await subscribed(team.owner)
    poor = await method_of(team.owner, does)
    assert (await subscribes(team.owner, poor)).status == 200, "what is to pay from now on"
    await passes(office, days=32)
    held = await plan_of(team.owner)
    if after_days:
        assert (held["name"], held["pending"]["decline"]) == ("pro", does)
        await passes(office, hours=23)
        assert (await plan_of(team.owner))["name"] == "pro"
        await passes(office, hours=2)
        held = await plan_of(team.owner)
    assert (held["name"], held["subscription"], held["pending"]) == ("free", None, None)
    tries = await office.pool.fetchval("SELECT count(*) FROM payment WHERE state = 'failed'")
    assert (tries, await charged(office)) == (1 + after_days, [5_000])
    for address in ("ada@example.com", "cfo@example.com"):
        mails = [mail["subject"] for mail in await office.mails_to(address)]
        assert mails.count("Acme is back on Free") == 1
        assert mails.count("Payment declined: Acme") == after_days
    (line,) = await team.audited("plan.end")
    assert (line["actor"], line["after"]["plan"]) == ("subscriptions", "free")
    await passes(office, days=60)
    assert await charged(office) == [5_000], "and that is all"


async def test_a_second_try_that_goes_well_keeps_the_plan(office: Office) -> None:
    ada = await subscriber(office)
    await subscribed(ada)
    await subscribes(ada, await method_of(ada, "insufficient_funds"))
    await passes(office, days=32)
    before = await ends_of(ada)
    await office.pool.execute(
        "UPDATE sandbox_object SET body = jsonb_set(body, '{does}', '\"approve\"')"
        " WHERE kind = 'method'"
    )
    await passes(office, hours=25)
    assert (await plan_of(ada))["pending"] is None
    assert await ends_of(ada) - before > timedelta(days=27)
    assert await charged(office) == [5_000, 5_000]


async def test_who_cancels_after_a_decline_is_not_charged_again(office: Office) -> None:
    ada = await subscriber(office)
    await subscribed(ada)
    await subscribes(ada, await method_of(ada, "insufficient_funds"))
    await passes(office, days=32)
    got = await ada.delete("/subscription")
    assert (got.status, got.body["name"], got.body["pending"]) == (200, "free", None)
    await passes(office, days=2)
    assert await office.pool.fetchval("SELECT count(*) FROM payment") == 2


async def test_nobody_is_charged_for_what_the_operator_gave_or_what_is_deleted(
    office: Office,
) -> None:
    given, gone = await founded(office), await founded(office, email="bob@example.com")
    await subscribed(given.owner)
    await subscribed(gone.owner)
    rested(office)
    root = await office.operator("root@example.com")
    await root.patch(f"/operator/organizations/{given.id}", {"plan": "max"})
    ending = {"confirmation": "Acme", "forfeit_balance": True}
    assert (await gone.owner.post("/organization/deletion", ending)).status == 204
    await passes(office, days=40)
    assert await charged(office) == [5_000, 5_000]
    held = await plan_of(await lasting(office, "ada@example.com", given.id))
    assert (held["name"], held["subscription"]) == ("max", None)


async def test_a_card_of_somebody_who_left_pays_no_more(office: Office) -> None:
    team = await founded(office, "open-team")
    bob = await team.joined("bob@example.com")
    await subscribed(bob)
    got = await team.owner.delete(f"/members/{await team.member_id('bob@example.com')}")
    assert got.status in {200, 204}
    await passes(office, days=32)
    ada = await lasting(office, "ada@example.com", team.id)
    assert (await plan_of(ada))["name"] == "free"
    assert await charged(office) == [5_000]
    assert (await office.mails_to("ada@example.com"))[-1]["subject"] == "Acme is back on Free"


async def test_another_card_of_its_owner_pays_when_the_first_is_gone(office: Office) -> None:
    ada = await subscriber(office)
    method = await subscribed(ada)
    second = await method_of(ada)
    assert (await ada.delete(f"/payment-methods/{method}")).status == 204
    assert (await ada.post(f"/payment-methods/{second}/default")).status == 200
    await passes(office, days=32)
    assert await charged(office) == [5_000, 5_000]
