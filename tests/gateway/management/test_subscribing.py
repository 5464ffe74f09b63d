"""Choosing a plan that is paid for, over HTTP."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.gateway.management.office import Office
from tests.gateway.management.subscribers import (
    open_plans,
    passes,
    plan_of,
    subscribed,
    subscriber,
    subscribes,
)
from tests.gateway.management.team import founded
from tests.gateway.management.till import charged, credited, method_of


@pytest.fixture
async def office(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Office]:
    async with open_plans(postgres_url, redis_url, tmp_path) as opened:
        yield opened


async def test_a_plan_is_had_as_soon_as_it_is_paid_for(office: Office) -> None:
    team = await founded(office)
    got = await subscribes(team.owner, await method_of(team.owner))
    assert (got.status, got.body["name"], got.body["projects_max"]) == (200, "pro", 99)
    period = got.body["subscription"]
    assert (period["billing"], period["next_plan"], got.body["pending"]) == ("monthly", "pro", None)
    starts, ends = (datetime.fromisoformat(period[name]) for name in ("starts_at", "ends_at"))
    assert timedelta(days=28) <= ends - starts <= timedelta(days=31)
    assert (await charged(office), await credited(office)) == ([5_000], []), "money for no credits"
    (line,) = await team.audited("plan.change")
    assert (line["actor"], line["address"]) == ("ada@example.com", "127.0.0.1")
    assert (line["before"]["plan"], line["after"]["plan"], line["after"]["paid"]) == (
        "free",
        "pro",
        "$50.00",
    )


async def test_twenty_at_once_are_one_charge(office: Office) -> None:
    ada = await subscriber(office)
    method = await method_of(ada)
    office.clock.is_rushing = True
    got = await asyncio.gather(*(subscribes(ada, method) for _ in range(20)))
    assert {one.status for one in got} == {200}
    assert await charged(office) == [5_000]
    assert (await plan_of(ada))["name"] == "pro"


async def test_a_persons_own_account_has_plans_as_well(office: Office) -> None:
    ada = await subscriber(office)
    await subscribed(ada)
    for number in range(9):
        assert (await ada.post("/organizations", {"name": f"o{number}"})).status == 201
    assert (await ada.post("/organizations", {"name": "o"})).code == "organizations_max"


@pytest.mark.parametrize("does", ["insufficient_funds", "stolen_card"])
async def test_a_declined_card_changes_nothing_and_is_not_tried_again(
    office: Office, does: str
) -> None:
    ada = await subscriber(office)
    got = await subscribes(ada, await method_of(ada, does))
    assert (got.status, got.code, got.body["decline"]) == (402, "payment_declined", does)
    await passes(office, days=3)
    held = await plan_of(ada)
    assert (held["name"], held["subscription"], held["pending"]) == ("free", None, None)
    assert await charged(office) == []
    await subscribed(ada)


async def test_a_banks_debit_is_a_plan_once_the_bank_has_paid(office: Office) -> None:
    ada = await subscriber(office)
    method = await method_of(ada, "slow", kind="sepa_debit")
    got = await subscribes(ada, method)
    assert (got.status, got.body["name"], got.body["pending"]["plan"]) == (200, "free", "pro")
    assert (await subscribes(ada, method, "max")).code == "payment_under_way"
    assert (await ada.delete("/subscription")).code == "not_subscribed"
    await passes(office, hours=1)
    assert (await plan_of(ada))["name"] == "pro"
    assert await charged(office) == []  # the sandbox' own row says "processing" for good
    assert await office.pool.fetchval("SELECT state FROM payment") == "paid"


async def test_more_is_had_at_once_and_what_is_unused_is_taken_off(office: Office) -> None:
    ada = await subscriber(office)
    method = await subscribed(ada)
    before = (await plan_of(ada))["subscription"]
    starts, ends = (datetime.fromisoformat(before[name]) for name in ("starts_at", "ends_at"))
    office.clock.ahead += (ends - starts) / 2
    got = await subscribes(ada, method, "max")
    assert (got.body["name"], got.body["subscription"]["starts_at"] > before["starts_at"]) == (
        "max",
        True,
    )
    first, second = await charged(office)
    assert (first, second) in {(5_000, 6_500), (5_000, 6_501)}, "half of 50 is off the 90"

    got = await subscribes(ada, method, "max", "yearly")
    assert got.body["subscription"]["billing"] == "yearly"
    third = (await charged(office))[2]
    assert third in {81_000, 81_001}, "nearly all of the month was unused"


async def test_less_follows_the_paid_period_and_is_charged_then(office: Office) -> None:
    ada = await subscriber(office)
    method = await subscribed(ada, "max")
    got = await subscribes(ada, method, "pro", "yearly")
    assert (got.body["name"], got.body["subscription"]["next_plan"]) == ("max", "pro")
    assert await charged(office) == [9_000]
    await passes(office, days=32)
    held = await plan_of(ada)
    assert (held["name"], held["subscription"]["billing"]) == ("pro", "yearly")
    assert await charged(office) == [9_000, 50_000]


async def test_a_month_of_a_larger_plan_does_not_eat_a_year_of_a_smaller_one(
    office: Office,
) -> None:
    ada = await subscriber(office)
    method = await subscribed(ada, "pro", "yearly")
    got = await subscribes(ada, method, "max", "monthly")
    assert (got.status, got.code) == (409, "unused_above_price")
    assert await charged(office) == [50_000]
    assert (await subscribes(ada, method, "max", "yearly")).status == 200
    assert (await charged(office))[1] in {40_000, 40_001}


async def test_who_cancels_keeps_the_plan_until_it_is_over_and_may_think_again(
    office: Office,
) -> None:
    ada = await subscriber(office)
    method = await subscribed(ada)
    got = await ada.delete("/subscription")
    assert (got.body["name"], got.body["subscription"]["next_plan"]) == ("pro", "free")
    got = await subscribes(ada, method)
    assert got.body["subscription"]["next_plan"] == "pro"
    await ada.delete("/subscription")
    await passes(office, days=32)
    held = await plan_of(ada)
    assert (held["name"], held["subscription"]) == ("free", None)
    assert await charged(office) == [5_000]
    assert (await ada.delete("/subscription")).code == "not_subscribed"
    await subscribed(ada)


async def test_only_what_is_sold_can_be_chosen(office: Office) -> None:
    ada = await subscriber(office)
    method = await method_of(ada)
    for plan in ("free", "gold"):
        assert (await subscribes(ada, method, plan)).code == "plan_not_sold"


async def test_who_may_purchase_subscribes_with_what_is_theirs(office: Office) -> None:
    team = await founded(office, "open-team")
    bob = await team.joined("bob@example.com")
    shared = await method_of(team.owner, owner="organization")
    private = await method_of(team.owner)
    assert (await subscribes(bob, shared)).code == "not_permitted"
    assert (await subscribes(bob, private)).code == "payment_method_not_found"
    assert (await subscribes(bob, await method_of(bob))).status == 200
    await team.switched(permissions={"billing.purchase": "owners"})
    assert (await subscribes(bob, await method_of(bob), "max")).code == "not_permitted"
    assert (await bob.delete("/subscription")).code == "not_permitted"
    assert (await subscribes(team.owner, shared, "max")).status == 200
