"""Money that leaves while everything dies: each withdrawal once or not at all, wallets exact."""

import asyncio
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import asyncpg
import pytest
from redis.exceptions import RedisError

from gateway.embedded import urls
from ledger.admission import LedgerUnavailable
from ledger.fcall import Epoch, withheld_name
from ledger.withdrawals import Short, Withdrawals
from tests.scenarios.deployment import Deployment, Key
from tests.scenarios.scale import LONG
from tests.scenarios.test_kills import Load, kill, running, valkey_pid
from tests.scenarios.withdrawing import CUTS, wanted_of
from tests.vendor import Vendor

pytestmark = pytest.mark.scenario
SEED = 31
ROUNDS = 60 if LONG else 4
EACH = 6  # withdrawals in a round, at once
HEARD = ("booked", "told")  # cuts after which a client hears that it is done
GRANTED = 10_000_000_000
AWAY = (RedisError, Epoch, OSError, asyncpg.PostgresError, asyncpg.InterfaceError)
_ASKED = "SELECT reference FROM withdrawal"
_BOOKED = "SELECT reference FROM withdrawal WHERE state = 'booked'"
_TWICE = """
    SELECT kind, reference FROM ledger_transaction
    WHERE kind IN ('refund', 'transfer', 'transfer_in')
    GROUP BY kind, reference HAVING count(*) > 1
"""
_CHARGED = "SELECT coalesce(sum(charge), 0) FROM usage_call WHERE organization_id = $1::uuid"
_OVERDUE = "UPDATE withdrawal SET asked_at = now() - interval '1 hour' WHERE state = 'pending'"
_PENDING = "SELECT count(*) FROM withdrawal WHERE state = 'pending'"


class Storm:
    """Processes that take money out of three organizations' wallets, and what they said."""

    def __init__(self, tollgate: Deployment, keys: list[Key], chance: random.Random) -> None:
        self.tollgate, self.keys, self.chance = tollgate, keys, chance
        self.lines: dict[str, str] = {}
        self.answered: set[str] = set()
        self.reached: dict[str, set[str]] = {cut: set() for cut in CUTS}
        self.struck = Counter[str]()

    def draw(self) -> list[str]:
        """Some withdrawals that nobody has asked for before."""
        lines = []
        for _ in range(EACH):
            source, target = self.chance.sample([key.organization_id for key in self.keys], 2)
            kind = self.chance.choice(("refund", "transfer"))
            reference = f"w{len(self.lines)}"
            to = target if kind == "transfer" else "-"
            amount = self.chance.randrange(1, 300_000_000)
            self.lines[reference] = f"{kind} {reference} {source} {to} {amount}"
            lines.append(self.lines[reference])
        return lines

    async def round(self, cut: str, victim: str, pid: int | None) -> None:
        """One process that dies at the cut, and a server or job killed at its first word."""
        at = urls(self.tollgate.data)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.scenarios.withdrawing"),
            *(at.postgres, at.redis_admin, cut, *self.draw()),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path.cwd())},  # noqa: TID251 - a child's
        )
        assert process.stdout is not None
        first = await process.stdout.readline()
        if pid is not None:
            await kill(pid)  # while the others are on their way
            self.struck[victim] += 1
        said, why = await process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert first, f"no line reached {cut}: {why.decode()}"
        reached = (first + said).decode().split()
        self.reached[cut].update(reached)
        if cut in HEARD:
            self.answered.update(reached)

    async def until_back(self) -> None:
        """Wait until whoever was killed is there again."""
        await self.tollgate.until_ready()
        async with asyncio.timeout(60):
            while not await self._is_back():
                await asyncio.sleep(0.05)

    async def _is_back(self) -> bool:
        try:
            async with self.tollgate.stores() as stores:
                return bool(await stores.redis.ping())
        except AWAY:
            return False

    async def ask_again(self, reference: str) -> None:
        """As whoever heard no answer does, until there is one."""
        async with self.tollgate.stores() as stores:
            withdrawals = Withdrawals(stores.pool, stores.redis)
            for _ in range(100):
                try:
                    done = await withdrawals.withdraw(wanted_of(self.lines[reference]))
                except Short:
                    return
                except (LedgerUnavailable, *AWAY):
                    await asyncio.sleep(0.1)
                else:
                    assert not (done.is_new and reference in self.answered), "booked twice"
                    self.answered.add(reference)
                    return
        raise AssertionError(f"{reference} is never answered")


@pytest.fixture
async def tollgate(folder: Path, vendor_apart: Vendor) -> AsyncIterator[Deployment]:
    """A deployment of its own, because it is hurt."""
    await vendor_apart.forget()
    async with Deployment.started(folder, vendor_port=vendor_apart.port) as deployment:
        yield deployment


async def postgres_pid(tollgate: Deployment) -> int:
    """The process of the deployment's own Postgres."""
    line = (tollgate.data / "postgres" / "postmaster.pid").read_text().splitlines()[0]
    return int(line)


async def assert_exact(storm: Storm) -> tuple[int, int]:
    """Wallets, records, postings and Redis agree on what left; how many did, and how many not."""
    connection = await storm.tollgate.postgres()
    try:
        await connection.execute(_OVERDUE)  # nobody asks for these again
        async with asyncio.timeout(60):
            while await connection.fetchval(_PENDING):
                await asyncio.sleep(0.1)
        asked = {row[0] for row in await connection.fetch(_ASKED)}
        assert set().union(*storm.reached.values()) <= asked, "what was asked for is forgotten"
        booked = {row[0] for row in await connection.fetch(_BOOKED)}
        assert storm.answered <= booked, "what was answered did not leave"
        assert await connection.fetch(_TWICE) == []
        moved = dict.fromkeys((key.organization_id for key in storm.keys), GRANTED)
        for reference in booked:
            wanted = wanted_of(storm.lines[reference])
            moved[wanted.organization_id] -= wanted.amount
            if wanted.target_id is not None:
                moved[wanted.target_id] += wanted.amount
        for organization, balance in moved.items():
            charged = await connection.fetchval(_CHARGED, organization)
            assert await storm.tollgate.wallet(organization) == balance - charged
    finally:
        await connection.close()
    assert "No difference." in storm.tollgate.run("verify")
    async with storm.tollgate.redis() as redis, asyncio.timeout(30):
        while any([await redis.hlen(withheld_name(number)) for number in range(16)]):
            await asyncio.sleep(0.1)
    return len(booked), len(storm.lines) - len(booked)


@pytest.mark.timeout(900)
async def test_withdrawals_are_done_once_or_not_at_all_whoever_dies(
    tollgate: Deployment, vendor_apart: Vendor
) -> None:
    chance = random.Random(SEED)  # noqa: S311 - which dies when, and no secret
    keys = [await tollgate.new_key() for _ in range(3)]
    storm = Storm(tollgate, keys, chance)

    async def nobody() -> None:
        """Only the process itself."""

    victims: dict[str, Callable[[], Awaitable[int | None]]] = {
        "nobody": nobody,
        "control": lambda: running(tollgate, "control"),
        "valkey": lambda: valkey_pid(tollgate),
        "postgres": lambda: postgres_pid(tollgate),
    }
    model = await vendor_apart.script("fast")
    async with tollgate.openai(keys[0]) as client, asyncio.TaskGroup() as group:
        load = Load(client, model)
        group.create_task(load.run(4))
        for number in range(ROUNDS):
            victim = [*victims][(number + number // 4) % 4]
            await storm.round(CUTS[number % len(CUTS)], victim, await victims[victim]())
            await storm.until_back()
        load.stop()
    silent = sorted(storm.lines.keys() - storm.answered)
    for reference in [*silent[::2], *sorted(storm.answered)[:5]]:
        await storm.ask_again(reference)
    seen = len(await vendor_apart.quiet())
    for key in keys[:1]:
        await tollgate.records(key.organization_id, count=seen, within_s=90)

    booked, given_up = await assert_exact(storm)

    assert booked
    counts = {cut: len(reached) for cut, reached in storm.reached.items()}
    assert min(counts.values()) >= ROUNDS // len(CUTS)
    assert sum(counts.values()) >= len(storm.lines) // 2, "most die before their step"
    assert {*storm.struck} == {*victims} - {"nobody"}
    counted = ", ".join(f"{cut} {count}" for cut, count in counts.items())
    struck = ", ".join(f"{victim} {count}" for victim, count in storm.struck.items())
    print(
        f"withdrawals (seed {SEED}): {ROUNDS} processes killed -9, of {len(storm.lines)} lines"
        f" reached: {counted}; killed meanwhile: {struck}; beside {seen} calls:"
        f" {booked} booked, {given_up} given up; 0 twice, 0 lost, wallets = postings"
    )
