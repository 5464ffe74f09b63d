"""The wallet over HTTP."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from ledger.functions import Partition
from tests.gateway.management.office import Browser, Office, open_office
from tests.gateway.management.rooms import joined, made_operator, made_organization
from tests.gateway.tenancy import Tenancy, activate

SELF_SERVICE = {"switches": {"transfers_self_service": True}}


@pytest.fixture
async def office(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Office]:
    async with open_office(postgres_url, redis_url, tmp_path) as opened:
        await activate(Tenancy(opened.pool, opened.redis))
        yield opened


@pytest.fixture
async def operator(office: Office) -> Browser:
    return await made_operator(office, "root@example.com")


@pytest.fixture
async def ada(office: Office) -> Browser:
    return await office.signed_up("ada@example.com")


@pytest.fixture
async def acme(ada: Browser) -> Browser:
    return await made_organization(ada, "Acme")


async def _gets(operator: Browser, whom: Any, amount: int, reason: str = "welcome") -> None:
    """The operator gives credits to an organization."""
    got = await operator.post(
        f"/operator/organizations/{whom}/credits", {"amount_nanos": amount, "reason": reason}
    )
    assert got.status == 201, got


def _id(browser: Browser) -> str:
    return browser.headers["X-Organization-Id"]


async def test_a_wallet_tells_what_is_given_spent_held_and_free(
    office: Office, operator: Browser, acme: Browser
) -> None:
    await _gets(operator, _id(acme), 1_000)
    assert (await acme.get("/wallet")).body == {
        "granted_nanos": 1_000,
        "spent_nanos": 0,
        "balance_nanos": 1_000,
        "held_nanos": 0,
        "free_nanos": 1_000,
        "display": {
            "unit": "credits",
            "amounts": {
                "granted": "0.00",
                "balance": "0.00",
                "free": "0.00",
                "spent": "0.00",
                "held": "0.00",
            },
        },
    }
    number = await office.pool.fetchval("SELECT partition FROM wallet WHERE id = $1", _id(acme))
    await Partition(office.redis, number).withhold(1, str(uuid4()), wallet=_id(acme), amount=300)
    seen = (await acme.get("/wallet")).body
    assert (seen["held_nanos"], seen["free_nanos"], seen["balance_nanos"]) == (300, 700, 1_000)


@pytest.mark.parametrize(
    ("preset", "unit", "shown"),
    [
        ("studio", "GP", "12,345"),
        ("pooled", "USD", "12.34"),
        ("open-team", "USD", "12.34"),
        ("platform", "credits", "12.34"),
    ],
)
async def test_money_is_shown_in_the_unit_of_the_preset(
    operator: Browser, ada: Browser, preset: str, unit: str, shown: str
) -> None:
    there = await made_organization(ada, "Acme", preset)
    await _gets(operator, _id(there), 12_345_999_999)

    wallet = (await there.get("/wallet")).body["display"]
    (line,) = (await there.get("/transactions")).body["data"]
    budget = {"name": "k", "budget_nanos": 12_345_999_999, "budget_period": "once"}
    key = (await there.post("/api-keys", budget)).body["key"]

    assert (wallet["unit"], wallet["amounts"]["balance"]) == (unit, shown)
    assert line["display"] == {"unit": unit, "amounts": {"amount": shown, "granted": shown}}
    assert key["display"] == {"unit": unit, "amounts": {"budget": shown}}


async def test_an_organization_chooses_its_own_unit(
    office: Office, operator: Browser, acme: Browser
) -> None:
    await _gets(operator, _id(acme), 12_345_678_901)
    gems = {"name": "gems", "per_usd": 7, "decimals": 1}
    bob = await joined(office, acme, "bob@example.com", "admin")

    refused = await bob.patch("/policy", {"switches": {"display_unit": gems}})
    chosen = await acme.patch("/policy", {"switches": {"display_unit": gems}})

    assert (refused.status, refused.code) == (403, "not_permitted")
    assert chosen.body["display_unit"] == gems
    shown = (await acme.get("/wallet")).body["display"]
    assert (shown["unit"], shown["amounts"]["balance"]) == ("gems", "86.4")


async def test_the_installations_unit_is_what_studios_read(
    postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    changes = "credits: {unit: coins, per_usd: 5, decimals: 2}"
    async with open_office(postgres_url, redis_url, tmp_path, changes=changes) as office:
        await activate(Tenancy(office.pool, office.redis))
        there = await made_organization(await office.signed_up("a@example.com"), "A", "studio")
        unit = (await there.get("/policy")).body["display_unit"]

    assert unit == {"name": "coins", "per_usd": 5, "decimals": 2}


async def test_what_redis_cannot_tell_is_null(
    office: Office, operator: Browser, acme: Browser
) -> None:
    await _gets(operator, _id(acme), 1_000)
    await office.redis.flushall()
    seen = (await acme.get("/wallet")).body
    assert (seen["balance_nanos"], seen["held_nanos"], seen["free_nanos"]) == (1_000, None, None)


async def test_the_history_has_every_credit_and_withdrawal_with_a_running_figure(
    operator: Browser, acme: Browser
) -> None:
    path = f"/operator/organizations/{_id(acme)}"
    await _gets(operator, _id(acme), 1_000)
    refunded = {"amount_nanos": 300, "reason": "paid back"}
    assert (await operator.post(f"{path}/refunds", refunded)).status == 201
    for amount in (50, -150):
        put_right = {"amount_nanos": amount, "reason": "put right", "kind": "adjustment"}
        assert (await operator.post(f"{path}/credits", put_right)).status == 201
    first = (await acme.get("/transactions?limit=3")).body
    second = (await acme.get(f"/transactions?limit=3&cursor={first['next_cursor']}")).body
    lines = first["data"] + second["data"]
    assert [(one["kind"], one["amount_nanos"], one["granted_nanos"]) for one in lines] == [
        ("adjustment", -150, 600),
        ("adjustment", 50, 750),
        ("refund", -300, 700),
        ("grant", 1_000, 1_000),
    ]
    assert {one["actor"] for one in lines} == {"root@example.com"}
    assert lines[-1]["reason"] == "welcome"
    assert second["next_cursor"] is None
    assert (await acme.get("/wallet")).body["balance_nanos"] == 600


async def test_each_organization_sees_its_own_money_only(
    office: Office, operator: Browser, acme: Browser
) -> None:
    bob = await made_organization(await office.signed_up("bob@example.com"), "Bob's")
    await _gets(operator, _id(acme), 1_000)
    assert (await bob.get("/transactions")).body["data"] == []
    assert (await bob.get("/wallet")).body["balance_nanos"] == 0
    for path in ("/wallet", "/transactions"):
        assert (await bob.at(_id(acme)).get(path)).code == "organization_not_found"


@pytest.mark.parametrize(("preset", "status"), [("studio", 403), ("open-team", 200)])
async def test_members_see_the_money_where_the_policy_says_so(
    office: Office, ada: Browser, preset: str, status: int
) -> None:
    there = await made_organization(ada, "Acme", preset)
    bob = await joined(office, there, "bob@example.com")
    assert (await bob.get("/wallet")).status == status
    assert (await bob.get("/transactions")).status == status


async def test_personal_credits_go_to_an_organization_where_it_allows_that(
    operator: Browser, ada: Browser, acme: Browser
) -> None:
    await _gets(operator, (await ada.get("/me")).body["account_id"], 1_000)
    wanted = {"amount_nanos": 400}
    refused = await acme.post("/transfers", wanted)
    assert (refused.status, refused.code) == (403, "transfers_not_self_service")
    await acme.patch("/policy", SELF_SERVICE)
    moved = await acme.post("/transfers", wanted, headers={"Idempotency-Key": "one"})
    again = await acme.post("/transfers", wanted, headers={"Idempotency-Key": "one"})
    assert (moved.status, moved.body) == (
        201,
        {
            "amount_nanos": 400,
            "from_balance_nanos": 600,
            "to_balance_nanos": 400,
            "is_usable": True,
        },
    )
    assert (again.status, again.body) == (201, moved.body)
    assert [one["kind"] for one in (await acme.get("/transactions")).body["data"]] == [
        "transfer_in"
    ]
    assert (await ada.get("/transactions")).body["data"][0]["amount_nanos"] == -400


async def test_nobody_gives_more_than_they_have(
    operator: Browser, ada: Browser, acme: Browser
) -> None:
    await _gets(operator, (await ada.get("/me")).body["account_id"], 100)
    await acme.patch("/policy", SELF_SERVICE)
    got = await acme.post("/transfers", {"amount_nanos": 101})
    assert (got.status, got.code, got.body["affordable_nanos"]) == (409, "not_enough_free", 100)
    assert (await ada.get("/wallet")).body["balance_nanos"] == 100


async def test_ten_transfers_at_once_move_no_more_than_there_is(
    operator: Browser, ada: Browser, acme: Browser
) -> None:
    await _gets(operator, (await ada.get("/me")).body["account_id"], 100)
    await acme.patch("/policy", SELF_SERVICE)
    got = await asyncio.gather(*(acme.post("/transfers", {"amount_nanos": 30}) for _ in range(10)))
    moved = [one for one in got if one.status == 201]
    assert len(moved) <= 3
    assert (await acme.get("/wallet")).body["balance_nanos"] == 30 * len(moved)
    assert (await ada.get("/wallet")).body["balance_nanos"] == 100 - 30 * len(moved)


async def test_who_may_not_buy_for_it_gives_nothing(office: Office, acme: Browser) -> None:
    await acme.patch("/policy", SELF_SERVICE)
    bob = await joined(office, acme, "bob@example.com")
    got = await bob.post("/transfers", {"amount_nanos": 5})
    assert (got.status, got.code) == (403, "not_permitted")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"amount_nanos": 0},
        {"amount_nanos": -5},
        {"amount_nanos": 1.5},
        {"amount_nanos": 2**53},
        {"amount_nanos": 5, "from": "elsewhere"},
        {"amount_nanos": 5, "reason": " "},
    ],
)
async def test_a_flawed_transfer_is_refused(acme: Browser, body: dict[str, object]) -> None:
    await acme.patch("/policy", SELF_SERVICE)
    assert (await acme.post("/transfers", body)).status == 400


async def test_unused_credits_are_good_for_ever(
    office: Office, operator: Browser, acme: Browser
) -> None:
    await _gets(operator, _id(acme), 1_000)
    office.clock.ahead += timedelta(days=20 * 365)

    assert (await acme.get("/wallet")).status == 401  # the session has not lasted as long
    assert (await acme.signs_in("ada@example.com")).status == 201
    wallet = (await acme.get("/wallet")).body
    lines = (await acme.get("/transactions")).body["data"]

    assert wallet["free_nanos"] == wallet["balance_nanos"] == 1_000
    assert [line["amount_nanos"] for line in lines] == [1_000]


async def test_what_is_given_back_is_free_at_once_and_says_why(
    operator: Browser, acme: Browser
) -> None:
    await _gets(operator, _id(acme), 1_000)
    back = {"amount_nanos": 250, "reason": "the vendor failed", "kind": "adjustment"}
    path = f"/operator/organizations/{_id(acme)}/credits"
    assert (await operator.post(path, back)).status == 201

    wallet = (await acme.get("/wallet")).body
    line = (await acme.get("/transactions")).body["data"][0]

    assert (wallet["free_nanos"], wallet["granted_nanos"]) == (1_250, 1_250)
    said = (line["kind"], line["amount_nanos"], line["granted_nanos"], line["reason"])
    assert said == ("adjustment", 250, 1_250, "the vendor failed")
