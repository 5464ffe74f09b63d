"""Projects over HTTP."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.gateway.management.office import Browser, Office, open_office
from tests.gateway.management.rooms import authenticator_of, joined, made_organization, refused


@pytest.fixture
async def office(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Office]:
    plan = (
        "{label: Free, organizations_max: 3, projects_max: 3, members_max: 10, log_days_none: 3,"
        " log_days_retain: 3, usd_per_month: 0, usd_per_year: 0}"
    )
    changes = f"plans: {{free: {plan}}}"
    async with open_office(postgres_url, redis_url, tmp_path, changes=changes) as opened:
        yield opened


@pytest.fixture
async def acme(office: Office) -> Browser:
    return await made_organization(await office.signed_up("ada@example.com"), "Acme")


async def test_a_new_organization_has_a_default_project(acme: Browser) -> None:
    (only,) = (await acme.get("/projects")).body["data"]
    assert (only["name"], only["is_default"], only["archived_at"]) == ("Default", True, None)


async def test_a_project_is_what_it_was_made_as_and_changed_to(acme: Browser) -> None:
    made = await acme.post("/projects", {"name": "Game", "description": "the big one"})
    assert (made.status, made.headers["ETag"]) == (201, '"1"')
    path = f"/projects/{made.body['id']}"
    assert (await acme.get(path)).body == made.body
    changed = await acme.patch(path, {"name": "Game 2"}, headers={"If-Match": '"1"'})
    assert changed.body == {**made.body, "name": "Game 2", "version": 2}


async def test_a_change_of_an_older_version_is_refused(acme: Browser) -> None:
    path = f"/projects/{(await acme.post('/projects', {'name': 'Game'})).body['id']}"
    await acme.patch(path, {"name": "Game 2"})
    late = await acme.patch(path, {"name": "Game 3"}, headers={"If-Match": '"1"'})
    assert (late.status, late.code) == (412, "changed_meanwhile")
    assert (await acme.get(path)).body["name"] == "Game 2"


async def test_projects_come_in_pages(acme: Browser) -> None:
    for name in ("One", "Two"):
        await acme.post("/projects", {"name": name})
    first = (await acme.get("/projects?limit=2")).body
    second = (await acme.get(f"/projects?limit=2&cursor={first['next_cursor']}")).body
    assert [one["name"] for one in first["data"] + second["data"]] == ["Default", "One", "Two"]
    assert second["next_cursor"] is None


async def test_a_cursor_of_ones_own_invention_is_refused(acme: Browser) -> None:
    assert (await acme.get("/projects?cursor=abcd")).code == "invalid_cursor"


async def test_of_too_many_projects_at_once_none_is_made(office: Office, acme: Browser) -> None:
    names = [f"Project {n}" for n in range(8)]
    got = await asyncio.gather(*(acme.post("/projects", {"name": name}) for name in names))
    assert sorted(one.status for one in got) == [201] * 2 + [409] * 6
    assert {one.code for one in got if one.status == 409} == {"projects_max"}
    (one, *_) = (await acme.get("/projects?limit=2")).body["data"][1:]
    assert (await acme.post(f"/projects/{one['id']}/archive")).status == 200
    assert (await acme.post("/projects", {"name": "There is room"})).status == 201
    await office.pool.execute("UPDATE organization SET limits = '{\"projects_max\": 4}'")
    assert (await acme.post("/projects", {"name": "The operator allows it"})).status == 201
    assert (await acme.post("/projects", {"name": "But no more"})).status == 409


async def test_a_name_is_an_organizations_once(office: Office, acme: Browser) -> None:
    game = (await acme.post("/projects", {"name": "Game"})).body
    taken = await acme.post("/projects", {"name": "Game"})
    assert (taken.status, taken.code, taken.body["param"]) == (409, "project_name_taken", "name")
    other = (await acme.post("/projects", {"name": "Other"})).body
    assert (await acme.patch(f"/projects/{other['id']}", {"name": "Game"})).status == 409
    bob = await made_organization(await office.signed_up("bob@example.com"), "Bob's")
    assert (await bob.post("/projects", {"name": "Game"})).status == 201
    await acme.post(f"/projects/{game['id']}/archive")
    assert (await acme.post("/projects", {"name": "Game"})).status == 409
    await acme.patch(f"/projects/{game['id']}", {"name": "Game (old)"})
    assert (await acme.post("/projects", {"name": "Game"})).status == 201


async def test_an_archived_projects_keys_are_refused_within_a_second(
    office: Office, acme: Browser
) -> None:
    project = (await acme.post("/projects", {"name": "Game"})).body
    made = (await acme.post("/api-keys", {"name": "k", "project_id": project["id"]})).body
    async with authenticator_of(office) as authenticator:
        assert (await authenticator.principal(made["secret"])).project_id == project["id"]
        archived = await acme.post(f"/projects/{project['id']}/archive")
        assert archived.body["archived_at"] is not None
        assert await refused(authenticator, made["secret"]) < 1.0
    again = await acme.post(f"/projects/{project['id']}/archive")
    assert (again.status, again.body) == (200, archived.body)
    assert (await acme.get("/projects")).body["data"][-1]["name"] == "Default"
    assert (await acme.get("/projects?archived=true")).body["data"][-1] == archived.body
    late = await acme.post("/api-keys", {"name": "late", "project_id": project["id"]})
    assert (late.status, late.code) == (404, "project_not_found")


async def test_the_default_project_stays(acme: Browser) -> None:
    (only,) = (await acme.get("/projects")).body["data"]
    got = await acme.post(f"/projects/{only['id']}/archive")
    assert (got.status, got.code) == (409, "default_project")


async def test_another_organizations_projects_are_not_there(office: Office, acme: Browser) -> None:
    path = f"/projects/{(await acme.post('/projects', {'name': 'Game'})).body['id']}"
    bob = await made_organization(await office.signed_up("bob@example.com"), "Bob's")
    for got in (
        await bob.get(path),
        await bob.patch(path, {"name": "Mine"}),
        await bob.post(f"{path}/archive"),
        await bob.get(f"/projects/{uuid4()}"),
        await bob.get("/projects/no-id"),
    ):
        assert got.status == 404
    assert (await acme.get(path)).body["name"] == "Game"


async def test_members_read_projects_and_do_not_change_them(office: Office, acme: Browser) -> None:
    bob = await joined(office, acme, "bob@example.com")
    (only,) = (await bob.get("/projects")).body["data"]
    path = f"/projects/{only['id']}"
    for got in (
        await bob.post("/projects", {"name": "Mine"}),
        await bob.patch(path, {"name": "Mine"}),
        await bob.post(f"{path}/archive"),
    ):
        assert (got.status, got.code) == (403, "not_permitted")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": ""},
        {"name": " padded "},
        {"name": "n" * 201},
        {"name": 7},
        {"name": "fine", "is_default": True},
        {"name": "fine", "description": "d" * 1001},
    ],
)
async def test_a_flawed_project_is_refused(acme: Browser, body: dict[str, object]) -> None:
    assert (await acme.post("/projects", body)).status == 400


async def test_what_was_done_to_projects_is_in_the_audit_log(office: Office, acme: Browser) -> None:
    path = f"/projects/{(await acme.post('/projects', {'name': 'Game'})).body['id']}"
    await acme.patch(path, {"name": "Game 2"})
    await acme.post(f"{path}/archive")
    rows = await office.pool.fetch(
        "SELECT action, actor, address, before, after FROM audit_log"
        " WHERE target = $1 ORDER BY number",
        path.removeprefix("/projects/"),
    )
    assert [row["action"] for row in rows] == [
        "project.create",
        "project.update",
        "project.archive",
    ]
    assert {(row["actor"], row["address"]) for row in rows} == {("ada@example.com", "127.0.0.1")}
    assert (rows[1]["before"], rows[1]["after"]) == ('{"name": "Game"}', '{"name": "Game 2"}')
