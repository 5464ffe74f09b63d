"""What ends over the management API ends on every gateway within a second, streams in flight aside.

Those go on to their end and are charged: the vendor charges for them, too. When the news of it are
cut off, gateways find out by themselves within half a minute. What was admitted the vendor's log
tells, and when.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
from redis.asyncio import Redis

from gateway.key_cache import CHANNEL
from ledger.fcall import execute
from tests.gateway.management.office import Browser, Got
from tests.scenarios.caller import CHAT, Caller, asks
from tests.scenarios.deployment import Key
from tests.scenarios.invariants import assert_books
from tests.scenarios.management.installation import (
    Installation,
    Team,
    credited,
    expect,
    lines_in,
    new_key,
)
from tests.vendor import Vendor

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(600)]
WORKERS = (2, 2)
OF_EACH = 2  # callers at each worker
PER_S = 50
AT_ONCE_S, UNHEARD_S = 1.0, 30.0
LIVES_S = 1.5
_OWNED_MAX = 3  # organizations of one person
_MEMBER = "mia@example.com"
_REVOKE = "UPDATE api_key SET revoked_at = now(), version = version + 1 WHERE id = $1::uuid"
_SHOWN = {"switches": {"secret_visibility": "members"}}


class End(NamedTuple):
    """A key that works, and how it is ended."""

    key: Key
    end: Callable[[], Awaitable[float]]  # gives when nobody may be let in any more, monotonic
    again: Callable[[], Awaitable[Key]] | None = None  # what works afterwards


@dataclass
class Users:
    """Callers with one key at every worker, some fifty calls a second, until all were refused."""

    key: Key
    good: int = 0
    refused: dict[int, int] = field(default_factory=dict)  # answers by status

    async def run(self, lines: Sequence[Caller]) -> None:
        """Call until every connection was refused once."""
        async with asyncio.TaskGroup() as group:
            for line in lines:
                group.create_task(self._user(line, len(lines) / PER_S))

    async def _user(self, line: Caller, pause_s: float) -> None:
        ask = asks(CHAT, "gpt-4o-mini", max_tokens=5, user=f"calls-{self.key.id}")
        while True:
            answer = await line.post(CHAT, self.key.secret, ask)
            if answer.status != 200:
                self.refused[answer.status] = self.refused.get(answer.status, 0) + 1
                return
            self.good += 1
            await asyncio.sleep(pause_s)

    async def until(self, count: int) -> None:
        """Wait for so many good answers."""
        async with asyncio.timeout(30):
            while self.good < count:
                await asyncio.sleep(0.01)


class Town:
    """An installation, its operator, and keys in it that are to be ended."""

    def __init__(self, office: Installation, root: Browser, mia: Browser) -> None:
        self.office, self._root, self._mia = office, root, mia
        self._founders: list[Browser] = []
        self._made = 0

    @classmethod
    @asynccontextmanager
    async def settled(cls, folder: Path, vendor: Vendor) -> AsyncIterator["Town"]:
        """Two machines of several workers, their operator, and who joins each organization."""
        async with Installation.started(folder, vendor, workers=WORKERS) as office:
            root, mia = await asyncio.gather(
                office.operator("root@example.com"), office.signed_up(_MEMBER, at=1)
            )
            yield cls(office, root, mia)

    async def team(self, preset: str = "pooled") -> Team:
        """A new organization with credit, whose founder is at one machine or the other."""
        if self._made % _OWNED_MAX == 0:
            address = f"ada{self._made}@example.com"
            self._founders.append(await self.office.signed_up(address, at=len(self._founders) % 2))
        self._made += 1
        team = await self.office.founded(self._founders[-1], f"Acme {self._made}", preset)
        await credited(self._root, team.id, 10 * 10**9)
        return team

    async def revoked(self) -> End:
        """A key that its maker deletes."""
        team = await self.team()
        key = await new_key(team.owner)
        return End(key, lambda: ended(team.owner.delete(f"/api-keys/{key.id}"), 204))

    async def disabled(self) -> End:
        """A key that is switched off, and on again afterwards."""
        team = await self.team()
        key = await new_key(team.owner)

        async def again() -> Key:
            expect(await team.owner.post(f"/api-keys/{key.id}/enable"), 200)
            return key

        return End(key, lambda: ended(team.owner.post(f"/api-keys/{key.id}/disable"), 200), again)

    async def rotated(self) -> End:
        """A key with a new secret: the old one works for a grace of a second."""
        team = await self.team()
        key, made = await new_key(team.owner), list[Key]()

        async def end() -> float:
            got = expect(await team.owner.post(f"/api-keys/{key.id}/rotation", {"grace_s": 1}), 201)
            made.append(replace(key, secret=got.body["secret"]))
            return time.monotonic() + 1

        async def again() -> Key:
            return made[0]

        return End(key, end, again)

    async def expired(self) -> End:
        """A key whose time is over a moment after it was limited."""
        team = await self.team()
        key = await new_key(team.owner)

        async def end() -> float:
            over = datetime.now(UTC) + timedelta(seconds=LIVES_S)  # noqa: TID251 - a test's
            over_s = time.monotonic() + LIVES_S
            asked = {"expires_at": over.isoformat()}
            expect(await team.owner.patch(f"/api-keys/{key.id}", asked), 200)
            return over_s

        return End(key, end)

    async def suspended(self) -> End:
        """The key of an organization that the operator stops, and lets go on afterwards."""
        team = await self.team()
        key = await new_key(team.owner)
        path = f"/operator/organizations/{team.id}"

        async def again() -> Key:
            expect(await self._root.patch(path, {"is_suspended": False}), 200)
            return key

        return End(key, lambda: ended(self._root.patch(path, {"is_suspended": True}), 200), again)

    async def deleted(self) -> End:
        """The key of an organization that its owner ends."""
        team = await self.team()
        key = await new_key(team.owner)
        asked = {"confirmation": team.name, "forfeit_balance": True}
        return End(key, lambda: ended(team.owner.post("/organization/deletion", asked), 204))

    async def removed(self) -> End:
        """The key of a member who is put out."""
        team = await self.team()
        mia = await self._join(team)
        key = await new_key(mia)
        return End(key, lambda: self._put_out(team))

    async def untold(self) -> End:
        """A key that is revoked in Postgres alone."""
        team = await self.team()
        key = await new_key(team.owner)

        async def end() -> float:
            connection = await self.office.machines[0].postgres()
            try:
                await connection.execute(_REVOKE, key.id)
            finally:
                await connection.close()
            return time.monotonic()

        return End(key, end)

    async def own(self) -> End:
        """A member's own secret of a key that goes on working."""
        team = await self.team("studio")
        expect(await team.owner.patch("/policy", _SHOWN), 200)
        shared = await new_key(team.owner)
        mia = await self._join(team)
        got = expect(await mia.post(f"/api-keys/{shared.id}/secret"), 200)

        async def again() -> Key:
            return shared

        return End(replace(shared, secret=got.body["secret"]), lambda: self._put_out(team), again)

    async def _join(self, team: Team) -> Browser:
        return await self.office.joined(team, self._mia, _MEMBER, "member")

    async def _put_out(self, team: Team) -> float:
        members = expect(await team.owner.get("/members"), 200).body["data"]
        (member_id,) = [row["id"] for row in members if row["email"] == _MEMBER]
        return await ended(team.owner.delete(f"/members/{member_id}"), 204)


async def ended(asking: Awaitable[Got], status: int) -> float:
    """When the API said that it is done."""
    expect(await asking, status)
    return time.monotonic()


class Found(NamedTuple):
    """How one end was obeyed."""

    late_s: float  # from the end to the last call that was let in; 0: none was
    users: Users


async def heard(office: Installation, vendor: Vendor, end: End) -> Found:
    """Call at every worker until each has refused; when the last was let in the vendor says."""
    users = Users(end.key)
    async with lines_in(office, OF_EACH) as lines, asyncio.TaskGroup() as group:
        running = group.create_task(users.run([line for at in lines for line in at]))
        await users.until(PER_S)
        over_s = await end.end()
        async with asyncio.timeout(UNHEARD_S + 5):
            await running
    admitted = [entry for entry in await vendor.log() if f"calls-{end.key.id}" in entry.body]
    assert len(admitted) == users.good, "the vendor has seen calls that nobody was answered"
    return Found(max(0.0, max(entry.started_s for entry in admitted) - over_s), users)


async def besieged(office: Installation, vendor: Vendor, end: End) -> str:
    """End it under calls and streams of every worker; assert all that must hold, and tell it."""
    model = await vendor.script("held", output_tokens=20, hold_at=5)
    ask = asks(CHAT, model, max_tokens=50, stream=True)
    async with lines_in(office, 1) as lines, asyncio.TaskGroup() as group:
        posts = [line.post(CHAT, end.key.secret, ask) for (line,) in lines]
        streams = [group.create_task(post) for post in posts]
        await vendor.held(len(streams))
        found = await heard(office, vendor, end)
        assert not any(task.done() for task in streams), "the end cut a stream off"
        await vendor.release()
    answers = [task.result() for task in streams]
    assert all(one.status == 200 and one.body.endswith(b"data: [DONE]\n\n") for one in answers)
    again = 0 if end.again is None else await works_everywhere(office, await end.again())
    users = found.users
    await assert_books(office.machines[0], end.key, records=users.good + len(streams) + again)
    assert found.late_s <= AT_ONCE_S
    return (
        f"last call let in {1000 * found.late_s:.0f} ms after it, of {users.good} on"
        f" {sum(WORKERS)} workers; then {users.refused}; {len(streams)} streams in flight ended"
        " whole and were charged"
    )


async def works_everywhere(office: Installation, key: Key) -> int:
    """How many calls went well: one at each worker."""
    async with lines_in(office, 1) as lines:
        for (line,) in lines:
            async with asyncio.timeout(AT_ONCE_S):
                while (await line.post(CHAT, key.secret, asks(CHAT, "m"))).status != 200:
                    await asyncio.sleep(0.01)
        return len(lines)


async def test_what_ends_lets_nobody_in_after_a_second_and_streams_go_on_to_their_end(
    folder: Path, vendor_apart: Vendor
) -> None:
    async with Town.settled(folder, vendor_apart) as town:
        kinds = {
            "a key revoked": town.revoked,
            "a key disabled": town.disabled,
            "a key rotated, its grace over": town.rotated,
            "a key expired": town.expired,
            "an organization suspended": town.suspended,
            "an organization deleted": town.deleted,
            "a member removed": town.removed,
            "a member removed, with their own secret of a shared key": town.own,
        }
        for kind, made in kinds.items():
            end = await made()
            print(f"\nE1: {kind}: {await besieged(town.office, vendor_apart, end)}", end="")
        assert "No difference." in await asyncio.to_thread(town.office.machines[0].run, "verify")
        print("\nE1: verify finds no difference")


async def test_an_end_that_nobody_hears_of_is_found_within_half_a_minute(
    folder: Path, vendor_apart: Vendor
) -> None:
    async with Town.settled(folder, vendor_apart) as town:
        office = town.office
        ends = {
            "a key revoked": await town.revoked(),
            "an organization suspended": (await town.suspended())._replace(again=None),
            "an organization deleted": await town.deleted(),
            "a member removed": await town.removed(),
            # What a control process leaves that dies between its commit and the news.
            "a key revoked, and nobody told": await town.untold(),
        }
        async with office.machines[0].redis() as redis:
            await execute(redis, "ACL", "SETUSER", "app", "resetchannels")
            try:
                await until_deaf(redis)
                work = [heard(office, vendor_apart, end) for end in ends.values()]
                found = await asyncio.gather(*work)
            finally:
                await execute(redis, "ACL", "SETUSER", "app", "&tg:*")
        for (kind, end), one in zip(ends.items(), found, strict=True):
            assert one.late_s <= UNHEARD_S
            print(
                f"\nE1: {kind}, pub/sub cut: last call let in {one.late_s:.1f} s after it, of"
                f" {one.users.good} on {sum(WORKERS)} workers; then {one.users.refused}",
                end="",
            )
            await assert_books(office.machines[0], end.key, records=one.users.good)
        print()


async def until_deaf(redis: Redis) -> None:
    """Wait until no gateway hears of changed keys any more."""
    async with asyncio.timeout(10):
        while dict(await redis.pubsub_numsub(CHANNEL))[CHANNEL.encode()]:
            await asyncio.sleep(0.05)
