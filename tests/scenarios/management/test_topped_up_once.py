"""A wallet that calls on several gateways take below its threshold is topped up once.

Not again while nothing has come of it, not beyond the month's limit, and never again by a card that
was refused for good; people hear of each once.
"""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.management.office import Browser
from tests.gateway.management.till import method_of, tops_up
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
SANDBOX = {"payments": {"processor": "sandbox"}}
USD = 10**9
AT_ONCE = 200
OF_EACH = AT_ONCE // 2  # connections to each of the two gateways
TOKENS = 600  # that an answer has
CALL = priced(10, TOKENS)
OWNER = "ada@example.com"
_TOLD_S_MAX = 30.0
_QUIET_S = 3.0  # in which a second charge or mail would come


async def alerts(team: Team, kind: str) -> list[dict[str, Any]]:
    """What was told of it."""
    said = expect(await team.owner.get(f"/alerts?kind={kind}"), 200).body
    found: list[dict[str, Any]] = said["data"]
    return found


async def until(team: Team, kind: str) -> None:
    """Wait until something is told of it, and then for as long as a second one could take."""
    async with asyncio.timeout(_TOLD_S_MAX):
        while not await alerts(team, kind):
            await asyncio.sleep(0.1)
    await asyncio.sleep(_QUIET_S)


async def payments(team: Team) -> list[int]:
    """What was ever paid for credits, nano-USD each."""
    lines = expect(await team.owner.get("/transactions?limit=200"), 200).body["data"]
    return [line["amount_nanos"] for line in lines if line["kind"] == "payment"]


def mails(office: Installation, team: Team) -> list[str]:
    """The subjects about this organization's top-ups."""
    subjects = [said["Subject"] for said in office.mails_to(OWNER)]
    return [one.partition(":")[0] for one in subjects if "op-up" in one and one.endswith(team.name)]


async def burst(lines: list[Caller], key: Key, model: str) -> None:
    """So many calls at once."""
    ask = asks(CHAT, model, max_tokens=TOKENS)
    answers = await asyncio.gather(*(line.post(CHAT, key.secret, ask) for line in lines))
    found = Counter(answer.status for answer in answers)
    assert found == {200: AT_ONCE}, found


async def taken_down(operator: Browser, team: Team, nanos: int) -> None:
    """The operator corrects the balance."""
    path = f"/operator/organizations/{team.id}/credits"
    asked = {"amount_nanos": -nanos, "reason": "a test", "kind": "adjustment"}
    expect(await operator.post(path, asked), 201)


async def test_calls_that_cross_together_are_one_charge_within_the_months_limit(
    folder: Path, vendor_apart: Vendor
) -> None:
    async with Installation.started(folder, vendor_apart, workers=(1, 1), changes=SANDBOX) as at:
        root, ada = await asyncio.gather(at.operator("root@example.com"), at.signed_up(OWNER))
        good, bad = [await at.founded(ada, name, "pooled") for name in ("Good", "Bad")]
        model = await vendor_apart.script("long", input_tokens=10, output_tokens=TOKENS)
        keys = {}
        for team, does in ((good, "approve"), (bad, "stolen_card")):
            await credited(root, team.id, 11 * USD)
            method = await method_of(team.owner, does, owner="organization")
            terms = {"threshold_nanos": 10 * USD, "amount_nanos": 50 * USD}
            expect(await tops_up(team.owner, method, monthly_max_nanos=50 * USD, **terms), 200)
            keys[team] = await new_key(team.owner)
        async with lines_in(at, OF_EACH) as gateways:
            lines = [line for gateway in gateways for line in gateway]
            await burst(lines, keys[good], model)
            await burst(lines, keys[bad], model)
            await asyncio.gather(until(good, "top_up.paid"), until(bad, "top_up.declined"))
            assert (await payments(good), await payments(bad)) == ([50 * USD], [])
            # Below the threshold still, and used: no loop.
            await burst(lines, keys[bad], model)
            spent = 2 * AT_ONCE * CALL
            # The month's limit is reached: below the threshold again, nothing is charged.
            await taken_down(root, good, 50 * USD)
            await burst(lines, keys[good], model)
            await until(good, "top_up.capped")
        assert (await payments(good), await payments(bad)) == ([50 * USD], [])
        terms = expect(await bad.owner.get("/auto-top-up"), 200).body
        assert (terms["is_enabled"], terms["trouble"]) == (False, "stolen_card")
        for team, told in (
            (good, ["top_up.paid", "top_up.capped"]),
            (bad, ["top_up.declined"]),
        ):
            assert [len(await alerts(team, kind)) for kind in told] == [1] * len(told)
            await assert_books(at.machines[0], keys[team], records=2 * AT_ONCE, charge=spent)
        assert sorted(mails(at, good)) == ["Monthly limit of top-ups reached", "Top-up"]
        assert mails(at, bad) == ["Top-up declined"]
        assert "No difference." in await asyncio.to_thread(at.machines[1].run, "verify")
        print(
            f"\nH2: {AT_ONCE} calls at once on {len(gateways)} gateways take a wallet below its"
            " threshold under 2 control processes: one charge, one credit, one mail; at the"
            f" month's limit {AT_ONCE} more: no charge, one mail; a card refused for good: one"
            f" attempt, switched off, one mail, and no other for {AT_ONCE} calls more"
        )
