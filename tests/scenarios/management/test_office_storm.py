"""Everything that people do to organizations, at random and at once, under calls on every gateway.

Then callers, vendor and what the API said to everybody are laid beside records, wallets and logs.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.scenarios.invariants import owed
from tests.scenarios.management.cards import Card
from tests.scenarios.management.firm import Clerk, Firm
from tests.scenarios.management.installation import Installation, expect
from tests.scenarios.scale import LONG, SEED
from tests.scenarios.storm import books
from tests.scenarios.storm.load import Asking, Crowd, Load, nonce_in
from tests.vendor import Entry, Vendor

STORM_S = 600.0 if LONG else 25.0
KILLS = 15 if LONG else 1
WORKERS = (2, 1)  # three gateways on two machines, each with a control process
CALLERS = 3  # of each organization, at each machine
ADMITTED_S_MAX = 1.0
BEGINNING = 50 * 10**9
REFUSALS = {401, 402, 403, 429}
PRESETS = {"pooled": False, "platform": False, "open-team": True}  # and who hands keys over

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(STORM_S * 2 + 300)]

_CALLS = """
    SELECT call_id::text AS id, key_id::text AS key, member_id::text AS member
    FROM usage_call WHERE admitted_at >= to_timestamp($1)
"""


def unhurried(chance: random.Random, nonce: str) -> Asking:
    """A call of a tenth of a second, or some: there are two cores for all of it."""
    script = {
        "input_tokens": chance.randrange(1, 400),
        "output_tokens": chance.randrange(1, 30),
        "first_s": chance.choice([0.02, 0.1, 0.3]),
        "interval_s": chance.choice([0.002, 0.02]),
    }
    return Asking.of(nonce, script, is_stream=chance.random() < 0.5)


class Treasurer:
    """The operator, who moves money and stops organizations for a while."""

    def __init__(self, clerk: Clerk, firms: Sequence[Firm], chance: random.Random) -> None:
        self.clerk, self._firms, self._chance = clerk, firms, chance
        self.booked: Counter[str] = Counter()

    async def work(self, stop: asyncio.Event) -> None:
        """Until told to stop."""
        deeds = (self.give, self.give, self._adjust, self._refund, self._transfer, self._suspend)
        while not stop.is_set():
            await self._chance.choice(deeds)(self._chance.choice(self._firms))
            await asyncio.sleep(self._chance.uniform(0, 0.5))

    async def give(self, firm: Firm, amount: int | None = None) -> None:
        """Credit."""
        amount = amount or self._chance.randrange(1, 10**9)
        if await self._book(f"{_at(firm)}/credits", {"amount_nanos": amount}):
            firm.moved += amount

    async def _adjust(self, firm: Firm) -> None:
        amount = self._chance.randrange(-(10**8), 10**8) or 1
        if await self._book(f"{_at(firm)}/credits", {"amount_nanos": amount, "kind": "adjustment"}):
            firm.moved += amount

    async def _refund(self, firm: Firm) -> None:
        amount = self._chance.choice([self._chance.randrange(1, 10**8), 10**12])
        if await self._book(f"{_at(firm)}/refunds", {"amount_nanos": amount}):
            firm.moved -= amount

    async def _transfer(self, firm: Firm) -> None:
        to = self._chance.choice([other for other in self._firms if other is not firm])
        amount = self._chance.randrange(1, 10**9)
        asked = {"from_organization_id": firm.id, "to_organization_id": to.id}
        if await self._book("/operator/transfers", {**asked, "amount_nanos": amount}):
            firm.moved -= amount
            to.moved += amount

    async def _suspend(self, firm: Firm) -> None:
        span, got = await self.clerk.ask("PATCH", _at(firm), {"is_suspended": True})
        if got is not None and got.status == 200:
            firm.running.off(span)
        await asyncio.sleep(1.5)
        while True:
            span, got = await self.clerk.ask("PATCH", _at(firm), {"is_suspended": False})
            firm.running.on(span)
            if got is not None and got.status == 200:
                return
            await asyncio.sleep(0.2)

    async def _book(self, path: str, asked: dict[str, Any]) -> bool:
        got = await self.clerk.booked(path, {"reason": "the storm", **asked})
        self.booked[f"{path.rsplit('/', 1)[1]} {got.status}"] += 1
        assert got.status in (201, 409), got
        return got.status == 201


class Storm:
    """An installation, its people, and their calls."""

    def __init__(self, office: Installation, firms: list[Firm], treasurer: Treasurer) -> None:
        self.office, self.firms, self.treasurer = office, firms, treasurer
        crowds = [Crowd(CALLERS, firm.pick, unhurried, 0.1) for firm in firms]
        self.loads = [
            Load(machine, [], SEED * 10 + number, crowds)
            for number, machine in enumerate(office.machines)
        ]
        self.began_s = books.now_s()
        self.kills = 0
        self.healed_s = 0.0  # by the loop's clock

    @classmethod
    @asynccontextmanager
    async def brewed(cls, folder: Path, vendor: Vendor) -> AsyncIterator["Storm"]:
        """Organizations with people, credit and keys."""
        chance = random.Random(SEED)  # noqa: S311 - a storm that can be repeated
        async with Installation.started(
            folder, vendor, workers=WORKERS, changes={"payments": {"processor": "sandbox"}}
        ) as office:
            urls = [office.control(number) for number in range(len(WORKERS))]
            root = Clerk(await office.operator("root@example.com"), urls, chance)
            made = [_firm(office, urls, preset, chance) for preset in PRESETS]
            firms = [*await asyncio.gather(*made)]
            treasurer = Treasurer(root, firms, chance)
            for firm in firms:
                await treasurer.give(firm, BEGINNING)
                await firm.begin()
            yield cls(office, firms, treasurer)

    async def rage(self, seconds: float) -> None:
        """Everybody at once, for so long; a control process is killed every now and then."""
        stop = asyncio.Event()
        doomed = self.firms[-1]
        async with AsyncExitStack() as stack:
            for load in self.loads:
                await stack.enter_async_context(load.running(0))
            async with asyncio.TaskGroup() as group:
                for firm in self.firms:
                    group.create_task(firm.work_as_owner(stop), name="an owner")
                    group.create_task(firm.work_as_member(stop), name="a member")
                group.create_task(self.treasurer.work(stop), name="the operator")
                for number in range(KILLS):
                    await asyncio.sleep(seconds / (KILLS + 1))
                    await self._kill_control(number % len(WORKERS))
                await asyncio.sleep(seconds / (KILLS + 1))
                stop.set()
            await self._delete(doomed)
            await asyncio.sleep(ADMITTED_S_MAX)
        self.healed_s = asyncio.get_running_loop().time()

    async def _kill_control(self, number: int) -> None:
        machine = self.office.machines[number]
        (pid,) = machine.pids("control")
        await machine.kill_process(pid)
        self.kills += 1

    async def _delete(self, firm: Firm) -> None:
        asked = {"confirmation": firm.team.name, "forfeit_balance": True}
        while True:
            span, got = await firm.owner.ask("POST", "/organization/deletion", asked)
            if got is not None and got.status == 204:
                firm.running.off(span)
                return
            await asyncio.sleep(0.2)

    @property
    def load(self) -> Load:
        """What all callers know."""
        first, *others = self.loads
        for load in others:
            first.answered.update(load.answered)
            first.made.update(load.made)
        return first

    @property
    def refused(self) -> Counter[int]:
        """Answers that were no 200, by status."""
        return sum((Counter(load.refused) for load in self.loads), Counter[int]())

    @property
    def cards(self) -> dict[str, Card]:
        """Everything known of each secret."""
        return {card.key.secret: card for firm in self.firms for card in firm.cards}


async def _firm(
    office: Installation, urls: Sequence[str], preset: str, chance: random.Random
) -> Firm:
    boss, mate = f"boss-{preset}@example.com", f"mate-{preset}@example.com"
    owner, member = await asyncio.gather(office.signed_up(boss), office.signed_up(mate, at=1))
    team = await office.founded(owner, preset.title(), preset)
    switches: dict[str, Any] = {"permissions": {"key.create": "members"}}
    if PRESETS[preset]:
        switches["keys_of_leavers"] = "hand_over"
    expect(await team.owner.patch("/policy", {"switches": switches}), 200)
    clerks = Clerk(team.owner, urls, chance), Clerk(member.at(team.id), urls, chance)
    return Firm(office, team, clerks, mate, hands_over=PRESETS[preset], chance=chance)


def latest(storm: Storm, load: Load, seen: Sequence[Entry]) -> tuple[float, int]:
    """The longest time from an end to a call that was let in after it, seconds; how many were."""
    cards = storm.cards
    late = [
        late_s
        for entry in seen
        if (late_s := cards[load.made[nonce_in(entry.body)].key.secret].late_s(entry.started_s)) > 0
    ]
    return max(late, default=0.0), len(late)


async def assert_attributed(storm: Storm, load: Load) -> None:
    """Every answered call is recorded under the key and member whose secret made it."""
    connection = await storm.office.machines[0].postgres()
    try:
        rows = {row["id"]: row for row in await connection.fetch(_CALLS, storm.began_s)}
    finally:
        await connection.close()
    cards = storm.cards
    wrong = []
    for nonce, answered in load.answered.items():
        made, row = load.made[nonce], rows[answered.call_id]
        card = cards[made.key.secret]
        members = card.members(made.began_s, made.ended_s)
        if row["key"] != card.key.id or row["member"] not in members:
            wrong.append(f"{dict(row)}, but it is of {card.key.id} and one of {members}")
    assert not wrong, f"{len(wrong)} of {len(load.answered)}: {wrong[:3]}"


async def assert_told(storm: Storm, load: Load, seen: Sequence[Entry]) -> int:
    """What people read of wallets and logs is what they were told; lines of the audit logs."""
    lines = 0
    for firm in storm.firms[:-1]:  # the last is deleted
        wallet = expect(await firm.team.owner.get("/wallet"), 200).body
        ours = [one for one in seen if load.made[nonce_in(one.body)].key.organization_id == firm.id]
        charged = owed(ours)
        said = wallet["granted_nanos"], wallet["spent_nanos"], wallet["held_nanos"]
        assert said == (firm.moved, charged, 0), firm.team.name
        assert wallet["free_nanos"] == wallet["balance_nanos"] == firm.moved - charged
        assert await _history(firm) == firm.moved
        checked = expect(await firm.team.owner.get("/audit-log/check"), 200).body
        assert checked["is_whole"], checked
        assert checked["whole_to"] == checked["lines"]
        lines += checked["lines"]
    return lines


async def _history(firm: Firm) -> int:
    """The sum of all transactions; each line has the sum up to it."""
    found: list[Any] = []
    cursor = ""
    while cursor is not None:
        path = "/transactions?limit=100" + (f"&cursor={cursor}" if cursor else "")
        page = expect(await firm.team.owner.get(path), 200).body
        found += page["data"]
        cursor = page["next_cursor"]
    total = 0
    for row in reversed(found):
        total += row["amount_nanos"]
        assert row["granted_nanos"] == total, row
    return total


async def test_whatever_people_do_at_once_every_call_and_every_amount_is_where_it_belongs(
    folder: Path, vendor_apart: Vendor
) -> None:
    print(f"\noffice storm: seed {SEED}, {STORM_S:.0f} s")
    async with Storm.brewed(folder, vendor_apart) as storm:
        await storm.rage(STORM_S)
        load, (first, *others) = storm.load, storm.office.machines
        sums = await books.settled(
            first,
            vendor_apart,
            load,
            since_s=storm.began_s,
            healed_s=storm.healed_s,
            granted={firm.id: firm.moved for firm in storm.firms},
            beside=others,
        )
        seen = await vendor_apart.log()
        await assert_attributed(storm, load)
        lines = await assert_told(storm, load, seen)
        late_s, late = latest(storm, load, seen)
        assert late_s <= ADMITTED_S_MAX
        assert set(storm.refused) <= REFUSALS, storm.refused
        asked = Counter[str]()
        for clerk in [storm.treasurer.clerk, *(who for one in storm.firms for who in one.clerks)]:
            asked.update(clerk.answers)
        assert storm.kills, "no control process was killed"
        bought = sum((firm.bought for firm in storm.firms), Counter[str]())
        removals = sum(firm.removals for firm in storm.firms)
        assert removals, "nobody was removed"
        print(
            f"office storm: {len(load.answered):,} calls answered by {sum(WORKERS)} gateways,"
            f" refused {dict(storm.refused)}; {asked.total():,} requests to {len(WORKERS)} control"
            f" processes, {storm.kills} killed; {len(storm.cards)} secrets, {removals} members"
            f" removed; money {dict(storm.treasurer.booked)}, purchases {dict(bought)}; last call"
            f" let in {1000 * late_s:.0f} ms after an end ({late} after any); {lines} lines of"
            f" audit logs whole; drained in {sums.drained_s:.1f} s; verify finds no difference"
        )
        print(", ".join(f"{name} {count}" for name, count in sorted(asked.items())))


def _at(firm: Firm) -> str:
    return f"/operator/organizations/{firm.id}"
