"""Money that people move is moved once, whoever repeats it where; and everybody can add it up."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.management.office import Browser, Got
from tests.gateway.management.till import TEN_USD, buys, method_of
from tests.scenarios.caller import CHAT, Answer, asks, caller, post, request
from tests.scenarios.deployment import Key
from tests.scenarios.fleet import status
from tests.scenarios.invariants import assert_books, priced
from tests.scenarios.management.installation import (
    Installation,
    Team,
    credited,
    expect,
    new_key,
)
from tests.vendor import Vendor

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(300)]
AT_ONCE = 50
SANDBOX = {"payments": {"processor": "sandbox"}}
DEBT_TOKENS = 1_000_000  # of input: far more than is held for a call of a few words
CREDIT = 10**9


class People:
    """An organization without credit, its founder, and the operator, at either machine."""

    def __init__(self, office: Installation, team: Team, root: Browser) -> None:
        self.office, self.team, self.root = office, team, root

    @classmethod
    async def of(cls, office: Installation) -> "People":
        """New ones."""
        root, founder = await asyncio.gather(
            office.operator("root@example.com"), office.signed_up("ada@example.com")
        )
        return cls(office, await office.founded(founder, "Acme", "pooled"), root)

    def at(self, browser: Browser, number: int) -> Browser:
        """The same person, at one machine or the other."""
        return browser.by(self.office.control(number % 2))

    async def wallet(self) -> dict[str, Any]:
        """What its owner reads; it adds up."""
        said = expect(await self.team.owner.get("/wallet"), 200).body
        lines = expect(await self.team.owner.get("/transactions?limit=200"), 200).body["data"]
        assert said["granted_nanos"] == sum(line["amount_nanos"] for line in lines)
        assert said["balance_nanos"] == said["granted_nanos"] - said["spent_nanos"]
        found: dict[str, Any] = said
        return found

    async def credits(self, number: int, key: str, amount: int) -> Got:
        """The operator's credit, under this key."""
        asked = {"amount_nanos": amount, "reason": "once"}
        path = f"/operator/organizations/{self.team.id}/credits"
        headers = {"Idempotency-Key": key}
        return await self.at(self.root, number).post(path, asked, headers=headers)


def assert_done_once(got: list[Got]) -> Counter[str]:
    """Each was answered as the first, or told that it is being done; how many of each."""
    found = Counter(f"{one.status} {one.code if one.status > 299 else 'done'}" for one in got)
    # Writes of one person have a rate; who is over it asks again.
    allowed = {"201 done", "409 in_progress", "429 rate_limit_exceeded"}
    assert set(found) <= allowed, found
    assert found["201 done"]
    assert len({str(one.body) for one in got if one.status == 201}) == 1
    return found


async def test_fifty_identical_top_ups_at_two_machines_are_one(
    folder: Path, vendor_apart: Vendor
) -> None:
    async with Installation.started(folder, vendor_apart, workers=(1, 1), changes=SANDBOX) as at:
        people = await People.of(at)
        asked = [people.credits(number, "grant", CREDIT) for number in range(AT_ONCE)]
        granted = assert_done_once(await asyncio.gather(*asked))
        assert (await people.wallet())["granted_nanos"] == CREDIT
        other = await people.credits(1, "grant", CREDIT + 1)
        assert (other.status, other.code) == (409, "idempotency_key_reused")
        method = await method_of(people.team.owner, owner="organization")
        owner = people.team.owner
        buying = [buys(people.at(owner, number), method, key="buy") for number in range(AT_ONCE)]
        bought = assert_done_once(await asyncio.gather(*buying))
        assert (await people.wallet())["granted_nanos"] == CREDIT + TEN_USD
        other = await buys(people.at(owner, 1), method, key="buy", amount=2 * TEN_USD)
        assert (other.status, other.code) == (409, "idempotency_key_reused")
        (purchase,) = expect(await owner.get("/purchases"), 200).body["data"]
        assert (purchase["state"], purchase["is_credited"]) == ("paid", True)
        ports = [machine.ports["control"] for machine in at.machines]
        assert [await status(port, "/webhooks/stripe") for port in ports] == [404, 404]
        print(
            f"\nF8: {AT_ONCE} identical credits at 2 machines at once: {dict(granted)}, one credit;"
            f" {AT_ONCE} identical purchases: {dict(bought)}, one charge and one credit; the same"
            " keys with other amounts 409; no webhook without its secret"
        )


async def called(people: People, key: Key, **script: Any) -> Answer:
    """One call of few words."""
    ask = asks(CHAT, "gpt-4o-mini", max_tokens=10, vendor_script=script)
    return await post(people.office.machines[0], key, CHAT, ask)


async def until_spent(people: People, nanos: int) -> dict[str, Any]:
    """The wallet, once so much is booked as spent."""
    async with asyncio.timeout(10):
        while (said := await people.wallet())["spent_nanos"] != nanos:
            await asyncio.sleep(0.05)
    return said


async def test_a_balance_below_zero_is_shown_as_such_and_paid_first(
    folder: Path, vendor_apart: Vendor
) -> None:
    async with Installation.started(folder, vendor_apart, workers=(1, 1)) as at:
        people = await People.of(at)
        key = await new_key(people.team.owner)
        await credited(people.root, people.team.id, CREDIT)
        # A vendor that charges for more than anybody could have held.
        assert (await called(people, key, input_tokens=DEBT_TOKENS)).status == 200
        charge = priced(DEBT_TOKENS, 5)
        said = await until_spent(people, charge)
        debt = charge - CREDIT
        assert said["balance_nanos"] == said["free_nanos"] == -debt < 0
        refused = await called(people, key)
        assert (refused.status, refused.error["code"]) == (402, "insufficient_credit")
        assert refused.error["affordable_nanos"] == 0 < refused.error["needed_nanos"]
        await credited(people.root, people.team.id, debt)
        assert (await people.wallet())["balance_nanos"] == 0
        assert (await called(people, key)).status == 402
        await credited(people.root, people.team.id, CREDIT)
        assert (await called(people, key)).status == 200
        await until_spent(people, charge + priced(10, 5))
        await assert_books(at.machines[0], key, records=2, charge=charge + priced(10, 5))
        print(
            f"\nH8: a charge of {charge} beyond what was held: shown as {-debt}, refused with 402"
            f" until {debt} and more were paid; the wallet is the sum of its transactions less"
            " the calls at every step"
        )


async def test_whose_a_call_is_no_header_and_no_field_decides(
    folder: Path, vendor_apart: Vendor
) -> None:
    async with Installation.started(folder, vendor_apart, workers=(1, 1)) as at:
        people = await People.of(at)
        other = await at.founded(await at.signed_up("eve@example.com"), "Other", "pooled")
        theirs, key = await new_key(other.owner), await new_key(people.team.owner)
        for team in (other, people.team):
            await credited(people.root, team.id, CREDIT)
        member, stranger = [
            expect(await team.owner.get("/members"), 200).body["data"][0]["id"]
            for team in (people.team, other)
        ]
        headers = {
            "X-Organization-Id": other.id,
            "X-Project-Id": other.id,
            "X-Member-Id": stranger,
            "X-User-Id": stranger,
            "X-Key-Id": theirs.id,
            "X-CSRF-Token": other.owner.headers["X-CSRF-Token"],
            "Cookie": "; ".join(f"{one.key}={one.value}" for one in other.owner.cookies()),
        }
        fields = {
            "user": stranger,
            "metadata": {"organization_id": other.id, "member_id": stranger},
            "organization_id": other.id,
        }
        async with caller(at.machines[0]) as line:
            ask = asks(CHAT, "gpt-4o-mini", max_tokens=5, **fields)
            await line.send(request(CHAT, key.secret, ask, headers=headers))
            assert (await line.answer()).status == 200
        (row,) = await assert_books(at.machines[0], key, records=1)
        found = str(row["organization_id"]), str(row["key_id"]), str(row["member_id"])
        assert found == (people.team.id, key.id, member)
        await assert_books(at.machines[0], theirs, records=0, charge=0)
        print(
            f"\nF6: {len(headers)} headers, a session of another organization's among them, and"
            f" {len(fields)} fields name others: organization, key and member are the key's own"
        )
