"""What the operator does over HTTP."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from tests.gateway.management.office import Browser, Office, open_office
from tests.gateway.management.rooms import authenticator_of, made_operator, made_organization
from tests.gateway.tenancy import Tenancy, activate, until

CREDIT = {"amount_nanos": 1_000, "reason": "welcome"}


@pytest.fixture
async def office(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Office]:
    async with open_office(postgres_url, redis_url, tmp_path) as opened:
        await activate(Tenancy(opened.pool, opened.redis))
        yield opened


@pytest.fixture
async def operator(office: Office) -> Browser:
    return await made_operator(office, "root@example.com")


@pytest.fixture
async def acme(office: Office) -> Browser:
    return await made_organization(await office.signed_up("ada@example.com"), "Acme")


def _path(browser: Browser, rest: str = "") -> str:
    return f"/operator/organizations/{browser.headers['X-Organization-Id']}{rest}"


async def test_nobody_but_the_operator_gets_in(office: Office, acme: Browser) -> None:
    transfer = {
        "from_organization_id": str(uuid4()),
        "to_organization_id": str(uuid4()),
        **CREDIT,
    }
    for got in (
        await acme.get("/operator/organizations"),
        await acme.get(_path(acme)),
        await acme.patch(_path(acme), {"is_suspended": False}),
        await acme.post(_path(acme, "/credits"), CREDIT),
        await acme.post(_path(acme, "/refunds"), CREDIT),
        await acme.post("/operator/transfers", transfer),
    ):
        assert (got.status, got.code) == (403, "not_operator")
    assert (await office.stranger().get("/operator/organizations")).status == 401


async def test_fifty_identical_credits_at_once_are_one(
    office: Office, operator: Browser, acme: Browser
) -> None:
    headers = {"Idempotency-Key": "invoice-7"}
    got = await asyncio.gather(
        *(operator.post(_path(acme, "/credits"), CREDIT, headers=headers) for _ in range(50))
    )
    # Some are told that it is being done, some that they ask too often; none does it again.
    assert {one.status for one in got} <= {201, 409, 429}
    assert (await acme.get("/wallet")).body["balance_nanos"] == 1_000
    office.clock.ahead += timedelta(minutes=1)
    again = await operator.post(_path(acme, "/credits"), CREDIT, headers=headers)
    assert (again.status, again.body) == (
        201,
        {"amount_nanos": 1_000, "balance_nanos": 1_000, "is_usable": True},
    )
    await office.pool.execute("DELETE FROM answered")
    forgotten = await operator.post(_path(acme, "/credits"), CREDIT, headers=headers)
    assert (forgotten.status, forgotten.body["balance_nanos"]) == (201, 1_000)
    assert len((await acme.get("/transactions")).body["data"]) == 1


async def test_a_key_used_for_another_credit_is_refused(operator: Browser, acme: Browser) -> None:
    headers = {"Idempotency-Key": "one"}
    await operator.post(_path(acme, "/credits"), CREDIT, headers=headers)
    other = {**CREDIT, "amount_nanos": 5}
    got = await operator.post(_path(acme, "/credits"), other, headers=headers)
    assert (got.status, got.code) == (409, "idempotency_key_reused")
    assert (await acme.get("/wallet")).body["balance_nanos"] == 1_000


async def test_a_credit_is_usable_at_once(operator: Browser, acme: Browser) -> None:
    assert (await operator.post(_path(acme, "/credits"), CREDIT)).body["is_usable"]
    assert (await acme.get("/wallet")).body["free_nanos"] == 1_000


async def test_more_than_is_free_is_not_refunded(operator: Browser, acme: Browser) -> None:
    await operator.post(_path(acme, "/credits"), CREDIT)
    got = await operator.post(_path(acme, "/refunds"), {**CREDIT, "amount_nanos": 1_001})
    assert (got.status, got.code, got.body["affordable_nanos"]) == (409, "not_enough_free", 1_000)
    assert (await acme.get("/wallet")).body["balance_nanos"] == 1_000


async def test_credits_go_from_one_organization_to_another(
    office: Office, operator: Browser, acme: Browser
) -> None:
    bob = await made_organization(await office.signed_up("bob@example.com"), "Bob's")
    await operator.post(_path(acme, "/credits"), CREDIT)
    wanted = {
        "from_organization_id": acme.headers["X-Organization-Id"],
        "to_organization_id": bob.headers["X-Organization-Id"],
        "amount_nanos": 250,
        "reason": "they became one",
    }
    got = await operator.post("/operator/transfers", wanted)
    assert (got.status, got.body["from_balance_nanos"], got.body["to_balance_nanos"]) == (
        201,
        750,
        250,
    )
    (line,) = (await bob.get("/transactions")).body["data"]
    assert (line["kind"], line["reason"]) == ("transfer_in", "they became one")
    same = {**wanted, "to_organization_id": wanted["from_organization_id"]}
    assert (await operator.post("/operator/transfers", same)).code == "same_organization"
    for name in ("from_organization_id", "to_organization_id"):
        nobody = {**wanted, name: str(uuid4())}
        assert (await operator.post("/operator/transfers", nobody)).status == 404


async def test_a_deleted_organization_gains_nothing_and_can_still_give(
    operator: Browser, office: Office, acme: Browser
) -> None:
    bob = await made_organization(await office.signed_up("bob@example.com"), "Bob's")
    await operator.post(_path(acme, "/credits"), CREDIT)
    ending = {"confirmation": "Acme", "forfeit_balance": True}
    assert (await acme.post("/organization/deletion", ending)).status == 204
    got = await operator.post(_path(acme, "/credits"), CREDIT)
    assert (got.status, got.code) == (409, "organization_deleted")
    wanted = {
        "from_organization_id": acme.headers["X-Organization-Id"],
        "to_organization_id": bob.headers["X-Organization-Id"],
        **CREDIT,
    }
    assert (await operator.post("/operator/transfers", wanted)).status == 201


async def test_a_suspension_reaches_gateways_within_a_second_and_so_does_its_end(
    office: Office, operator: Browser, acme: Browser
) -> None:
    secret = (await acme.post("/api-keys", {"name": "k"})).body["secret"]
    async with authenticator_of(office) as authenticator:
        for is_suspended in (True, False):
            got = await operator.patch(_path(acme), {"is_suspended": is_suspended})
            assert (got.status, got.body["is_suspended"]) == (200, is_suspended)

            async def is_known(expected: bool = is_suspended) -> bool:  # noqa: FBT001 - bound now
                return (await authenticator.principal(secret)).is_suspended is expected

            assert await until(is_known) < 1.0


async def test_limits_are_set_together_and_stand_in_the_audit_log(
    operator: Browser, acme: Browser
) -> None:
    before = await operator.get(_path(acme))
    wanted = {"limits": {"projects_max": 40, "members_max": 25}}
    got = await operator.patch(_path(acme), wanted, headers={"If-Match": before.headers["ETag"]})
    assert (got.body["limits"], got.body["is_suspended"]) == (wanted["limits"], False)
    late = await operator.patch(_path(acme), wanted, headers={"If-Match": before.headers["ETag"]})
    assert (late.status, late.code) == (412, "changed_meanwhile")
    line = (await acme.get("/audit-log")).body["data"][0]
    assert (line["action"], line["actor"]) == ("organization.operate", "root@example.com")
    assert line["after"] == {"is_suspended": False, "plan": "free", **wanted}


async def test_every_organization_and_account_is_listed_in_pages(
    operator: Browser, acme: Browser
) -> None:
    await operator.post(_path(acme, "/credits"), CREDIT)
    first = (await operator.get("/operator/organizations?limit=2")).body
    cursor = first["next_cursor"]
    second = (await operator.get(f"/operator/organizations?limit=2&cursor={cursor}")).body
    everything = first["data"] + second["data"]
    assert sorted((one["name"], one["kind"], one["balance_nanos"]) for one in everything) == [
        ("Acme", "organization", 1_000),
        ("Ada", "personal", 0),
        ("Root", "personal", 0),
    ]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"amount_nanos": 5},
        {"amount_nanos": 5, "reason": ""},
        {"amount_nanos": 0, "reason": "none"},
        {"amount_nanos": -5, "reason": "a grant below zero"},
        {"amount_nanos": 0, "reason": "none", "kind": "adjustment"},
        {"amount_nanos": 5, "reason": "r", "kind": "payment"},
        {"amount_nanos": 2**53, "reason": "too much"},
        {"amount_nanos": 5, "reason": "r", "organization": "x"},
    ],
)
async def test_a_flawed_credit_is_refused(
    operator: Browser, acme: Browser, body: dict[str, object]
) -> None:
    assert (await operator.post(_path(acme, "/credits"), body)).status == 400
    assert (await acme.get("/transactions")).body["data"] == []


@pytest.mark.parametrize("rest", ["", "/credits", "/refunds"])
async def test_what_is_no_organization_is_not_found(operator: Browser, rest: str) -> None:
    for name in (uuid4(), "acme"):
        path = f"/operator/organizations/{name}{rest}"
        got = await (operator.post(path, CREDIT) if rest else operator.patch(path, {}))
        assert got.status == 404


async def test_the_audit_log_says_from_where_money_was_moved(
    operator: Browser, acme: Browser
) -> None:
    await operator.post(_path(acme, "/credits"), CREDIT)
    await operator.post(_path(acme, "/refunds"), {"amount_nanos": 5, "reason": "back"})
    away = {**CREDIT, "kind": "adjustment", "amount_nanos": -5}
    await operator.post(_path(acme, "/credits"), away)
    lines = (await acme.get("/audit-log")).body["data"]
    found = {line["action"]: line["address"] for line in lines}
    assert found == dict.fromkeys(
        ("organization.create", "credit.grant", "credit.refund", "credit.adjustment"), "127.0.0.1"
    )
