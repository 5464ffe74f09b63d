"""How long logs are kept, over HTTP."""

import pytest

from tests.gateway.management.office import Browser, Office
from tests.gateway.management.team import Team, founded


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
    assert line["before"] == {"log_level": "none", "log_days": None}
    assert line["after"] == {"log_level": "none", "log_days": 1}
    assert (line["actor"], line["address"]) == ("admin@example.com", "127.0.0.1")


async def test_a_change_of_an_older_version_is_refused(team: Team) -> None:
    tag = (await team.owner.get("/privacy")).headers["ETag"]
    first = await changed(team.owner, 1, tag)
    second = await changed(team.owner, 2, tag)
    assert (first, second) == (200, 412)


async def changed(browser: Browser, days: int, tag: str) -> int:
    got = await browser.patch("/privacy", {"log_days": days}, headers={"If-Match": tag})
    return got.status
