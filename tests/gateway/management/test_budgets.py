"""Budgets of members, projects and keys over HTTP, and what gateways obey of them."""

import asyncio
from datetime import datetime
from typing import Any

import pytest

from gateway.management.known_keys import CapOwner, cap_id
from gateway.principal import Principal
from ledger.admission import Cap, Held, Hold, Refused
from ledger.functions import Partition
from ledger.money import Nanos
from tests.gateway.management.office import Browser, Office
from tests.gateway.management.rooms import authenticator_of, joined, made_organization
from tests.gateway.tenancy import until

TEN = {"budget_nanos": 10, "budget_period": "daily"}
NONE = {"budget_nanos": None, "budget_period": None}


@pytest.fixture
async def acme(office: Office) -> Browser:
    """It shows secrets to its members, and has money."""
    there = await made_organization(await office.signed_up("ada@example.com"), "Acme", "studio")
    root = await office.operator("root@example.com")
    path = f"/operator/organizations/{there.headers['X-Organization-Id']}/credits"
    got = await root.post(path, {"amount_nanos": 1_000_000, "reason": "welcome"})
    assert got.body["is_usable"]
    return there


async def member_id(browser: Browser) -> str:
    (own,) = [one for one in (await browser.get("/members")).body["data"] if one["is_me"]]
    return str(own["id"])


async def held(office: Office, who: Principal, amount: int) -> Held | Refused:
    """A call of theirs that may cost so much."""
    now_ms = int(office.desk.now().timestamp() * 1000)
    call_id = office.desk.random_bytes(16)
    hold = Hold(call_id, who.partition, who.wallet, Nanos(amount), who.caps(now_ms))
    return await Partition(office.redis, who.partition).hold(1, hold)


async def test_a_members_budget_is_over_all_their_calls_with_whichever_key(
    office: Office, acme: Browser
) -> None:
    bob = await joined(office, acme, "bob@example.com", "admin")
    own = (await bob.post("/api-keys", {"name": "his"})).body
    shared = (await acme.post("/api-keys", {"name": "shared"})).body
    of_shared = (await bob.post(f"/api-keys/{shared['key']['id']}/secret")).body["secret"]
    path = f"/members/{await member_id(bob)}/budget"

    async with authenticator_of(office) as authenticator:
        for secret in (own["secret"], of_shared, shared["secret"]):
            assert (await authenticator.principal(secret)).budgets == ()
        set_ = await acme.put(path, TEN)
        assert (set_.status, set_.body["budget_nanos"], set_.body["spent_nanos"]) == (200, 10, 0)

        async def is_known() -> bool:
            found = [await authenticator.principal(secret) for secret in (own["secret"], of_shared)]
            return all(len(who.budgets) == 1 for who in found)

        assert await until(is_known) < 1.0
        his, as_shared = [
            await authenticator.principal(secret) for secret in (own["secret"], of_shared)
        ]
        hers = await authenticator.principal(shared["secret"])

    assert isinstance(await held(office, his, 6), Held)
    refused = await held(office, as_shared, 5)
    assert isinstance(refused, Refused)
    assert (refused.code, refused.scope) == ("cap", f"member:{his.member_id}")
    assert isinstance(await held(office, as_shared, 4), Held)
    assert isinstance(await held(office, hers, 5_000), Held), "others are not counted to it"


async def test_a_changed_limit_holds_in_the_window_under_way(office: Office, acme: Browser) -> None:
    made = (await acme.post("/api-keys", {"name": "k", **TEN})).body
    path = f"/api-keys/{made['key']['id']}"
    async with authenticator_of(office) as authenticator:
        who = await authenticator.principal(made["secret"])
        assert isinstance(await held(office, who, 10), Held)
        assert isinstance(await held(office, who, 1), Refused)

        await acme.patch(path, {"budget_nanos": 15})
        # Even for a gateway that has the old limit still.
        assert isinstance(await held(office, who, 5), Held)
        assert isinstance(await held(office, who, 1), Refused)
        await acme.patch(path, {"budget_nanos": 3})
        assert isinstance(await held(office, who, 1), Refused)


@pytest.mark.parametrize("period", ["once", "daily", "weekly", "monthly"])
async def test_a_budget_says_what_is_spent_and_when_it_begins_anew(
    office: Office, acme: Browser, period: str
) -> None:
    await acme.patch("/organization", {"time_zone": "Asia/Kathmandu"})
    path = f"/members/{await member_id(acme)}/budget"
    before = (await acme.get(path)).body
    assert (before["budget_nanos"], before["resets_at"]) == (None, None)

    set_ = await acme.put(path, {"budget_nanos": 5_000_000, "budget_period": period})
    await office.pool.execute("UPDATE cap_window SET spent = 1500001")
    seen = (await acme.get(path)).body

    assert set_.body["left_nanos"] == 5_000_000
    assert (seen["spent_nanos"], seen["left_nanos"]) == (1_500_001, 3_499_999)
    assert seen["display"] == {
        "unit": "GP",
        "amounts": {"budget": "5", "left": "3", "spent": "2"},
    }
    if period == "once":
        assert (seen["began_at"], seen["resets_at"]) == (None, None)
        return
    began, resets = (datetime.fromisoformat(seen[name]) for name in ("began_at", "resets_at"))
    assert began <= office.clock.now() < resets
    assert (began.hour, began.minute) == (18, 15), "midnight in Kathmandu"


async def test_of_many_calls_at_once_as_many_are_admitted_as_the_budget_pays(
    office: Office, acme: Browser
) -> None:
    keys = [(await acme.post("/api-keys", {"name": f"k{n}"})).body["secret"] for n in range(3)]
    await acme.put(
        f"/members/{await member_id(acme)}/budget", {"budget_nanos": 100, "budget_period": "weekly"}
    )
    async with authenticator_of(office) as authenticator:
        callers = [await authenticator.principal(key) for key in keys]

    said = await asyncio.gather(*(held(office, callers[n % 3], 7) for n in range(60)))

    assert len([one for one in said if isinstance(one, Held)]) == 100 // 7


async def test_budgets_keys_and_projects_change_at_once_without_a_deadlock(
    office: Office, acme: Browser
) -> None:
    bob = await joined(office, acme, "bob@example.com", "admin")
    project = (await acme.post("/projects", {"name": "Game"})).body["id"]
    keys = [
        (await browser.post("/api-keys", {"name": "k", "project_id": project})).body["key"]["id"]
        for browser in (acme, bob, bob)
    ]
    his = f"/members/{await member_id(bob)}"
    said = await asyncio.gather(
        *(acme.put(f"{his}/budget", {**TEN, "budget_nanos": n}) for n in range(4)),
        *(acme.put(f"/projects/{project}/budget", {**TEN, "budget_nanos": n}) for n in range(4)),
        *(acme.patch(f"/api-keys/{key}", TEN) for key in keys),
        *(bob.post(f"/api-keys/{key}/rotation", {"grace_s": 0}) for key in keys),
        acme.patch(his, {"grants": ["key.create"]}),
        acme.post(f"/projects/{project}/archive"),
        acme.delete(his),
    )
    assert {got.status for got in said} <= {200, 201, 204, 404, 409, 412}


async def test_a_projects_budget_is_over_all_its_keys(office: Office, acme: Browser) -> None:
    project = (await acme.post("/projects", {"name": "Game"})).body
    keys = [
        (await acme.post("/api-keys", {"name": name, "project_id": project["id"]})).body["secret"]
        for name in ("one", "two")
    ]
    path = f"/projects/{project['id']}/budget"
    assert (await acme.put(path, TEN, headers={"If-Match": '"7"'})).status == 412
    assert (await acme.put(path, TEN, headers={"If-Match": '"1"'})).body["version"] == 2
    async with authenticator_of(office) as authenticator:
        one, two = [await authenticator.principal(key) for key in keys]
        assert isinstance(await held(office, one, 7), Held)
        assert isinstance(await held(office, two, 4), Refused)
        ended = await acme.put(path, NONE)
        assert (ended.body["budget_nanos"], ended.body["spent_nanos"]) == (None, None)

        async def is_free() -> bool:
            return (await authenticator.principal(keys[1])).budgets == ()

        assert await until(is_free) < 1.0


async def test_a_call_counts_to_every_budget_or_to_none(office: Office, acme: Browser) -> None:
    wanted = {"name": "k", "budget_nanos": 100, "budget_period": "once"}
    made = (await acme.post("/api-keys", wanted)).body
    await acme.put(f"/members/{await member_id(acme)}/budget", TEN)
    async with authenticator_of(office) as authenticator:
        who = await authenticator.principal(made["secret"])
    assert {budget.id.partition(":")[0] for budget in who.budgets} == {"key", "member"}

    assert isinstance(await held(office, who, 11), Refused)

    partition = Partition(office.redis, who.partition)
    now_ms = int(office.desk.now().timestamp() * 1000)
    windows = [f"{cap.id}@{_now(cap, now_ms)}" for cap in who.caps(now_ms)]
    image = await partition.snap(1, [*windows, who.wallet])
    assert {one.held for one in image.wallets} == {0}


def _now(cap: Cap, now_ms: int) -> int:
    return max(start for start in cap.starts_ms if start <= now_ms)


async def test_members_see_their_own_budget_and_set_none(office: Office, acme: Browser) -> None:
    bob = await joined(office, acme, "bob@example.com")
    own, hers = [f"/members/{await member_id(one)}/budget" for one in (bob, acme)]
    await acme.put(own, TEN)
    assert (await bob.get(own)).body["budget_nanos"] == 10
    for got in (await bob.get(hers), await bob.put(own, NONE), await bob.put(hers, TEN)):
        assert (got.status, got.code) == (403, "not_permitted")
    assert (await acme.get(own)).body["budget_nanos"] == 10


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"budget_nanos": 5},
        {"budget_nanos": 5, "budget_period": None},
        {"budget_nanos": None, "budget_period": "daily"},
        {"budget_nanos": -1, "budget_period": "daily"},
        {"budget_nanos": 2**53, "budget_period": "daily"},
        {"budget_nanos": 5, "budget_period": "hourly"},
    ],
)
async def test_a_flawed_budget_is_refused(acme: Browser, body: dict[str, Any]) -> None:
    path = f"/members/{await member_id(acme)}/budget"
    assert (await acme.put(path, body)).status == 400
    assert (await acme.get(path)).body["budget_nanos"] is None


async def test_budgets_of_others_are_not_there(office: Office, acme: Browser) -> None:
    key = (await acme.post("/api-keys", {"name": "k"})).body["key"]
    bob = await made_organization(await office.signed_up("bob@example.com"), "Bob's")
    for path in (
        f"/members/{await member_id(acme)}/budget",
        f"/projects/{key['project_id']}/budget",
        f"/api-keys/{key['id']}/budget",
    ):
        assert (await bob.get(path)).status == 404
        if not path.startswith("/api-keys"):
            assert (await bob.put(path, TEN)).status == 404


async def test_a_budget_is_in_the_audit_log(office: Office, acme: Browser) -> None:
    await acme.put(f"/members/{await member_id(acme)}/budget", TEN)
    row = await office.pool.fetchrow(
        "SELECT actor, target, after FROM audit_log WHERE action = 'member.budget'"
    )
    assert row is not None
    assert row["actor"] == "ada@example.com"
    assert row["target"] == await member_id(acme)
    assert row["after"] == '{"nanos": 10, "period": "daily"}'


def test_a_cap_is_named_by_its_owner() -> None:
    assert cap_id(CapOwner.MEMBER, "m") == "member:m"
