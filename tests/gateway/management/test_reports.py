"""Usage over HTTP: sums by whatever is asked, in the organization's days, for who may see them."""

from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from gateway.management.reports import Dimension
from tests.gateway.management.office import Browser, Office
from tests.gateway.management.rooms import joined, made_organization

HOUR = datetime(2026, 8, 1, 12, tzinfo=UTC)
AUGUST = "since=2026-07-25&until=2026-08-10"
_ROW = """
    INSERT INTO usage_hourly (organization_id, hour, project_id, key_id, member_id, provider, model,
                              calls, successes, estimated, input, cache_read, cache_write, output,
                              reasoning, charge, list_price)
    VALUES ($1, $2, $3, $4, $5, 'openai', $6, 2, 1, 1, 10, 20, 30, 40, 5, $7, $7)
"""


class Booked:
    """Calls of two members with two keys, in the books of an organization."""

    def __init__(self, office: Office, acme: Browser, bob: Browser) -> None:
        self.office, self.acme, self.bob = office, acme, bob
        self.keys: dict[str, Any] = {}
        self.members: dict[str, str] = {}

    async def calls(
        self, who: str, charge: int, *, hour: datetime = HOUR, model: str = "small"
    ) -> None:
        """Two calls of theirs."""
        key = self.keys[who]
        await self.office.pool.execute(
            _ROW,
            UUID(self.acme.headers["X-Organization-Id"]),
            hour,
            UUID(key["project_id"]),
            UUID(key["id"]),
            UUID(self.members[who]),
            model,
            charge,
        )


@pytest.fixture
async def booked(office: Office) -> Booked:
    acme = await made_organization(await office.signed_up("ada@example.com"), "Acme")
    bob = await joined(office, acme, "bob@example.com")
    made = Booked(office, acme, bob)
    for name, browser in (("ada", acme), ("bob", bob)):
        project = (await acme.post("/projects", {"name": f"Of {name}"})).body["id"]
        wanted = {"name": f"{name}'s", "project_id": project}
        made.keys[name] = (await browser.post("/api-keys", wanted)).body["key"]
        made.members[name] = made.keys[name]["member_id"]
    await made.calls("ada", 1_000_000_000)
    await made.calls("ada", 200_000_000, model="large", hour=HOUR + timedelta(days=1))
    await made.calls("bob", 30_000_001)
    return made


async def test_every_report_sums_up_to_the_same(booked: Booked) -> None:
    for by in Dimension:
        for then_by in (None, *Dimension):
            path = f"/usage?{AUGUST}&by={by}" + (f"&then_by={then_by}" if then_by else "")
            got = (await booked.acme.get(path)).body
            for name in ("calls", "successes", "input_tokens", "reasoning_tokens", "charge_nanos"):
                assert sum(line[name] for line in got["data"]) == got["total"][name], path
            assert got["total"]["charge_nanos"] == 1_230_000_001
            assert got["total"]["display"] == {"unit": "credits", "amounts": {"charge": "1.24"}}


async def test_a_line_says_what_it_is_told_apart_by(booked: Booked) -> None:
    got = (await booked.acme.get(f"/usage?{AUGUST}&by=day&then_by=model")).body
    assert [(one["day"], one["model"], one["charge_nanos"]) for one in got["data"]] == [
        ("2026-08-01", "small", 1_030_000_001),
        ("2026-08-02", "large", 200_000_000),
    ]
    assert {one["key_id"] for one in got["data"]} == {None}
    by_key = (await booked.acme.get(f"/usage?{AUGUST}&by=key&then_by=member")).body["data"]
    assert [(one["key"].partition(" (")[0], one["member"]) for one in by_key] == [
        ("ada's", "ada@example.com"),
        ("bob's", "bob@example.com"),
    ]
    by_project = (await booked.acme.get(f"/usage?{AUGUST}&by=project")).body["data"]
    assert [one["project"] for one in by_project] == ["Of ada", "Of bob"]


@pytest.mark.parametrize("name", ["project_id", "key_id", "member_id"])
async def test_a_report_is_of_one_project_key_or_member_if_asked_for(
    booked: Booked, name: str
) -> None:
    key = booked.keys["bob"]
    wanted = {"project_id": key["project_id"], "key_id": key["id"], "member_id": key["member_id"]}
    got = (await booked.acme.get(f"/usage?{AUGUST}&{name}={wanted[name]}")).body
    assert (got["total"]["charge_nanos"], got["total"]["calls"]) == (30_000_001, 2)
    none = (await booked.acme.get(f"/usage?{AUGUST}&{name}={uuid4()}")).body
    assert (none["total"]["calls"], none["data"]) == (0, [])


async def test_days_are_the_organizations(booked: Booked) -> None:
    await booked.acme.patch("/organization", {"time_zone": "Pacific/Kiritimati"})  # 14 hours ahead
    got = (await booked.acme.get(f"/usage?{AUGUST}")).body
    assert [one["day"] for one in got["data"]] == ["2026-08-02", "2026-08-03"]
    only = (await booked.acme.get("/usage?since=2026-08-02&until=2026-08-02")).body
    assert only["total"]["charge_nanos"] == 1_030_000_001
    assert only["time_zone"] == "Pacific/Kiritimati"


async def test_without_days_a_report_is_of_the_last_thirty(booked: Booked) -> None:
    await booked.calls("ada", 7, hour=booked.office.clock.now().replace(minute=0))
    got = (await booked.acme.get("/usage")).body
    since, until = (date.fromisoformat(got[name]) for name in ("since", "until"))
    assert until - since == timedelta(days=29)
    assert got["total"]["charge_nanos"] == 7


async def test_a_long_report_has_pages(booked: Booked) -> None:
    for day in range(5):
        await booked.calls("bob", 5, hour=HOUR + timedelta(days=day, hours=1), model="tiny")
    path = f"/usage?{AUGUST}&by=day&then_by=model&limit=3"
    first = (await booked.acme.get(path)).body
    second = (await booked.acme.get(f"{path}&cursor={first['next_cursor']}")).body
    third = (await booked.acme.get(f"{path}&cursor={second['next_cursor']}")).body
    lines = [*first["data"], *second["data"], *third["data"]]
    assert (len(lines), third["next_cursor"]) == (7, None)
    assert sum(one["charge_nanos"] for one in lines) == first["total"]["charge_nanos"]
    assert len({(one["day"], one["model"]) for one in lines}) == 7


async def test_members_see_their_own_calls_or_all_as_the_policy_says(booked: Booked) -> None:
    path = f"/usage?{AUGUST}"
    of_ada = f"{path}&member_id={booked.members['ada']}"
    assert (await booked.bob.get(path)).body["total"]["calls"] == 6
    assert (await booked.bob.get(of_ada)).body["total"]["calls"] == 4
    await booked.acme.patch("/policy", {"switches": {"activity_scope": "own"}})
    assert (await booked.bob.get(path)).body["total"]["charge_nanos"] == 30_000_001
    by_member = (await booked.bob.get(f"{path}&by=member")).body["data"]
    assert [one["member"] for one in by_member] == ["bob@example.com"]
    refused = await booked.bob.get(of_ada)
    assert (refused.status, refused.code) == (403, "own_activity_only")
    assert (await booked.acme.get(path)).body["total"]["calls"] == 6


async def test_nobody_sees_the_usage_of_another_organization(
    office: Office, booked: Booked
) -> None:
    eve = await made_organization(await office.signed_up("eve@example.com"), "Eve's")
    assert (await eve.get(f"/usage?{AUGUST}")).body["total"]["calls"] == 0
    key = f"/usage?{AUGUST}&key_id={booked.keys['ada']['id']}"
    assert (await eve.get(key)).body["total"]["calls"] == 0
    there = eve.at(booked.acme.headers["X-Organization-Id"])
    assert (await there.get("/usage")).code == "organization_not_found"


@pytest.mark.parametrize(
    "query",
    [
        "since=2026-08-02&until=2026-08-01",
        "since=2024-01-01&until=2026-08-01",
        "until=0001-01-01",
        "until=9999-12-31",
        "since=yesterday",
        "by=colour",
        "key_id=7",
        "cursor=7",
    ],
)
async def test_a_report_that_cannot_be_made_says_why(booked: Booked, query: str) -> None:
    got = await booked.acme.get(f"/usage?{query}")
    assert (got.status, got.body["code"][:8]) == (400, "invalid_")
