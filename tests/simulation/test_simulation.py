"""Thousands of seeds: whatever the network, the server and the processes do, the books are right.

A seed that fails fails again: SIMULATED=<seed> runs it alone. Short form: 500; LONG=1: 20,000.
"""

import asyncio
import logging
import os
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.scenarios.scale import LONG, SEED
from tests.simulation.clockwork import Clockwork
from tests.simulation.world import World

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(14_400 if LONG else 180)]

SEEDS = 20_000 if LONG else 500
ALONE = os.environ.get("SIMULATED")  # noqa: TID251 - chosen by whoever runs the tests
_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - journals, quickly


def simulated(seed: int) -> World:
    """The world of a seed, after its end; what goes wrong says which it was."""
    random.seed(seed)  # the conveyor's pauses between connections
    with (
        tempfile.TemporaryDirectory(dir=_MEMORY) as folder,
        asyncio.Runner(loop_factory=Clockwork) as runner,
    ):

        async def run() -> World:
            world = World(seed, Path(folder))
            await world.run()
            return world

        try:
            return runner.run(run())
        except BaseException as error:
            raise AssertionError(f"seed {seed}: SIMULATED={seed} runs it alone") from error


def history(world: World) -> tuple[object, ...]:
    """All that came of it."""
    return (
        world.answered,
        world.books.known,
        (world.books.base, world.books.spent, world.books.position),
        (world.kills, world.losses, world.recoveries, world.net.faults, world.refused),
        world._loop.time(),
    )


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """What the parts have to say of a thousand outages is not read by anybody."""
    for part in ("ledger", "gateway"):
        caplog.set_level(logging.CRITICAL, part)


def test_whatever_the_seed_every_call_is_recorded_once_and_the_wallet_is_its_records() -> None:
    seeds = [int(ALONE)] if ALONE else range(SEED * 1_000_000, SEED * 1_000_000 + SEEDS)
    began_s, sums = time.monotonic(), Counter[str]()
    print(f"\nsimulation: seeds from {seeds[0]}")
    for seed in seeds:
        world = simulated(seed)
        sums.update(
            answered=len(world.answered),
            dispatched=len(world.dispatched),
            kills=world.kills,
            losses=world.losses,
            recoveries=world.recoveries,
            network=world.net.faults,
            refused=world.refused,
        )
    assert ALONE or min(sums.values()) > 0
    print(
        f"simulation, seeds {seeds[0]} + {len(seeds):,}: {sums['dispatched']:,} calls sent,"
        f" {sums['answered']:,} answered, {sums['refused']:,} refused; {sums['kills']:,} kills,"
        f" {sums['losses']:,} flushes and stale failovers, {sums['network']:,} network faults,"
        f" {sums['recoveries']:,} recoveries; 0 lost, 0 doubled, 0 wrong, 0 overdrawn;"
        f" {time.monotonic() - began_s:.0f} s"
    )


def test_a_seed_is_the_same_world_again() -> None:
    for seed in range(SEED, SEED + 20):
        assert history(simulated(seed)) == history(simulated(seed))
