"""How long logs are kept, over HTTP."""

import pytest

from gateway.management import known_keys
from tests.gateway.management.office import Browser, Office
from tests.gateway.management.rooms import authenticator_of
from tests.gateway.management.team import Team, founded
from tests.gateway.tenancy import until


@pytest.fixture
async def team(office: Office) -> Team:
    return await founded(office)


async def plan(team: Team, name: str) -> None:
    await team.office.pool.execute("UPDATE organization SET plan = $1", name)


async def test_at_first_logs_are_kept_as_briefly_as_the_plan_has_it(team: Team) -> None:
    got = await team.owner.get("/privacy")
    assert got.body == {
        "log_level": "none",
        "log_days": None,
        "log_days_max": {"none": 3, "retain": 3},
        "log_days_kept": 3,
        "content_logging": False,
        "version": got.body["version"],
    }


async def test_days_are_chosen_within_the_plan_and_follow_it_down_and_up(team: Team) -> None:
    await plan(team, "pro")
    got = await team.owner.patch("/privacy", {"log_level": "retain", "log_days": 60})
    assert (got.status, got.body["log_days_kept"]) == (200, 60)
    await plan(team, "free")
    got = await team.owner.get("/privacy")
    assert (got.body["log_days"], got.body["log_days_kept"]) == (60, 3)
    await plan(team, "pro")
    assert (await team.owner.get("/privacy")).body["log_days_kept"] == 60
    got = await team.owner.patch("/privacy", {"log_days": None})
    assert got.body["log_days_kept"] == 90


async def test_more_days_than_the_plan_has_are_refused(team: Team) -> None:
    await plan(team, "pro")
    for wanted in ({"log_days": 4}, {"log_level": "retain", "log_days": 91}):
        got = await team.owner.patch("/privacy", wanted)
        assert (got.status, got.code) == (400, "log_days_max"), wanted
    assert (await team.owner.get("/privacy")).body["log_days"] is None


async def test_only_those_who_administrate_change_it_and_every_change_is_audited(
    team: Team,
) -> None:
    people = await team.cast()
    got = await people["member"].patch("/privacy", {"log_days": 1})
    assert (got.status, got.code) == (403, "not_permitted")
    assert (await people["admin"].patch("/privacy", {"log_days": 1})).status == 200
    (line,) = await team.audited("privacy.update")
    none = {"log_level": "none", "log_days": None, "content_logging": False}
    assert (line["before"], line["after"]) == (none, {**none, "log_days": 1})
    assert (line["actor"], line["address"]) == ("admin@example.com", "127.0.0.1")


async def test_a_change_of_an_older_version_is_refused(team: Team) -> None:
    tag = (await team.owner.get("/privacy")).headers["ETag"]
    first = await changed(team.owner, 1, tag)
    second = await changed(team.owner, 2, tag)
    assert (first, second) == (200, 412)


async def changed(browser: Browser, days: int, tag: str) -> int:
    got = await browser.patch("/privacy", {"log_days": days}, headers={"If-Match": tag})
    return got.status


async def keeps(team: Team, key_id: str) -> bool:
    """Whether gateways keep what is said in calls of this key."""
    pool = team.office.pool
    digest = await pool.fetchval("SELECT digest FROM api_key WHERE id = $1", key_id)
    return (await known_keys.find(pool, [digest]))[digest].principal.keeps_content


async def test_what_is_said_is_kept_where_the_organization_allows_it_and_the_project_wants_it(
    team: Team,
) -> None:
    key = (await team.owner.post("/api-keys", {"name": "k"})).body["key"]
    project = f"/projects/{key['project_id']}"
    wants, allows = {"content_logging": True}, {"log_level": "retain", "content_logging": True}
    assert not await keeps(team, key["id"])
    got = await team.owner.patch(project, wants)
    assert (got.status, got.code) == (409, "content_not_allowed")
    got = await team.owner.patch("/privacy", wants)
    assert (got.status, got.code) == (400, "content_needs_retain")
    assert (await team.owner.patch("/privacy", allows)).body["content_logging"]
    assert not await keeps(team, key["id"]), "no project wants it"
    assert (await team.owner.patch(project, wants)).body["content_logging"]
    assert await keeps(team, key["id"])

    got = await team.owner.patch("/privacy", {"log_level": "none"})
    assert not got.body["content_logging"], "at that level nothing is kept of what is said"
    assert not await keeps(team, key["id"])
    assert (await team.owner.patch("/privacy", {"log_level": "retain"})).status == 200
    assert not await keeps(team, key["id"]), "it is not allowed again by that"


async def test_gateways_learn_at_once_that_what_is_said_is_kept_no_longer(team: Team) -> None:
    made = (await team.owner.post("/api-keys", {"name": "k"})).body
    project = f"/projects/{made['key']['project_id']}"
    allows = {"log_level": "retain", "content_logging": True}
    await team.owner.patch("/privacy", allows)
    async with authenticator_of(team.office) as gateway:
        for path, change, expected in (
            (project, {"content_logging": True}, True),
            (project, {"content_logging": False}, False),
            (project, {"content_logging": True}, True),
            ("/privacy", {"content_logging": False}, False),
        ):
            assert (await team.owner.patch(path, change)).status == 200

            async def has_learned(*, expected: bool = expected) -> bool:
                return (await gateway.principal(made["secret"])).keeps_content is expected

            await until(has_learned)
