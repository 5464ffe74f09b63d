"""Plans over HTTP, and limits that follow them."""

import pytest

from tests.gateway.management.office import Browser, Office
from tests.gateway.management.team import Team, founded, rested


@pytest.fixture
async def team(office: Office) -> Team:
    return await founded(office)


async def root_of(team: Team) -> Browser:
    rested(team.office)
    return await team.office.operator("root@example.com")


async def given(root: Browser, team: Team, plan: str) -> None:
    got = await root.patch(f"/operator/organizations/{team.id}", {"plan": plan})
    assert (got.status, got.body["plan"]) == (200, plan)


async def test_anybody_sees_the_plans_and_what_they_cost(office: Office) -> None:
    got = await office.stranger().get("/plans")
    found = {one["name"]: one for one in got.body["data"]}
    assert list(found) == ["free", "pro", "enterprise"]
    assert (found["free"]["month_nanos"], found["free"]["log_days_max"]) == (
        0,
        {"none": 3, "retain": 3},
    )
    assert found["pro"]["year_nanos"] < 12 * found["pro"]["month_nanos"]
    assert (found["enterprise"]["is_sold"], found["enterprise"]["month_nanos"]) == (False, None)


async def test_an_organization_begins_as_free(team: Team) -> None:
    assert (await team.owner.get("/plan")).body == {
        "name": "free",
        "label": "Free",
        "organizations_max": 3,
        "projects_max": 10,
        "members_max": 10,
        "log_days_max": {"none": 3, "retain": 3},
        "subscription": None,
        "pending": None,
    }


async def test_limits_follow_a_plan_up_and_down_at_once_and_take_nothing_away(team: Team) -> None:
    root = await root_of(team)
    for number in range(9):
        got = await team.owner.post("/projects", {"name": f"p{number}"})
        assert got.status == 201, got
    full = await team.owner.post("/projects", {"name": "one more"})
    assert (full.code, full.body["projects_max"]) == ("projects_max", 10)

    await given(root, team, "pro")
    assert (await team.owner.post("/projects", {"name": "one more"})).status == 201
    await given(root, team, "free")
    assert len((await team.owner.get("/projects")).body["data"]) == 11
    full = await team.owner.post("/projects", {"name": "and one"})
    assert (full.code, full.body["projects_max"]) == ("projects_max", 10)


async def test_what_the_operator_sets_stands_above_the_plan(team: Team) -> None:
    root = await root_of(team)
    limits = {"projects_max": 400, "log_days_max": 1_000}
    wanted = {"plan": "enterprise", "limits": limits}
    got = await root.patch(f"/operator/organizations/{team.id}", wanted)
    assert (got.status, got.body["plan"], got.body["limits"]) == (200, "enterprise", limits)
    held = (await team.owner.get("/plan")).body
    assert (held["projects_max"], held["members_max"]) == (400, 1_000)
    assert held["log_days_max"] == {"none": 90, "retain": 1_000}
    (line,) = await team.audited("organization.operate")
    assert (line["before"]["plan"], line["after"]["plan"]) == ("free", "enterprise")


async def test_a_plan_that_there_is_not_cannot_be_given(team: Team) -> None:
    root = await root_of(team)
    got = await root.patch(f"/operator/organizations/{team.id}", {"plan": "gold"})
    assert (got.status, got.code) == (400, "plan_not_found")
