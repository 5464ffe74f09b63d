"""Buying credits over HTTP."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ledger.functions import Partition
from tests.gateway.management.office import Browser, Office
from tests.gateway.management.team import founded
from tests.gateway.management.till import (
    TEN_USD,
    buys,
    charged,
    credited,
    everything_is_finished,
    method_of,
    open_till,
)


@pytest.fixture
async def office(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Office]:
    async with open_till(postgres_url, redis_url, tmp_path) as opened:
        yield opened


async def _balance(browser: Browser) -> int:
    return int((await browser.get("/wallet")).body["balance_nanos"])


async def test_credits_are_there_as_soon_as_the_purchase_is_answered(office: Office) -> None:
    ada = await office.signed_up("ada@example.com")
    got = await buys(ada, await method_of(ada))
    assert (got.status, got.body["state"], got.body["is_credited"]) == (201, "paid", True)
    assert (got.body["charged"], got.body["currency"]) == (1_000, "usd")
    account = (await ada.get("/me")).body["account_id"]
    number = await office.pool.fetchval("SELECT partition FROM wallet WHERE id = $1", account)
    image = await Partition(office.redis, number).snap(1, [account])
    assert image.wallets[0].free == TEN_USD, "gateways know it already"
    (line,) = (await ada.get("/transactions")).body["data"]
    assert (line["kind"], line["amount_nanos"], line["actor"]) == (
        "payment",
        TEN_USD,
        "ada@example.com",
    )


async def test_fifty_at_once_under_one_key_are_one_charge_and_one_credit(office: Office) -> None:
    ada = await office.signed_up("ada@example.com")
    method = await method_of(ada)
    office.clock.is_rushing = True
    got = await asyncio.gather(*(buys(ada, method, key="same") for _ in range(50)))
    assert {one.status for one in got} <= {201, 409}
    assert {one.code for one in got if one.status == 409} <= {"in_progress"}
    again = await buys(ada, method, key="same")
    assert (again.status, again.body["state"]) == (201, "paid")
    assert (await credited(office), await charged(office)) == ([TEN_USD], [1_000])


async def test_a_key_means_one_purchase_for_good(office: Office) -> None:
    ada = await office.signed_up("ada@example.com")
    method = await method_of(ada)
    assert (await buys(ada, method, key="same")).status == 201
    other = await buys(ada, method, key="same", amount=2 * TEN_USD)
    assert (other.status, other.code) == (409, "idempotency_key_reused")
    await office.pool.execute("DELETE FROM answered")  # as after a day
    other = await buys(ada, method, key="same", amount=2 * TEN_USD)
    assert (other.status, other.code) == (409, "idempotency_key_reused")
    await office.pool.execute("DELETE FROM answered")
    assert (await buys(ada, method, key="same")).body["state"] == "paid"
    assert await credited(office) == [TEN_USD]


async def test_a_purchase_without_a_key_is_refused(office: Office) -> None:
    ada = await office.signed_up("ada@example.com")
    got = await ada.post("/purchases", {"amount_nanos": TEN_USD})
    assert (got.status, got.code) == (400, "idempotency_key_required")


@pytest.mark.parametrize("amount", [0, -1, TEN_USD - 10_000_000, TEN_USD + 1, 10**18])
async def test_less_than_ten_dollars_and_parts_of_cents_are_not_sold(
    office: Office, amount: int
) -> None:
    ada = await office.signed_up("ada@example.com")
    got = await buys(ada, None, amount=amount)
    assert got.status == 400
    assert await office.pool.fetchval("SELECT count(*) FROM payment") == 0


async def test_the_least_is_told_in_dollars_and_in_the_organizations_unit(office: Office) -> None:
    team = await founded(office, "studio")
    got = await buys(team.owner, None, amount=TEN_USD // 2)
    assert "$10.00" in got.body["detail"]
    assert "10,000 GP" in got.body["detail"]


@pytest.mark.parametrize(
    ("does", "decline", "is_hard"),
    [
        ("insufficient_funds", "insufficient_funds", False),
        ("stolen_card", "stolen_card", True),
    ],
)
async def test_a_declined_payment_is_said_so_and_credits_nothing(
    office: Office, does: str, decline: str, *, is_hard: bool
) -> None:
    ada = await office.signed_up("ada@example.com")
    method = await method_of(ada, does)
    for _ in range(2):  # the same key, the same answer
        got = await buys(ada, method, key="one")
        assert (got.status, got.code) == (402, "payment_declined")
        assert (got.body["decline"], got.body["is_hard"]) == (decline, is_hard)
    assert await credited(office) == []
    (listed,) = (await ada.get("/purchases")).body["data"]
    assert (listed["state"], listed["decline"]) == ("failed", decline)


async def test_a_banks_debit_is_credited_once_the_bank_has_paid(office: Office) -> None:
    ada = await office.signed_up("ada@example.com")
    got = await buys(ada, await method_of(ada, "slow", kind="sepa_debit"))
    assert (got.body["state"], got.body["charged"], got.body["currency"]) == (
        "processing",
        900,
        "eur",
    )
    assert await credited(office) == []
    await everything_is_finished(office)
    assert await credited(office) == [TEN_USD]


async def test_a_banks_debit_that_fails_credits_nothing(office: Office) -> None:
    ada = await office.signed_up("ada@example.com")
    got = await buys(ada, await method_of(ada, "slow_decline", kind="us_bank_account"))
    await everything_is_finished(office)
    state = (await ada.get(f"/purchases/{got.body['id']}")).body["state"]
    assert (await credited(office), state) == ([], "failed")


async def test_at_a_page_one_pays_when_one_likes(office: Office) -> None:
    ada = await office.signed_up("ada@example.com")
    got = await buys(ada, None)
    assert (got.body["state"], got.body["paid_by"]) == ("open", "person")
    path = got.body["checkout_url"].removeprefix(office.desk.site)
    http = office.browsers[0]
    async with http.get(office.url + path) as page:
        assert "approve" in await page.text()
    async with http.post(office.url + path, data={"value": "approve"}, allow_redirects=False) as on:
        assert (on.status, on.headers["Location"]) == (303, f"{office.desk.site}/paid")
    await everything_is_finished(office)
    seen = (await ada.get(f"/purchases/{got.body['id']}")).body
    assert (seen["state"], seen["checkout_url"]) == ("paid", None)
    assert await credited(office) == [TEN_USD]


async def test_each_purchase_is_seen_by_its_payer_and_the_organizations_by_its_treasurers(
    office: Office,
) -> None:
    team = await founded(office, "open-team")
    bob = await team.joined("bob@example.com")
    eve = await team.joined("eve@example.com")
    shared = await method_of(team.owner, owner="organization")
    private = await method_of(bob)
    assert (await buys(team.owner, shared)).status == 201
    assert (await buys(bob, private)).status == 201

    def owners(got: Any) -> list[str]:
        return sorted(one["paid_by"] for one in got.body["data"])

    assert owners(await team.owner.get("/purchases")) == ["organization"]
    assert owners(await bob.get("/purchases")) == ["organization", "person"]
    assert owners(await eve.get("/purchases")) == ["organization"], "members see the bills here"
    await team.switched(permissions={"billing.read": "admins"})
    assert owners(await eve.get("/purchases")) == []
    assert owners(await bob.get("/purchases")) == ["person"]
    its_id = (await bob.get("/purchases")).body["data"][0]["id"]
    assert (await team.owner.get(f"/purchases/{its_id}")).code == "purchase_not_found"
    assert await _balance(team.owner) == 2 * TEN_USD, "though all of it is for all"


@pytest.mark.parametrize(
    ("preset", "member", "admin"),
    [("studio", 403, 201), ("pooled", 403, 201), ("open-team", 201, 201), ("platform", 403, 403)],
)
async def test_who_buys_is_what_the_policy_says(
    office: Office, preset: str, member: int, admin: int
) -> None:
    team = await founded(office, preset)
    cast = await team.cast()
    for role, status in (("member", member), ("admin", admin), ("owner", 201)):
        method = await method_of(cast[role])
        assert (await buys(cast[role], method)).status == status, role
    if preset == "studio":
        await team.switched(permissions={"billing.purchase": "members"})
        assert (await buys(cast["member"], await method_of(cast["member"]))).status == 201


async def test_nobody_pays_with_what_is_not_theirs(office: Office) -> None:
    team = await founded(office, "open-team")
    bob = await team.joined("bob@example.com")
    shared = await method_of(team.owner, owner="organization")
    private = await method_of(team.owner)
    for method in (private, str(team.id)):
        assert (await buys(bob, method)).code == "payment_method_not_found"
    assert (await buys(bob, shared)).code == "not_permitted"
    assert (await buys(bob, None, pay_as="organization")).code == "not_permitted"
    assert await charged(office) == []


async def test_a_list_of_purchases_has_pages_the_newest_first(office: Office) -> None:
    ada = await office.signed_up("ada@example.com")
    method = await method_of(ada)
    made = [(await buys(ada, method)).body["id"] for _ in range(3)]
    first = (await ada.get("/purchases?limit=2")).body
    second = (await ada.get(f"/purchases?limit=2&cursor={first['next_cursor']}")).body
    assert [one["id"] for one in first["data"] + second["data"]] == made[::-1]
