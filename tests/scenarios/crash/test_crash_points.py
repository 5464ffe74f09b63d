"""Killed right before or right after any step, whoever it is: nothing is lost, doubled or wrong.

The oracle is what callers got and what the vendor billed. Short form: a few deaths, drawn by the
seed; LONG=1: every point, before and after.
"""

import asyncio
import importlib
import inspect
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import pytest

from gateway.management import credits as credits_
from ledger.money import nanos
from tests.scenarios.crash.deaths import ARMED, FOLDER, STRUCK, order
from tests.scenarios.crash.points import POINTS, Cause, Point
from tests.scenarios.deployment import Deployment, Key
from tests.scenarios.scale import LONG, SEED
from tests.scenarios.storm import books
from tests.scenarios.storm.load import Load
from tests.vendor import Vendor

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(3_600 if LONG else 180)]

DEATHS = 2  # in the short form, of different causes
CALLERS, WORKERS = 12, 2
STRUCK_S_MAX, BACK_S_MAX = 15.0, 20.0
CREDIT_USD = "100000"
SIDES = ("before", "after")
# Passed by every call, or by every batch: any of the first few may be the last.
MANY = (Cause.CALLS, Cause.CREDIT)
SELDOM = {"Pool.connect"}  # connections are kept: one is made when a caller has cut another
CHANGES = {
    "ledger": {"partitions": 4, "hold_lease_s": 4, "hold_renew_s": 1, "audit_interval_s": 2},
}


class Death(NamedTuple):
    """One process, killed on one side of a point at its nth pass."""

    point: Point
    side: str
    nth: int

    def __str__(self) -> str:
        return order(*self)


def _is_passed_often(point: Point) -> bool:
    return point.cause in MANY and point.name not in SELDOM


def deaths(chance: random.Random) -> list[Death]:
    """Those of this run, in an order of their own."""
    made = [
        Death(point, side, chance.randrange(1, 6) if _is_passed_often(point) else 1)
        for point in POINTS
        for side in SIDES
    ]
    chance.shuffle(made)
    if LONG:
        return made
    return [
        next(one for one in made if one.point.cause is cause)
        for cause in chance.sample([*Cause], DEATHS)
    ]


@pytest.mark.parametrize("point", POINTS, ids=str)
def test_every_point_is_a_function_of_the_product(point: Point) -> None:
    owner: object = importlib.import_module(point.module)
    for name in point.name.split("."):
        owner = inspect.getattr_static(owner, name)


class Doomed(Deployment):
    """A deployment whose processes die where they are told to."""

    def environ(self) -> dict[str, str]:
        found = super().environ()
        site = Path(__file__).parent / "site"
        path = os.pathsep.join([str(site), found["PYTHONPATH"]])
        return {**found, "PYTHONPATH": path, FOLDER: str(self.folder)}

    @property
    def is_struck(self) -> bool:
        """Whether a process has taken the order."""
        return (self.folder / STRUCK).exists()

    async def struck(self, death: Death) -> None:
        """Wait until the process is dead that took the order."""
        told = self.folder / STRUCK
        try:
            async with asyncio.timeout(STRUCK_S_MAX):
                while not self.is_struck:
                    await asyncio.sleep(0.005)
                pid = int(told.read_text())
                while Path(f"/proc/{pid}").exists():
                    await asyncio.sleep(0.005)
        except TimeoutError as error:
            raise AssertionError(f"{death} was never passed") from error
        told.unlink()


class Deaths:
    """One death after the other, and the books after each."""

    def __init__(self, tollgate: Doomed, vendor: Vendor, keys: list[Key]) -> None:
        self._tollgate, self._vendor, self._keys = tollgate, vendor, keys
        self._granted: dict[str, int] = {key.organization_id: nanos(CREDIT_USD) for key in keys}
        self.answered, self.records, self.drained_s = 0, 0, 0.0
        self.ends: Counter[str] = Counter()

    async def die(self, death: Death, number: int) -> None:
        """Kill, go on, drain, and compare everything."""
        tollgate = self._tollgate
        await self._vendor.forget()
        began_s = books.now_s()
        load = Load(tollgate, self._keys, SEED * 1_000 + number)
        (tollgate.folder / ARMED).with_suffix(".new").write_text(str(death))
        (tollgate.folder / ARMED).with_suffix(".new").rename(tollgate.folder / ARMED)
        async with load.running(CALLERS):
            await self._cause(death.point.cause, load)
            await tollgate.struck(death)
            await load.until(CALLERS, within_s=BACK_S_MAX)
        await tollgate.until_ready(BACK_S_MAX)
        healed_s = asyncio.get_running_loop().time()
        sums = await books.settled(
            tollgate,
            self._vendor,
            load,
            since_s=began_s,
            healed_s=healed_s,
            granted=self._granted,
        )
        assert sums.dead_letters == 0
        self.drained_s = max(self.drained_s, sums.drained_s)
        self.answered += len(load.answered)
        self.records += sums.records
        self.ends.update(sums.kinds)

    async def _cause(self, cause: Cause, load: Load) -> None:
        """Bring about what the point is a step of."""
        if cause is Cause.CALLS:
            return
        await load.until(CALLERS, within_s=BACK_S_MAX)
        match cause:
            case Cause.CREDIT:  # again and again: grants that come together are one push
                until_s = time.monotonic() + STRUCK_S_MAX
                while not self._tollgate.is_struck and time.monotonic() < until_s:
                    for key in self._keys:
                        await self._grant(key)
            case Cause.ORPHAN:
                await self._tollgate.kill_process(self._tollgate.pids("worker")[0])
            case Cause.LOSS:
                async with self._tollgate.redis() as redis:
                    await redis.flushall()

    async def _grant(self, key: Key) -> None:
        async with self._tollgate.stores() as stores:
            wanted = credits_.Grant(UUID(key.organization_id), nanos("1"), "test", "test")
            await credits_.grant(stores.pool, stores.redis, wanted)
        self._granted[key.organization_id] += nanos("1")


@pytest.fixture
async def tollgate(folder: Path, vendor_apart: Vendor) -> AsyncIterator[Doomed]:
    """A deployment of its own, whose every process can be told where to die."""
    started = Doomed.started(
        folder, vendor_port=vendor_apart.port, workers=WORKERS, changes=CHANGES
    )
    async with started as deployment:
        assert isinstance(deployment, Doomed)
        yield deployment


async def test_a_process_killed_at_any_step_loses_doubles_and_changes_no_amount(
    tollgate: Doomed, vendor_apart: Vendor
) -> None:
    chance = random.Random(SEED)  # noqa: S311 - a test that can be repeated
    keys = [await tollgate.new_key(credit_usd=CREDIT_USD) for _ in range(4)]
    run = Deaths(tollgate, vendor_apart, keys)
    chosen = deaths(chance)
    print(f"\ncrash points: seed {SEED}")
    for number, death in enumerate(chosen):
        print(f"{number + 1} of {len(chosen)}: {death}", flush=True)
        await run.die(death, number)
    points = {(death.point, death.side) for death in chosen}
    print(
        f"crash points, seed {SEED}: {len(points)} of {len(POINTS) * 2} (point, side) pairs, each"
        f" died there; {run.answered:,} calls answered, {run.records:,} records {dict(run.ends)};"
        f" drained in {run.drained_s:.1f} s at most; none lost, none doubled, records = vendor's"
        " log, verify finds no difference after each"
    )
