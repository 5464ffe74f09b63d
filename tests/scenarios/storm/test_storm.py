"""The storm: everything is killed, stopped, emptied and put back in time, under load, for as long
as STORM says. Whoever got an answer is charged what the vendor billed, once, and nobody else is.

STORM=60m make storm     STORM_SEED=7 make storm
"""

import asyncio
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from gateway.principal import Period
from ledger.money import nanos
from tests.scenarios.deployment import Deployment, Key
from tests.scenarios.scale import SEED
from tests.scenarios.storm import books, scarce
from tests.scenarios.storm.faults import Faults
from tests.scenarios.storm.load import Load
from tests.vendor import Vendor

_UNITS = {"s": 1, "m": 60, "h": 3_600}
_ASKED = os.environ.get("STORM", "")  # noqa: TID251 - chosen by whoever runs the tests
SHORT_S = 45.0
STORM_S = float(_ASKED[:-1]) * _UNITS[_ASKED[-1]] if _ASKED else SHORT_S

ROUND_S = 60.0
BACK_S_MAX = 20.0  # a worker killed again and again is started after 5 s
CALLERS, WORKERS = 24, 3
CREDIT_USD = "100000"
LOSSES = {"flushall", "stale failover"}  # what is open must be held again
TERMS: tuple[dict[str, Any], ...] = (
    *({}, {}, {}, {"concurrency": CALLERS}),
    *({"budget": nanos(CREDIT_USD), "period": period} for period in Period),
)
CHANGES = {
    "ledger": {
        "partitions": 4,
        "hold_lease_s": 4,  # so that what nobody ends is swept within the time to drain
        "hold_renew_s": 1,
        "audit_interval_s": 2,
    },
}

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(STORM_S * 2 + 240)]


class Storm:
    """A deployment, its load and its faults, round after round."""

    def __init__(
        self, tollgate: Deployment, vendor: Vendor, keys: list[Key], purses: list[scarce.Wallet]
    ) -> None:
        self._tollgate, self._vendor, self._keys = tollgate, vendor, keys
        self._purses = purses
        self._chance = random.Random(SEED)  # noqa: S311 - a storm that can be repeated
        self._granted = {key.organization_id: nanos(CREDIT_USD) for key in keys}
        self._kinds: list[str] = []  # still to come before any comes again
        self._is_calm = True  # whether what was hit last is back
        self.counted: Counter[str] = Counter()
        self.tried: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.refused: Counter[int] = Counter()
        self.answered = 0
        self.drained_s = 0.0
        self.letters = 0

    async def round(self, number: int, seconds: float) -> None:
        """Load and faults for a while; then heal, drain, and compare everything."""
        await self._vendor.forget()
        began_s = books.now_s()
        for purse in self._purses:
            await purse.begin(self._tollgate)
        crowds = [purse.crowd() for purse in self._purses]
        load = Load(self._tollgate, self._keys, SEED * 1_000 + number, crowds)
        faults = Faults(self._tollgate, load, self._chance)
        loop = asyncio.get_running_loop()
        until_s = loop.time() + seconds
        async with load.running(CALLERS):
            await load.until(CALLERS, within_s=BACK_S_MAX)
            while loop.time() < until_s:
                await self._strike(load, faults)
            await self._tollgate.until_ready(BACK_S_MAX)
            healed_s = loop.time()
        granted = {purse.key.organization_id: purse.granted for purse in self._purses}
        sums = await books.settled(
            self._tollgate,
            self._vendor,
            load,
            since_s=began_s,
            healed_s=healed_s,
            granted=self._granted | granted,
        )
        seen = await self._vendor.log()
        for purse in self._purses:
            wrong = await purse.judge(self._tollgate, load, seen)
            assert not wrong, f"{purse.name}: {wrong}"
        self.drained_s = max(self.drained_s, sums.drained_s)
        self._assert_no_drift()
        self.letters = sums.dead_letters
        assert self.letters <= self.tried["poison"], "a letter that nobody poisoned"
        self.answered += len(load.answered)
        self.ended.update(sums.kinds)
        self.refused.update(load.refused)

    async def _strike(self, load: Load, faults: Faults) -> None:
        if not self._kinds:
            self._kinds = sorted(faults.kinds)
            self._chance.shuffle(self._kinds)
        kind = self._kinds.pop()
        self.tried[kind] += 1
        if kind in LOSSES and self._is_calm:
            await scarce.use_up(self._purses, self._tollgate, [load])
        self._is_calm = False
        self.counted[kind] += await faults.strike(kind)
        if self._chance.random() < 0.25:
            return  # the next one hits a system that is still down
        try:
            await load.until(CALLERS, within_s=BACK_S_MAX)
        except TimeoutError as error:
            told = self._tollgate.log_path.read_text(errors="replace")[-4_000:]
            raise AssertionError(f"nobody is answered after {kind!r}: {told}") from error
        self._is_calm = True
        if self._chance.random() < 0.5:
            faults.keep_copy()
        await asyncio.sleep(self._chance.uniform(0, 0.5))

    def _assert_no_drift(self) -> None:
        lines = self._tollgate.metrics().splitlines()
        drifts = [line for line in lines if "drift" in line and not line.startswith("#")]
        assert drifts, "no audit has run"
        assert all(float(line.rsplit(" ", 1)[1]) == 0 for line in drifts), drifts
        told = self._tollgate.log_path.read_text(errors="replace")
        assert '"drift of' not in told

    def assert_hit(self) -> None:
        """It was a storm: most faults counted, and of each kind at least one."""
        assert self.counted.total() > self.tried.total() / 2, (self.counted, self.tried)
        missed = [
            kind for kind, tries in self.tried.items() if tries > 2 and not self.counted[kind]
        ]
        assert not missed, f"of these none counted: {missed}"
        for purse in self._purses:
            assert purse.calls > 0, f"{purse.name}: nobody was let in"
            assert purse.refused > 0, f"{purse.name}: nobody was refused for want of it"

    @property
    def kinds(self) -> str:
        """How many faults of each kind counted."""
        return ", ".join(f"{kind} {self.counted[kind]}" for kind in sorted(self.tried))

    def told(self, recovered: tuple[int, float, float]) -> str:
        """What came of it, for people."""
        refused, ends = dict(self.refused), dict(self.ended)
        count, middle, high = recovered
        return (
            f"storm, seed {SEED}: {self.answered:,} calls answered; {self.counted.total()} faults"
            f" of {self.tried.total()} counted ({self.kinds}); ends {ends}; refused"
            f" {refused}; of what was scarce: {scarce.told(self._purses)};"
            f" {self.letters} dead letters; drained in {self.drained_s:.1f} s at most;"
            f" {count} recoveries, median {middle:.0f} ms, p99 {high:.0f} ms;"
            " none lost, none doubled, no wrong amount, no drift"
        )


async def test_nothing_is_lost_doubled_or_wrong_whatever_is_killed_stopped_or_put_back(
    folder: Path, vendor_apart: Vendor
) -> None:
    print(f"\nstorm: seed {SEED}, {STORM_S:.0f} s")
    async with Deployment.started(
        folder, vendor_port=vendor_apart.port, workers=WORKERS, changes=CHANGES
    ) as tollgate:
        keys = [await tollgate.new_key(credit_usd=CREDIT_USD, **terms) for terms in TERMS]
        storm = Storm(tollgate, vendor_apart, keys, await scarce.purses(tollgate))
        loop = asyncio.get_running_loop()
        until_s = loop.time() + STORM_S
        number = 0
        while (left_s := until_s - loop.time()) > 0:
            number += 1
            await storm.round(number, min(left_s, ROUND_S))
            # Whatever the next round finds, so much was exact.
            print(f"round {number} exact: {storm.answered:,} answered; {storm.kinds}")
        storm.assert_hit()
        connection = await tollgate.postgres()
        try:
            print(storm.told(await books.recoveries(connection)))
        finally:
            await connection.close()
