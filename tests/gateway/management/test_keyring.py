"""API keys over HTTP: made, listed and changed, each change live within a second."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from tests.gateway.management.office import Browser, Office
from tests.gateway.management.rooms import accepted, authenticator_of, joined, made_organization
from tests.gateway.tenancy import until


@pytest.fixture
async def acme(office: Office) -> Browser:
    return await made_organization(await office.signed_up("ada@example.com"), "Acme")


async def test_a_new_key_works_at_once_and_counts_for_who_made_it(
    office: Office, acme: Browser
) -> None:
    bob = await joined(office, acme, "bob@example.com")
    wanted = {
        "name": "game server",
        "description": "of the big game",
        "models": ["small", "large"],
        "budget_nanos": 5_000_000_000,
        "budget_period": "monthly",
        "rpm": 60,
        "tpm": 90_000,
        "concurrency": 4,
        "expires_at": (office.clock.now() + timedelta(days=9)).isoformat(),
    }
    got = await bob.post("/api-keys", wanted)
    assert (got.status, got.headers["ETag"], got.headers["Cache-Control"]) == (
        201,
        '"1"',
        "no-store",
    )
    key = got.body["key"]
    assert {name: key[name] for name in wanted if name != "expires_at"} == {
        name: value for name, value in wanted.items() if name != "expires_at"
    }
    assert (key["state"], key["maker"], key["project"]) == ("active", "bob@example.com", "Default")
    assert got.body["secret"].startswith("tg_live_")
    async with authenticator_of(office) as authenticator:
        who = await authenticator.principal(got.body["secret"])
    assert (who.key_id, who.member_id) == (key["id"], key["member_id"])
    assert (who.rpm, who.tpm, who.concurrency) == (60, 90_000, 4)
    assert who.models == frozenset({"small", "large"})
    assert [(budget.limit, budget.period) for budget in who.budgets] == [(5_000_000_000, "monthly")]


async def test_the_secret_is_shown_this_once(office: Office, acme: Browser) -> None:
    made = (await acme.post("/api-keys", {"name": "k"})).body
    shown = await acme.get(f"/api-keys/{made['key']['id']}")
    assert shown.body == made["key"]
    listed = await acme.get("/api-keys")
    assert made["secret"] not in str(listed.body)
    assert made["key"]["last4"] == made["secret"][47:51]
    for table in ("api_key", "audit_log", "answered"):
        rows = await office.pool.fetch(f"SELECT t::text FROM {table} AS t")  # noqa: S608 - constant
        assert made["secret"][8:51] not in str(rows)


async def test_everybody_sees_every_key_in_pages_the_oldest_first(
    office: Office, acme: Browser
) -> None:
    bob = await joined(office, acme, "bob@example.com")
    for number in range(5):
        await (acme, bob)[number % 2].post("/api-keys", {"name": f"key {number}"})
    first = (await bob.get("/api-keys?limit=3")).body
    second = (await bob.get(f"/api-keys?limit=3&cursor={first['next_cursor']}")).body
    names = [key["name"] for key in first["data"] + second["data"]]
    assert names == [f"key {number}" for number in range(5)]
    assert second["next_cursor"] is None


async def test_keys_are_listed_by_project_and_revoked_ones_when_asked_for(acme: Browser) -> None:
    project = (await acme.post("/projects", {"name": "Game"})).body
    one = (await acme.post("/api-keys", {"name": "one", "project_id": project["id"]})).body["key"]
    await acme.post("/api-keys", {"name": "two"})
    path = f"/api-keys?project_id={project['id']}"
    assert [key["name"] for key in (await acme.get(path)).body["data"]] == ["one"]
    await acme.delete(f"/api-keys/{one['id']}")
    assert [key["name"] for key in (await acme.get("/api-keys")).body["data"]] == ["two"]
    everything = (await acme.get("/api-keys?revoked=true")).body["data"]
    assert [key["state"] for key in everything] == ["revoked", "active"]


async def test_a_change_is_seen_by_gateways_within_a_second(office: Office, acme: Browser) -> None:
    made = (await acme.post("/api-keys", {"name": "k", "rpm": 5, "models": ["small"]})).body
    path, secret = f"/api-keys/{made['key']['id']}", made["secret"]
    async with authenticator_of(office) as authenticator:
        assert (await authenticator.principal(secret)).rpm == 5
        change: dict[str, Any] = {"rpm": None, "budget_nanos": 7, "budget_period": "once"}
        got = await acme.patch(path, change, headers={"If-Match": '"1"'})
        assert (got.status, got.headers["ETag"]) == (200, '"2"')
        assert (got.body["rpm"], got.body["budget_nanos"], got.body["models"]) == (
            None,
            7,
            ["small"],
        )

        async def is_known() -> bool:
            who = await authenticator.principal(secret)
            return who.rpm is None and [budget.limit for budget in who.budgets] == [7]

        assert await until(is_known) < 1.0


async def test_a_change_of_an_older_version_is_refused(acme: Browser) -> None:
    made = (await acme.post("/api-keys", {"name": "k"})).body["key"]
    path = f"/api-keys/{made['id']}"
    assert (await acme.patch(path, {"rpm": 1})).status == 200
    late = await acme.patch(path, {"rpm": 2}, headers={"If-Match": '"1"'})
    assert (late.status, late.code) == (412, "changed_meanwhile")
    assert (await acme.get(path)).body["rpm"] == 1


async def test_members_change_their_own_keys_and_nobody_elses(
    office: Office, acme: Browser
) -> None:
    bob = await joined(office, acme, "bob@example.com")
    hers = (await acme.post("/api-keys", {"name": "hers"})).body["key"]
    his = (await bob.post("/api-keys", {"name": "his"})).body["key"]
    assert (await bob.patch(f"/api-keys/{his['id']}", {"name": "mine"})).status == 200
    assert (await acme.patch(f"/api-keys/{his['id']}", {"name": "his"})).status == 200
    path = f"/api-keys/{hers['id']}"
    assert (await bob.get(path)).status == 200
    for got in (
        await bob.patch(path, {"name": "mine"}),
        await bob.post(f"{path}/disable"),
        await bob.post(f"{path}/enable"),
        await bob.post(f"{path}/rotation", {"grace_s": 0}),
        await bob.delete(path),
    ):
        assert (got.status, got.code) == (403, "not_your_key")
    assert (await acme.get(path)).body == hers


async def test_who_may_not_make_keys_makes_and_changes_none(office: Office) -> None:
    studio = await made_organization(await office.signed_up("ada@example.com"), "Acme", "studio")
    bob = await joined(office, studio, "bob@example.com")
    key = (await studio.post("/api-keys", {"name": "shared"})).body["key"]
    assert [one["id"] for one in (await bob.get("/api-keys")).body["data"]] == [key["id"]]
    for got in (
        await bob.post("/api-keys", {"name": "mine"}),
        await bob.patch(f"/api-keys/{key['id']}", {"name": "mine"}),
        await bob.delete(f"/api-keys/{key['id']}"),
    ):
        assert (got.status, got.code) == (403, "not_permitted")


async def test_another_organizations_keys_and_projects_are_not_there(
    office: Office, acme: Browser
) -> None:
    key = (await acme.post("/api-keys", {"name": "k"})).body["key"]
    bob = await made_organization(await office.signed_up("bob@example.com"), "Bob's")
    path = f"/api-keys/{key['id']}"
    for got in (
        await bob.get(path),
        await bob.patch(path, {"name": "mine"}),
        await bob.post(f"{path}/disable"),
        await bob.post(f"{path}/enable"),
        await bob.post(f"{path}/rotation", {"grace_s": 0}),
        await bob.post(f"{path}/secret"),
        await bob.delete(path),
        await bob.get(f"/api-keys/{uuid4()}"),
        await bob.post("/api-keys", {"name": "k", "project_id": key["project_id"]}),
    ):
        # Whether secrets are shown at all is asked first.
        assert got.status == (403 if got.code == "secrets_shown_once" else 404)
    assert (await acme.get(path)).body == key
    assert (await bob.get("/api-keys")).body["data"] == []


async def test_a_personal_account_has_keys_of_its_own(office: Office, acme: Browser) -> None:
    person = office.stranger()
    await person.signs_in("ada@example.com")
    made = (await person.post("/api-keys", {"name": "mine"})).body
    assert made["key"]["maker"] == "ada@example.com"
    assert (await acme.get("/api-keys")).body["data"] == []
    async with authenticator_of(office) as authenticator:
        assert await accepted(authenticator, made["secret"]) < 1.0


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": ""},
        {"name": "k", "secret": "chosen"},
        {"name": "k", "rpm": 0},
        {"name": "k", "rpm": 2**31},
        {"name": "k", "tpm": 1.5},
        {"name": "k", "models": []},
        {"name": "k", "models": ["m"] * 201},
        {"name": "k", "budget_nanos": 5},
        {"name": "k", "budget_period": "daily"},
        {"name": "k", "budget_nanos": -1, "budget_period": "daily"},
        {"name": "k", "budget_nanos": 2**53, "budget_period": "daily"},
        {"name": "k", "budget_nanos": 5, "budget_period": "hourly"},
        {"name": "k", "expires_at": "2020-01-01T00:00:00Z"},
        {"name": "k", "expires_at": "9999-12-31T23:59:59-12:00"},
        {"name": "k", "expires_at": "2030-01-01T00:00:00"},
        {"name": "k", "project_id": "no-id"},
    ],
)
async def test_a_flawed_key_is_refused(acme: Browser, body: dict[str, object]) -> None:
    assert (await acme.post("/api-keys", body)).status == 400
    assert (await acme.get("/api-keys")).body["data"] == []


@pytest.mark.parametrize(
    "change",
    [
        {"name": None},
        {"project": "other"},
        {"budget_period": "daily"},
        {"budget_nanos": 5},
        {"expires_at": "2020-01-01T00:00:00Z"},
        {"revoked_at": None},
    ],
)
async def test_a_flawed_change_is_refused(acme: Browser, change: dict[str, object]) -> None:
    key = (await acme.post("/api-keys", {"name": "k"})).body["key"]
    assert (await acme.patch(f"/api-keys/{key['id']}", change)).status == 400
    assert (await acme.get(f"/api-keys/{key['id']}")).body == key


async def test_what_was_done_to_keys_is_in_the_audit_log(office: Office, acme: Browser) -> None:
    key = (await acme.post("/api-keys", {"name": "k", "rpm": 5})).body["key"]
    path = f"/api-keys/{key['id']}"
    await acme.patch(path, {"rpm": 6})
    await acme.post(f"{path}/disable")
    await acme.post(f"{path}/enable")
    await acme.post(f"{path}/rotation", {"grace_s": 0})
    await acme.delete(path)
    rows = await office.pool.fetch(
        "SELECT action, actor, address, before, after FROM audit_log WHERE target = $1"
        " ORDER BY number",
        key["id"],
    )
    assert [row["action"].removeprefix("key.") for row in rows] == [
        *("create", "update", "disable", "enable", "rotate", "revoke"),
    ]
    assert {(row["actor"], row["address"]) for row in rows} == {("ada@example.com", "127.0.0.1")}
    assert (rows[1]["before"], rows[1]["after"]) == ('{"rpm": 5}', '{"rpm": 6}')
