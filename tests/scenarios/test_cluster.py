"""Several gateways on a Cluster of six nodes: slots move and replicas are promoted under load."""

import random
import time
from pathlib import Path
from statistics import median

import pytest

from ledger.fcall import key_names
from ledger.functions import Epoch, Partition
from ledger.junction import slot_of
from tests.ledger.cluster import Cluster, Node, until
from tests.ledger.partitions import hold
from tests.scenarios.machines import Machines
from tests.scenarios.scale import LONG, SEED
from tests.vendor import Vendor

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(1_800 if LONG else 120)]

PARTITIONS = range(6)
MOVES = 30 if LONG else 3
FAILOVERS = 100 if LONG else 3


async def test_two_gateways_on_a_cluster_are_exact_while_slots_move_and_stale_replicas_take_over(
    folder: Path, vendor_apart: Vendor
) -> None:
    print(f"\ncluster: seed {SEED}")
    chance = random.Random(SEED)  # noqa: S311 - a test that can be repeated
    async with (
        Cluster.started() as cluster,
        Machines.started(folder, vendor_apart, redis_url=cluster.url) as machines,
    ):
        storm = Storm(cluster, machines, chance)
        async with machines.loaded():
            for _ in range(MOVES):
                await storm.move_a_slot()
            for _ in range(FAILOVERS):
                await storm.promote_a_stale_replica()
        told = await machines.assert_exact()
    moved, failed = sorted(storm.moved_s), sorted(storm.failed_s)
    print(
        f"T4 cluster, seed {SEED}: {MOVES} slots moved, everybody answered again after"
        f" {median(moved):.2f} s, {moved[-1]:.2f} s at most; {FAILOVERS} stale failovers,"
        f" {storm.behind_bytes:,} bytes behind in all, after {median(failed):.2f} s,"
        f" {failed[-1]:.2f} s at most; EPOCH before the first admission in all {storm.fenced}"
        f" partitions of theirs; {told}"
    )


class Storm:
    """What is done to the Cluster while callers go on."""

    def __init__(self, cluster: Cluster, machines: Machines, chance: random.Random) -> None:
        self._cluster, self._machines, self._chance = cluster, machines, chance
        self.moved_s: list[float] = []
        self.failed_s: list[float] = []
        self.fenced = 0  # partitions that refused what their old data would have admitted
        self.behind_bytes = 0  # what promoted replicas had not got

    async def move_a_slot(self) -> None:
        """Move a partition to another primary."""
        slot = slot_of(self._chance.choice(PARTITIONS))
        source = await self._cluster.owner(slot)
        others = [
            node
            for node in self._cluster.nodes
            if node is not source and await node.role() == "master"
        ]
        began_s = time.monotonic()
        await self._cluster.move(slot, self._chance.choice(others))
        await self._machines.everybody_answers()
        self.moved_s.append(time.monotonic() - began_s)

    async def promote_a_stale_replica(self) -> None:
        """A replica that lags takes over while its primary lives, as in a partitioned network."""
        primary = await self._cluster.owner(slot_of(self._chance.choice(PARTITIONS)))
        replica = await self._cluster.replica_of(primary)
        at = [
            number for number in PARTITIONS if await self._cluster.owner(slot_of(number)) is primary
        ]
        await replica.stop_replicating()
        await self._machines.everybody_answers()  # so each partition has ends that it lacks
        await self._machines.use_up()
        generations = {number: await _generation(primary, number) for number in at}
        behind_bytes = await primary.offset() - await replica.offset()
        assert behind_bytes > 0, "the replica has all that its primary has"
        self.behind_bytes += behind_bytes
        began_s = time.monotonic()
        await replica.ask("CLUSTER", "FAILOVER", "TAKEOVER")
        for number, generation in generations.items():
            # However early one asks, nobody is admitted by what it lacks.
            with pytest.raises(Epoch):
                await Partition(replica.client, number).hold(generation, hold(1))
            self.fenced += 1
        await replica.replicate_again()
        await self._machines.everybody_answers()
        self.failed_s.append(time.monotonic() - began_s)
        for number, generation in generations.items():
            assert await _generation(replica, number) > generation, "admitted without a recovery"
        await until(self._cluster.is_whole)


async def _generation(node: Node, number: int) -> int:
    """Of a partition, as a primary has it."""
    return int(await node.client.hget(key_names(number, 0)[0], "gen") or 0)
