"""Mode `replica`: master, gateway and its disk go at once, and no answered call is lost."""

import asyncio
import os
import random
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.ledger.cluster import Watched, until
from tests.scenarios.deployment import Deployment
from tests.scenarios.machines import Machines
from tests.scenarios.scale import LONG, SEED
from tests.vendor import Vendor

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(900 if LONG else 120)]

STRICT = ("appendfsync always", "min-replicas-to-write 1", "min-replicas-max-lag 10")
DEATHS = 10 if LONG else 1
AHEAD_S = 0.5


async def test_what_was_answered_survives_the_death_of_master_gateway_and_its_disk_at_once(
    folder: Path, vendor_apart: Vendor
) -> None:
    chance = random.Random(SEED)  # noqa: S311 - a test that can be repeated
    # Flushed seldom, or the books would have what Redis loses.
    ledger = {"durability": "replica", "flush_interval_s": 3}
    async with (
        Watched.started(*STRICT) as watched,
        Machines.started(folder, vendor_apart, redis_url=watched.url, ledger=ledger) as machines,
    ):
        victim = machines.deployments[0]
        async with machines.loaded():
            master = await watched.master()
            for number in range(DEATHS):
                if number:
                    await master.start()
                    await until(watched.is_whole)
                await machines.answers(100)
                master = await watched.master()
                # Or it would refuse by itself, and not show what the gateway does.
                await master.ask("CONFIG SET", "min-replicas-to-write", 0)
                replicas = [node for node in watched.nodes if node is not master]
                await asyncio.gather(*(replica.stop_replicating() for replica in replicas))
                # For so long calls end that only the master has, and none may be answered.
                await asyncio.sleep(AHEAD_S)
                ends: list[Callable[[], None]] = [master.kill, partial(_kill_at_once, victim)]
                chance.shuffle(ends)
                for end in ends:
                    end()
                await asyncio.gather(*(replica.replicate_again() for replica in replicas))
                shutil.rmtree(victim.data / "journal")
                await victim.start()
                await machines.everybody_answers()
        told = await machines.assert_exact(is_disk_lost=True)
    print(
        f"\nT4 replica, seed {SEED}: {DEATHS} times master and gateway killed at once, its"
        f" journal deleted: {told}"
    )


def _kill_at_once(gateway: Deployment) -> None:
    """Every process of it, without a moment in between for one to notice."""
    for pid in [*gateway.pids("worker"), *gateway.pids("control")]:
        os.kill(pid, signal.SIGKILL)
    gateway.kill()
