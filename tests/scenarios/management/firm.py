"""People of an organization who do at random what people do, and what they were told of it.

Each asks one control process or the other. What was not answered, because one was killed, may have
been done or not: money is asked for again under the same Idempotency-Key until an answer comes.
"""

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

import aiohttp

from tests.gateway.management.office import Browser, Got
from tests.gateway.management.till import method_of
from tests.scenarios.deployment import Key
from tests.scenarios.management.cards import Card, Span, Switch
from tests.scenarios.management.installation import Installation, Team, expect

CENT = 10_000_000
KEYS_MAX = 8  # that work, of one organization
# Never used up: a stream that cannot hold more is cut, and what its vendor made by then estimated.
_BUDGETS = (None, 20 * 10**9, 100 * 10**9)
_PROBED_S = 2.5  # how long callers try what has ended
_PAUSE_S = 0.3
_AGAIN_S = 0.5
_LATER = {429, 503}
_ALWAYS = Span(-math.inf, -math.inf)


class Clerk:
    """Asks the API as one person, and counts what it said."""

    def __init__(self, browser: Browser, urls: Sequence[str], chance: random.Random) -> None:
        self.browser, self._urls, self._chance = browser, urls, chance
        self.answers: Counter[str] = Counter()  # by method, path without ids, and status

    async def ask(
        self, method: str, path: str, body: Any = None, *, key: str | None = None
    ) -> tuple[Span, Got | None]:
        """One request to either control process; None: it broke off."""
        browser = self.browser.by(self._chance.choice(self._urls))
        headers = {} if key is None else {"Idempotency-Key": key}
        sent_s = time.monotonic()
        try:
            got = await browser.ask(method, path, body, headers=headers)
        except (aiohttp.ClientError, OSError):
            got = None
        span = Span(sent_s, time.monotonic())
        name = "/".join(part for part in path.split("/") if len(part) < 30)
        self.answers[f"{method} {name} {got and got.status}"] += 1
        assert got is None or got.status != 500, got
        return span, got

    async def done(self, method: str, path: str, body: Any = None) -> tuple[Span, Got] | None:
        """One request that went well; None: it was refused, or broke off."""
        span, got = await self.ask(method, path, body)
        return (span, got) if got is not None and got.status < 300 else None

    async def booked(self, path: str, body: Mapping[str, Any]) -> Got:
        """Money that moves once: asked for until the answer is known."""
        key = str(uuid4())
        while True:
            _, got = await self.ask("POST", path, body, key=key)
            is_told = got is not None and got.status not in _LATER
            if got is not None and is_told and (got.status == 201 or got.code != "in_progress"):
                return got
            await asyncio.sleep(_AGAIN_S)


class Firm:
    """An organization, its owner and one member who comes and goes."""

    def __init__(
        self,
        office: Installation,
        team: Team,
        clerks: tuple[Clerk, Clerk],
        address: str,
        *,
        hands_over: bool,
        chance: random.Random,
    ) -> None:
        self.team, self.clerks = team, clerks
        self.owner, self._member = clerks
        self._office, self._address, self._chance = office, address, chance
        self._hands_over = hands_over
        self.running = Switch()  # off while it is suspended, and once it is deleted
        self.cards: list[Card] = []
        self.moved = 0  # what came less what went, by the operator's answers, nano-USD
        self._ids = {"owner": "", "member": ""}
        self._projects: dict[str, Switch] = {}
        self.removals = 0
        self._is_removing = False
        self._methods: list[str] = []
        self.bought: Counter[str] = Counter()  # purchases, by what became of them

    async def begin(self) -> None:
        """The member is in, and both have a key."""
        members = expect(await self.team.owner.get("/members"), 200).body["data"]
        self._ids["owner"] = members[0]["id"]
        for does in ("approve", "insufficient_funds"):
            method = await method_of(self.team.owner, does, owner="organization")
            self._methods.append(method)
        await self._join()
        while len(self.cards) < 2:
            for clerk, who in ((self.owner, "owner"), (self._member, "member")):
                await self._make(clerk, who)

    def pick(self) -> Key:
        """The key of the next call: one that works, or one that has just ended."""
        now_s = time.monotonic()
        ages = [(card, card.late_s(now_s)) for card in self.cards]
        ended = [card for card, late_s in ages if 0 <= late_s < _PROBED_S]
        if ended and self._chance.random() < 0.4:
            return self._chance.choice(ended).key
        working = [card for card, late_s in ages if late_s < 0]
        return self._chance.choice(working or [self.cards[-1]]).key

    async def work_as_owner(self, stop: asyncio.Event) -> None:
        """Do this and that until told to stop."""
        deeds = (
            self._make_own,
            self._rotate,
            self._rotate,
            self._disable,
            self._disable,
            self._enable,
            self._revoke,
            self._limit,
            self._limit,
            self._make_project,
            self._budget,
            self._archive,
            self._invite_nobody,
            self._remove_and_invite,
            self._buy,
        )
        while not stop.is_set():
            await self._chance.choice(deeds)()
            await asyncio.sleep(self._chance.uniform(0, 2 * _PAUSE_S))

    async def work_as_member(self, stop: asyncio.Event) -> None:
        """What a member does with their own keys, as long as they are one."""
        while not stop.is_set():
            mine = [card for card in self._working() if card.member == self._ids["member"]]
            if not mine or self._chance.random() < 0.5:
                await self._make(self._member, "member")
            else:
                await self._end("DELETE", self._chance.choice(mine), by=self._member)
            await asyncio.sleep(self._chance.uniform(0, 4 * _PAUSE_S))

    # Keys

    def _working(self) -> list[Card]:
        now_s = time.monotonic()
        return [card for card in self.cards if card.late_s(now_s) < 0]

    async def _make_own(self) -> None:
        await self._make(self.owner, "owner")

    async def _make(self, clerk: Clerk, who: str) -> None:
        if len(self._working()) >= KEYS_MAX:
            return
        now_s = time.monotonic()
        open_ = [name for name, on in self._projects.items() if on.off_since(now_s) > now_s]
        project = self._chance.choice([*open_, ""])
        asked = {"name": "key", "project_id": project or None}
        member, removals = self._ids[who], self.removals
        done = await clerk.done("POST", "/api-keys", asked)
        # Whose a key is that is made while its maker is put out, an outsider cannot know.
        is_clear = removals == self.removals and not self._is_removing
        if done is not None and (is_clear or who == "owner"):
            _, got = done
            key = Key(secret=got.body["secret"], id=got.body["key"]["id"], organization_id=self.id)
            switches = [Switch(), Switch(), self.running]
            if project:
                switches.append(self._projects[project])
            self.cards.append(Card(key=key, switches=switches, owners=[(_ALWAYS, member)]))

    @property
    def id(self) -> str:
        """The organization's."""
        return self.team.id

    async def _rotate(self) -> None:
        if not (working := self._working()):
            return
        card, grace_s = self._chance.choice(working), self._chance.choice([0, 0, 1])
        path = f"/api-keys/{card.key.id}/rotation"
        if (done := await self.owner.done("POST", path, {"grace_s": grace_s})) is None:
            return
        span, got = done
        # Every secret that the key had before goes with the grace.
        for other in self.cards:
            if other.key.id == card.key.id:
                other.own.off(Span(span.sent_s, span.told_s + grace_s))
        key = replace(card.key, secret=got.body["secret"])
        self.cards.append(replace(card, key=key, switches=[Switch(), *card.switches[1:]]))

    async def _disable(self) -> None:
        if working := self._working():
            card = self._chance.choice(working)
            await self._end("POST", card, by=self.owner, path="/disable")

    async def _end(self, method: str, card: Card, *, by: Clerk, path: str = "") -> None:
        done = await by.done(method, f"/api-keys/{card.key.id}{path}")
        if done is not None:
            card.switches[1].off(done[0])

    async def _enable(self) -> None:
        now_s = time.monotonic()
        off = [card for card in self.cards if card.switches[1].off_since(now_s) <= now_s]
        if off:
            card = self._chance.choice(off[-KEYS_MAX:])
            span, got = await self.owner.ask("POST", f"/api-keys/{card.key.id}/enable")
            if got is None or got.status < 300:
                card.switches[1].on(span)

    async def _revoke(self) -> None:
        if len(working := self._working()) > 2:
            await self._end("DELETE", self._chance.choice(working), by=self.owner)

    async def _limit(self) -> None:
        if not (working := self._working()):
            return
        budget = self._chance.choice(_BUDGETS)
        period = None if budget is None else self._chance.choice(["daily", "monthly", "once"])
        asked = {
            "rpm": self._chance.choice([None, 20, 10_000]),
            "concurrency": self._chance.choice([None, 1, 50]),
            "budget_nanos": budget,
            "budget_period": period,
        }
        await self.owner.done("PATCH", f"/api-keys/{self._chance.choice(working).key.id}", asked)

    # Money

    async def _buy(self) -> None:
        """Credits, with a card that pays or with one that does not."""
        amount = self._chance.randrange(1_000, 3_000) * CENT
        asked = {"amount_nanos": amount, "method_id": self._chance.choice(self._methods)}
        got = await self.owner.booked("/purchases", asked)
        self.bought[str(got.status)] += 1
        if got.status != 402:
            assert (got.status, got.body["state"], got.body["is_credited"]) == (201, "paid", True)
            self.moved += amount

    # Projects

    async def _make_project(self) -> None:
        now_s = time.monotonic()
        if sum(switch.off_since(now_s) > now_s for switch in self._projects.values()) < 3:
            done = await self.owner.done("POST", "/projects", {"name": f"P {uuid4()}"})
            if done is not None:
                self._projects[done[1].body["id"]] = Switch()

    async def _budget(self) -> None:
        places = [f"/projects/{project}" for project in self._projects]
        places.append(f"/members/{self._ids['member']}")
        limit = self._chance.choice(_BUDGETS)
        asked = {"budget_nanos": limit, "budget_period": None if limit is None else "daily"}
        await self.owner.done("PUT", f"{self._chance.choice(places)}/budget", asked)

    async def _archive(self) -> None:
        if len(self._projects) > 1:
            project = next(iter(self._projects))
            done = await self.owner.done("POST", f"/projects/{project}/archive")
            if done is not None:
                self._projects[project].off(done[0])
                del self._projects[project]

    # People

    async def _invite_nobody(self) -> None:
        asked = {"email": f"{uuid4().hex}@example.com", "role": "member"}
        if (done := await self.owner.done("POST", "/invitations", asked)) is not None:
            await self.owner.done("DELETE", f"/invitations/{done[1].body['id']}")

    async def _remove_and_invite(self) -> None:
        member = self._ids["member"]
        self._is_removing = True
        span, got = await self.owner.ask("DELETE", f"/members/{member}")
        self._is_removing = False
        if got is not None and got.status < 300:
            self.removals += 1
            self._lose(member, span)
        await self._join()

    def _lose(self, member: str, span: Span) -> None:
        """What becomes of the member's keys."""
        lost = [card for card in self.cards if card.member == member]
        if self._hands_over:
            for owners in {card.key.id: card.owners for card in lost}.values():
                owners.append((span, self._ids["owner"]))
            return
        for card in lost:
            card.own.off(span)  # what a removal ends no enabling brings back

    async def _join(self) -> None:
        """Invite the member by mail, who accepts."""
        asked = {"email": self._address, "role": "member"}
        while (await self.owner.done("POST", "/invitations", asked)) is None:
            if await self._is_in():
                return
            # Perhaps it was done, and only its answer lost.
            done = await self.owner.done("GET", "/invitations")
            if done and any(row["email"] == self._address for row in done[1].body["data"]):
                break
            await asyncio.sleep(_AGAIN_S)
        secret = await self._office.secret_mailed_to(self._address)
        while not await self._is_in():
            await self._member.done("POST", "/invitations/acceptance", {"secret": secret})
            await asyncio.sleep(_PAUSE_S)

    async def _is_in(self) -> bool:
        """Whether the member is one; their id is then known."""
        if (done := await self.owner.done("GET", "/members")) is None:
            return False
        for row in done[1].body["data"]:
            if row["email"] == self._address:
                self._ids["member"] = row["id"]
                return True
        return False
