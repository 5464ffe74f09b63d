"""Payment methods over HTTP: whose they are, who sees them, and what becomes of them."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.management.payment_methods import METHODS_MAX
from tests.gateway.management.office import Browser, Office
from tests.gateway.management.team import Team, founded, with_token
from tests.gateway.management.till import buys, method_of, open_till


@pytest.fixture
async def office(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Office]:
    async with open_till(postgres_url, redis_url, tmp_path) as opened:
        yield opened


@pytest.fixture
async def team(office: Office) -> Team:
    return await founded(office, "open-team")


async def ids(browser: Browser) -> list[str]:
    got = await browser.get("/payment-methods")
    assert got.status == 200, got
    return [one["id"] for one in got.body["data"]]


async def test_ones_own_methods_are_nobody_elses_to_see_or_touch(team: Team) -> None:
    bob = await team.joined("bob@example.com")
    method = await method_of(bob)
    assert await ids(bob) == [method]
    assert await ids(team.owner) == []
    for path, ask in (
        (f"/payment-methods/{method}", team.owner.delete),
        (f"/payment-methods/{method}/default", team.owner.post),
    ):
        assert (await ask(path)).code == "payment_method_not_found"
    refused = await team.owner.post(f"/payment-methods/{method}/confirmation", {})
    assert refused.code == "payment_method_not_found"
    assert await ids(bob) == [method]
    assert await team.audited("payment_method.add") == [], "nor told of in the organization's log"


async def test_they_go_with_their_owner_from_one_organization_to_the_next(team: Team) -> None:
    bob = await team.joined("bob@example.com")
    method = await method_of(bob)
    account = (await bob.get("/me")).body["account_id"]
    assert await ids(bob.at(account)) == [method]
    assert (await buys(bob.at(account), method)).status == 201


async def test_the_organizations_are_for_who_manages_its_billing(team: Team) -> None:
    bob = await team.joined("bob@example.com")
    eve = await team.joined("eve@example.com", "admin")
    method = await method_of(team.owner, owner="organization")
    assert await ids(eve) == [method]
    assert await ids(bob) == [], "though in this organization he may buy"
    refused = await bob.post("/payment-methods", {"kind": "card", "owner": "organization"})
    assert (refused.status, refused.code) == (403, "not_permitted")
    assert (await eve.delete(f"/payment-methods/{method}")).status == 204
    for action in ("payment_method.add", "payment_method.remove"):
        assert [line["target"] for line in await team.audited(action)] == [method]


async def test_an_organizations_token_has_no_methods_of_its_own(office: Office, team: Team) -> None:
    program = await with_token(office, ["billing:write"], organization=(team.id, "owner"))
    got = await program.post("/payment-methods", {"kind": "card"})
    assert (got.status, got.code) == (403, "not_a_person")
    shared = await method_of(program, owner="organization")
    assert (await buys(program, shared)).body["paid_by"] == "organization"
    assert (await buys(program, None, pay_as="person")).code == "not_a_person"


async def test_one_is_the_default_however_many_become_it_at_once(team: Team) -> None:
    methods = [await method_of(team.owner) for _ in range(3)]

    async def defaults() -> list[str]:
        found = (await team.owner.get("/payment-methods")).body["data"]
        return [one["id"] for one in found if one["is_default"]]

    assert await defaults() == methods[:1]
    paths = [f"/payment-methods/{method}/default" for method in methods]
    got = await asyncio.gather(*(team.owner.post(path) for path in paths))
    assert {one.status for one in got} == {200}
    assert len(await defaults()) == 1


async def test_a_removed_method_pays_nothing_and_is_gone_from_the_processor(
    office: Office, team: Team
) -> None:
    method = await method_of(team.owner)
    for status in (204, 404):
        assert (await team.owner.delete(f"/payment-methods/{method}")).status == status
    assert (await buys(team.owner, method)).code == "payment_method_not_found"
    kept = "SELECT count(*) FROM sandbox_object WHERE kind = 'method'"
    assert await office.pool.fetchval(kept) == 0


async def test_a_setup_that_was_not_finished_is_no_method(team: Team) -> None:
    started = (await team.owner.post("/payment-methods", {"kind": "card"})).body
    path = f"/payment-methods/{started['id']}"
    assert await ids(team.owner) == []
    assert (await team.owner.post(f"{path}/default")).code == "setup_unfinished"
    wrong = await team.owner.post(f"{path}/confirmation", {"sandbox_value": "gold"})
    assert (wrong.status, wrong.code) == (409, "sandbox_value")
    assert (await buys(team.owner, started["id"])).code == "payment_method_not_found"
    for _ in range(2):  # and confirming twice is confirming once
        done = await team.owner.post(f"{path}/confirmation", {"sandbox_value": "approve"})
        assert done.status == 200
    assert await ids(team.owner) == [started["id"]]


async def test_nobody_has_more_methods_than_anybody_needs(office: Office, team: Team) -> None:
    office.clock.is_rushing = True
    for _ in range(METHODS_MAX):
        assert (await team.owner.post("/payment-methods", {"kind": "card"})).status == 201
    got = await team.owner.post("/payment-methods", {"kind": "card"})
    assert (got.status, got.code) == (409, "too_many_methods")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/payment-methods", None),
        ("POST", "/payment-methods", {"kind": "card"}),
        ("POST", "/purchases", {"amount_nanos": 10_000_000_000}),
    ],
)
async def test_without_a_processor_it_is_said_so(
    postgres_url: str, redis_url: str, tmp_path: Path, method: str, path: str, body: Any
) -> None:
    async with open_till(postgres_url, redis_url, tmp_path, changes="{}") as plain:
        ada = await plain.signed_up("ada@example.com")
        got = await ada.ask(method, path, body, headers={"Idempotency-Key": "k"})
        assert (got.status, got.code) == (409, "payments_off")
