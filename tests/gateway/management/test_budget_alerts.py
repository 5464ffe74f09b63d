"""Shares of a budget are told once in a window, of keys, projects and members."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from gateway.management.budget_alerts import BudgetAlerts, owners_of
from gateway.management.watch import Sight
from gateway.principal import Period, window_starts
from ledger.admission import Cap
from ledger.money import Nanos
from tests.gateway.management.office import Office
from tests.gateway.management.spending import USD, Till, opened_till
from tests.gateway.management.team import Team, founded

ALL = Sight(None, None)
PERCENTS = {"budget_percents": [80, 85, 95]}


class Budgeted:
    """An organization with a key that has a monthly budget of 10 $."""

    def __init__(self, team: Team, till: Till, key_id: str) -> None:
        self.team, self.till, self.key_id = team, till, key_id

    def cap(self, owner: str, owner_id: str, limit: int = 10 * USD) -> Cap:
        now_ms = int(self.team.office.clock.now().timestamp() * 1000)
        starts = window_starts(Period.MONTHLY, "UTC", now_ms)
        return Cap(f"{owner}:{owner_id}", Nanos(limit), starts)

    async def spends(self, amount: int, *caps: Cap, calls: int = 1) -> None:
        await self.till.calls(calls, amount // calls, caps or (self.cap("key", self.key_id),))
        await self.till.booked()

    async def told(self) -> list[int]:
        """The shares, the first first."""
        rows = (await self.team.owner.get("/alerts?kind=budget.percent")).body["data"]
        return sorted(row["facts"]["percent"] for row in rows)

    async def mails(self) -> list[str]:
        found = await self.team.office.mails_to("ada@example.com")
        return [mail["subject"] for mail in found if "budget" in mail["subject"]]


async def looks(office: Office, sight: Sight = ALL) -> None:
    await BudgetAlerts(office.desk).look(sight)


@pytest.fixture
async def budgeted(office: Office, postgres_url: str) -> Budgeted:
    team = await founded(office)
    office.clock.ahead_s += office.clock.ahead.total_seconds()
    office.clock.ahead = timedelta()  # windows are chosen by Redis, whose clock is right
    till = await opened_till(office, postgres_url, team.id)
    await till.gives(1_000 * USD)
    made = await team.owner.post(
        "/api-keys", {"name": "CI", "budget_nanos": 10 * USD, "budget_period": "monthly"}
    )
    assert made.status == 201, made
    assert (await team.owner.patch("/alerts/settings", PERCENTS)).status == 200
    return Budgeted(team, till, made.body["key"]["id"])


async def test_each_share_is_told_once(budgeted: Budgeted) -> None:
    office = budgeted.team.office
    await budgeted.spends(7 * USD)
    await looks(office)
    assert await budgeted.told() == []
    await budgeted.spends(USD)
    await looks(office)
    await looks(office)
    assert await budgeted.told() == [80]
    await budgeted.spends(3 * USD // 2)
    await looks(office)
    assert await budgeted.told() == [80, 85, 95]
    assert await budgeted.mails() == [
        "80 % of a budget of Acme is spent",
        "95 % of a budget of Acme is spent",
    ], "of several at once the highest is mailed"
    mail = (await office.mails_to("ada@example.com"))[-1]
    assert (
        "The API key CI of Acme has spent 9,500 GP of its budget of 10,000 GP (monthly)"
        in (mail["text"])
    )


async def test_what_many_processes_find_under_load_is_told_once(budgeted: Budgeted) -> None:
    office = budgeted.team.office
    cap = budgeted.cap("key", budgeted.key_id)
    async with budgeted.till.watched(BudgetAlerts(office.desk), processes=2):
        await budgeted.till.calls(200, 19 * USD // 400, [cap])
    await looks(office)
    assert await budgeted.told() == [80, 85, 95]
    async with asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(looks(office), name=f"look {number}")
    assert await budgeted.told() == [80, 85, 95]


async def test_another_limit_is_another_budget(budgeted: Budgeted) -> None:
    office = budgeted.team.office
    await budgeted.spends(8 * USD)
    await looks(office)
    change = {"budget_nanos": 20 * USD}
    assert (await budgeted.team.owner.patch(f"/api-keys/{budgeted.key_id}", change)).status == 200
    await looks(office)
    assert await budgeted.told() == [80]
    await budgeted.spends(8 * USD, budgeted.cap("key", budgeted.key_id, 20 * USD))
    await looks(office)
    assert await budgeted.told() == [80, 80]


async def test_projects_and_members_have_budgets_that_are_told_of_too(budgeted: Budgeted) -> None:
    team, office = budgeted.team, budgeted.team.office
    wanted = {"budget_nanos": 10 * USD, "budget_period": "monthly"}
    member_id = await team.member_id("ada@example.com")
    project_id = budgeted.till.organization.project_id
    for path in (f"/members/{member_id}/budget", f"/projects/{project_id}/budget"):
        set_to: Any = await team.owner.put(path, wanted)
        assert set_to.status == 200, set_to
    caps = [budgeted.cap("member", member_id), budgeted.cap("project", project_id)]
    await budgeted.spends(17 * USD // 2, *caps)
    await looks(office)
    rows = (await team.owner.get("/alerts?kind=budget.percent")).body["data"]
    assert sorted((row["facts"]["owner"], row["facts"]["percent"]) for row in rows) == [
        *(("member", 80), ("member", 85), ("project", 80), ("project", 85)),
    ]
    names = {row["facts"]["owner"]: row["facts"]["name"] for row in rows}
    assert names == {"member": "ada@example.com", "project": "Default"}


async def test_only_windows_that_moved_are_looked_at(budgeted: Budgeted) -> None:
    office = budgeted.team.office
    await budgeted.spends(8 * USD)
    await looks(office, Sight([], []))
    await looks(office, Sight([], [f"key:{budgeted.team.id}@0", "nonsense", "key:x@0"]))
    assert await budgeted.told() == []
    await looks(office, Sight([], [f"key:{budgeted.key_id}@0"]))
    assert await budgeted.told() == [80]


async def test_a_window_of_long_ago_is_not_told_of(budgeted: Budgeted) -> None:
    office = budgeted.team.office
    await budgeted.spends(8 * USD)
    office.clock.ahead += timedelta(days=70)
    await looks(office)
    assert await office.pool.fetchval("SELECT count(*) FROM alert") == 0


def test_a_window_names_whose_budget_it_is() -> None:
    name = "0190a5c8-0000-7000-8000-000000000001"
    windows = [f"key:{name}@0", f"key:{name}@5", "other:x@0", "key-1@0", "@", ""]
    assert [str(one) for one in owners_of(windows)] == [name]
