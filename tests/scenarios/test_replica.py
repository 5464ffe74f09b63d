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

from ledger.fcall import execute, key_names
from tests.ledger.cluster import Node, Watched, until
from tests.scenarios.deployment import Deployment
from tests.scenarios.machines import Machines
from tests.scenarios.scale import LONG, SEED
from tests.vendor import Vendor

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(900 if LONG else 120)]

STRICT = ("appendfsync always", "min-replicas-to-write 1", "min-replicas-max-lag 10")
PARTITIONS = range(6)
DEATHS = 10 if LONG else 1


async def test_what_was_answered_survives_the_death_of_master_gateway_and_its_disk_at_once(
    folder: Path, vendor_apart: Vendor
) -> None:
    chance = random.Random(SEED)  # noqa: S311 - a test that can be repeated
    # Flushed seldom, or the books would have what Redis loses.
    ledger = {"durability": "replica", "flush_interval_s": 3}
    ahead_bytes = 0
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
                await machines.use_up()
                master = await watched.master()
                # Or it would refuse by itself, and not show what the gateway does.
                await master.ask("CONFIG SET", "min-replicas-to-write", 0)
                replicas = [node for node in watched.nodes if node is not master]
                await asyncio.gather(*(replica.stop_replicating() for replica in replicas))
                ahead_bytes += await _run_ahead(master)
                ends: list[Callable[[], None]] = [master.kill, partial(_kill_at_once, victim)]
                chance.shuffle(ends)
                machines.forget_calls_of(0)
                for end in ends:
                    end()
                await asyncio.gather(*(replica.replicate_again() for replica in replicas))
                shutil.rmtree(victim.data / "journal")
                await victim.start()
                await machines.everybody_answers()
        told = await machines.assert_exact(is_disk_lost=True)
    print(
        f"\nT4 replica, seed {SEED}: {DEATHS} times master and gateway killed at once, its"
        f" journal deleted, {ahead_bytes:,} bytes ahead of its replicas in all: {told}"
    )


async def _run_ahead(master: Node) -> int:
    """Wait until calls have ended that only the master has, and none may be answered; bytes."""
    before, offset = await _ends(master), await master.offset()

    async def has_more() -> bool:
        return await _ends(master) > before

    await until(has_more)
    ahead_bytes = await master.offset() - offset
    assert ahead_bytes > 0, "the replicas may have all that the master has"
    return ahead_bytes


async def _ends(node: Node) -> int:
    """How many entries the logs of all partitions have."""
    found = 0
    for number in PARTITIONS:
        generation = int(await node.client.hget(key_names(number, 0)[0], "gen") or 0)
        found += int(await execute(node.client, "XLEN", key_names(number, generation)[-1]))
    return found


def _kill_at_once(gateway: Deployment) -> None:
    """Every process of it, without a moment in between for one to notice."""
    for pid in [*gateway.pids("worker"), *gateway.pids("control")]:
        os.kill(pid, signal.SIGKILL)
    gateway.kill()
