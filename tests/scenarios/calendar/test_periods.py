"""Budgets begin anew when their day, week or month does where their organization is.

Around changes of the clock, with every server and process at that time; calls are asked for over
HTTP before and after, and some are under way meanwhile.
"""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.gateway.management.office import Browser
from tests.scenarios.calendar.world import Clock, world_at
from tests.scenarios.caller import CHAT, Answer, asks, caller, post
from tests.scenarios.deployment import Deployment, Key
from tests.scenarios.invariants import assert_books, priced
from tests.scenarios.management.installation import Team, credited, expect, new_key
from tests.scenarios.scale import LONG
from tests.vendor import Vendor

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(300)]
CHARGE = priced(10, 5)  # of a call
CALLS = 12  # that a budget pays for
UNDER_WAY = 50  # calls that are open when the period ends
DAILY, WEEKLY, MONTHLY = "daily", "weekly", "monthly"
_EARLY = timedelta(minutes=10)
_JUST_BEFORE = timedelta(seconds=6)
_RESET_S_MAX = 20.0  # how long a test waits; what it took is printed


class Border(NamedTuple):
    """A moment when periods of a zone end, and when each of those had begun."""

    zone: str
    at: datetime
    began: Mapping[str, datetime]


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


BORDERS = [
    pytest.param(
        # At midnight it is one o'clock: the day begins then.
        Border("America/Sao_Paulo", utc("2018-11-04T03:00"), {DAILY: utc("2018-11-03T03:00")}),
        id="sao paulo without a midnight",
    ),
    pytest.param(
        # A quarter to six ahead; a month, a week and a day end together.
        Border(
            "Asia/Kathmandu",
            utc("2027-01-31T18:15"),
            {
                DAILY: utc("2027-01-30T18:15"),
                WEEKLY: utc("2027-01-24T18:15"),
                MONTHLY: utc("2026-12-31T18:15"),
            },
        ),
        id="kathmandu",
    ),
]
if LONG:
    BORDERS += [
        pytest.param(
            # The Sunday has 25 hours, and so its week 169.
            Border(
                "Europe/Berlin",
                utc("2026-10-25T23:00"),
                {DAILY: utc("2026-10-24T22:00"), WEEKLY: utc("2026-10-18T22:00")},
            ),
            id="berlin in autumn",
        ),
        pytest.param(
            # The Sunday has 23 hours.
            Border(
                "Europe/Berlin",
                utc("2027-03-28T22:00"),
                {DAILY: utc("2027-03-27T23:00"), WEEKLY: utc("2027-03-21T23:00")},
            ),
            id="berlin in spring",
        ),
        pytest.param(
            # Midnight comes twice: the day begins at the first.
            Border("America/Havana", utc("2026-11-02T05:00"), {DAILY: utc("2026-11-01T04:00")}),
            id="havana with a day of 25 hours",
        ),
    ]


@dataclass(slots=True, kw_only=True)
class People:
    """Two organizations of one person: where the period ends, and where it does not."""

    tollgate: Deployment
    clock: Clock
    border: Border
    there: Team
    elsewhere: Team

    async def key(self, team: Team, period: str, *, calls: int = CALLS) -> Key:
        """One whose budget pays for so many calls in each period."""
        budget = {"budget_nanos": calls * CHARGE, "budget_period": period}
        return await new_key(team.owner, **budget)

    async def called(self, key: Key) -> Answer:
        return await post(self.tollgate, key, CHAT, asks(CHAT, "gpt-4o-mini", max_tokens=5))

    async def used_up(self, key: Key) -> int:
        """Calls until the budget refuses one; how many were let in."""
        for count in range(CALLS + 1):
            answer = await self.called(key)
            if answer.status != 200:
                assert (answer.status, answer.error["code"]) == (402, "budget_exceeded"), answer
                return count
        raise AssertionError("more than its budget pays for")

    async def again(self, key: Key) -> tuple[datetime, datetime]:
        """Calls until one is let in; between which two moments that was asked for and answered."""
        async with asyncio.timeout(_RESET_S_MAX):
            while True:
                asked_at = self.clock.now()
                if (await self.called(key)).status == 200:
                    return asked_at, self.clock.now()
                await asyncio.sleep(0.02)


async def founded(founder: Browser, zone: str) -> Team:
    asked = {"name": zone, "preset": "pooled", "time_zone": zone}
    made = expect(await founder.post("/organizations", asked), 201).body
    return Team(made["id"], zone, founder.at(made["id"]))


async def shown(team: Team, key: Key) -> tuple[datetime, datetime, int]:
    """When the window under way began and when it ends, and what is booked in it."""
    said = expect(await team.owner.get(f"/api-keys/{key.id}/budget"), 200).body
    began, resets = (datetime.fromisoformat(said[name]) for name in ("began_at", "resets_at"))
    return began, resets, int(said["spent_nanos"])


async def windows(tollgate: Deployment, key: Key) -> list[int]:
    """What was spent of a key's budget in each of its windows, the oldest first."""
    connection = await tollgate.postgres()
    try:
        rows = await connection.fetch(
            "SELECT spent FROM cap_window WHERE id LIKE $1 ORDER BY id", f"%{key.id}@%"
        )
    finally:
        await connection.close()
    return [row["spent"] for row in rows]


@pytest.mark.parametrize("border", BORDERS)
async def test_a_budget_begins_anew_with_its_period_whatever_the_clock_does(
    border: Border, folder: Path, vendor_apart: Vendor
) -> None:
    async with world_at(border.at - _EARLY, folder, vendor_apart) as (office, clock):
        root = await office.operator("root@example.com")
        there, elsewhere = [await founded(root, zone) for zone in (border.zone, "UTC")]
        for team in (there, elsewhere):
            await credited(root, team.id, 10**12)
        people = People(
            tollgate=office.machines[0],
            clock=clock,
            border=border,
            there=there,
            elsewhere=elsewhere,
        )
        keys = {period: await people.key(there, period) for period in border.began}
        before = {key.id: await people.used_up(key) for key in keys.values()}
        other = await people.key(elsewhere, DAILY)
        await people.used_up(other)
        for period, key in keys.items():
            assert (await shown(there, key))[:2] == (border.began[period], border.at), period
        await crossed(people, keys, vendor_apart, before=sum(before.values()))
        assert (await people.called(other)).status == 402, "where it is no midnight"
        for period, key in keys.items():
            began, resets, _ = await shown(there, key)
            assert began == border.at
            assert resets > border.at
            assert await windows(people.tollgate, key) == [before[key.id] * CHARGE, CHARGE], period
        assert "No difference." in await asyncio.to_thread(people.tollgate.run, "verify")


async def crossed(people: People, keys: Mapping[str, Key], vendor: Vendor, *, before: int) -> None:
    """The period ends, while calls of one key are under way; `before`: calls there were."""
    border, clock = people.border, people.clock
    flight = await people.key(people.there, DAILY, calls=10 * UNDER_WAY)
    await people.called(flight)
    held = await vendor.script("held", hold_at=-1)
    clock.set(border.at - _JUST_BEFORE)
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        lines = [await stack.enter_async_context(caller(people.tollgate)) for _ in range(UNDER_WAY)]
        ask = asks(CHAT, held, max_tokens=5)
        open_calls = [group.create_task(line.post(CHAT, flight.secret, ask)) for line in lines]
        await vendor.held(UNDER_WAY)
        refused = [await people.called(key) for key in keys.values()]
        assert {answer.status for answer in refused} == {402}
        waits = [answer.error["resets_in_s"] for answer in refused]
        assert clock.now() < border.at, "this machine is too slow to see the end of a period"
        let_in = await asyncio.gather(*(people.again(key) for key in keys.values()))
        assert all(answered > border.at for _, answered in let_in), "let in too early"
        await vendor.release()
    assert {task.result().status for task in open_calls} == {200}
    calls = before + UNDER_WAY + 1 + len(keys)  # of all its keys
    await assert_books(people.tollgate, flight, records=calls, charge=calls * CHARGE)
    assert await windows(people.tollgate, flight) == [CHARGE, UNDER_WAY * CHARGE]
    late_s = [(answered - border.at).total_seconds() for _, answered in let_in]
    print(
        f"\nB5, H4: {border.zone}, {', '.join(keys)}: refused with {waits} s to go, let in"
        f" {[round(one, 2) for one in late_s]} s after {border.at:%Y-%m-%dT%H:%MZ};"
        f" {UNDER_WAY} calls under way meanwhile are the new period's, to the nano; the old ones"
        " keep their sums"
    )
