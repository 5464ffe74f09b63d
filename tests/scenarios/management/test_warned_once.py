"""A budget is used up by calls on several gateways at once; people hear of each share of it once.

Of shares that are found spent at one look, the highest is mailed; programs are told of them all.
"""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from tests.scenarios.caller import CHAT, Caller, asks
from tests.scenarios.deployment import Key
from tests.scenarios.invariants import assert_books, priced
from tests.scenarios.management.installation import (
    Installation,
    Team,
    credited,
    expect,
    lines_in,
    new_key,
)
from tests.vendor import Vendor

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(300)]
CALL = priced(10, 5)  # what the vendor charges for one
CALLS = 300  # that the budget pays for
OF_EACH = 4  # callers at each gateway
SHARES = [80, 85, 95]
OWNER = "ada@example.com"
_WARNED_S_MAX = 20.0
_QUIET_S = 4.0  # in which a second mail would come


async def spend(line: Caller, key: Key, answers: Counter[int]) -> None:
    """Call until the budget is used up."""
    while True:
        answer = await line.post(CHAT, key.secret, asks(CHAT, "gpt-4o-mini", max_tokens=5))
        answers[answer.status] += 1
        if answer.status != 200:
            assert answer.status in (402, 429), answer
            if answer.status == 402:
                return
            await asyncio.sleep(0.05)  # the rest is held by others


async def test_each_share_of_a_budget_is_told_once_however_many_gateways_spend_it(
    folder: Path, vendor_apart: Vendor
) -> None:
    async with Installation.started(folder, vendor_apart, workers=(2, 1)) as office:
        root, ada = await asyncio.gather(
            office.operator("root@example.com"), office.signed_up(OWNER)
        )
        team = await office.founded(ada, "Acme", "pooled")
        await credited(root, team.id, 100 * 10**9)
        asked = {"budget_percents": SHARES}
        expect(await team.owner.patch("/alerts/settings", asked), 200)
        budget = CALLS * CALL
        key = await new_key(team.owner, budget_nanos=budget, budget_period="once")
        answers = Counter[int]()
        async with lines_in(office, OF_EACH) as gateways, asyncio.TaskGroup() as group:
            for lines in gateways:
                for line in lines:
                    group.create_task(spend(line, key, answers))
        await assert_books(office.machines[0], key, records=answers[200])
        assert CALL * answers[200] <= budget
        async with asyncio.timeout(_WARNED_S_MAX):
            while len(await told(team)) < len(SHARES) or not mailed(office):
                await asyncio.sleep(0.1)
        await asyncio.sleep(_QUIET_S)
        assert await told(team) == SHARES
        warned = mailed(office)
        assert warned == sorted(set(warned))
        assert warned[-1] == SHARES[-1]
        assert set(warned) <= set(SHARES)
        print(
            f"\nH1: a budget of {CALLS} calls used up by {len(gateways) * OF_EACH} callers on"
            f" {len(gateways)} gateways and 2 control processes ({dict(answers)}): {SHARES} % told"
            f" once each, {warned} % mailed once each"
        )


async def told(team: Team) -> list[int]:
    """The shares that programs are told of."""
    rows = expect(await team.owner.get("/alerts?kind=budget.percent"), 200).body["data"]
    return sorted(row["facts"]["percent"] for row in rows)


def mailed(office: Installation) -> list[int]:
    """The shares that mails are about, in their order."""
    subjects = [said["Subject"] for said in office.mails_to(OWNER)]
    return [int(subject.split(" ", 1)[0]) for subject in subjects if "budget" in subject]
