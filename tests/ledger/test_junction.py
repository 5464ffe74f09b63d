"""Partitions on a Cluster: each is served by the node that has its slot."""

import asyncio

import pytest

from ledger.admission import Held
from ledger.clients import open_redis
from ledger.functions import Epoch, Partition, install
from ledger.junction import slot_of
from tests.ledger.cluster import Cluster
from tests.ledger.line import Line, nothing_is_held, until
from tests.ledger.partitions import NUMBER, end_of, hold, ready, recovered


async def test_a_partition_is_served_where_its_slot_is_and_fenced_where_it_goes(
    cluster: Cluster,
) -> None:
    async with open_redis(cluster.url) as client:
        partition = await ready(client)
        line = Line(cluster.url)
        async with line.running() as conveyor:
            one = hold(300)
            assert await conveyor.hold(one, deadline_s=5.0) == Held(1, 700)
            target = await cluster.other(await cluster.owner(slot_of(NUMBER)))

            await cluster.move(slot_of(NUMBER), target)

            asked = asyncio.ensure_future(conveyor.hold(hold(100), deadline_s=5.0))
            await until(lambda: NUMBER in line.epochs)
            assert not asked.done(), "admitted before a recovery"
            with pytest.raises(Epoch):
                await Partition(target.client, NUMBER).hold(1, hold(1))
            await recovered(partition, 2)
            assert isinstance(await asked, Held)
            conveyor.settle(end_of(one, 300))
            assert await conveyor.drain(5.0) == 0


async def test_what_a_dead_node_did_not_answer_is_done_by_the_one_that_takes_over(
    cluster: Cluster,
) -> None:
    async with open_redis(cluster.url) as client:
        partition = await ready(client)
        line = Line(cluster.url)
        async with line.running() as conveyor:
            await conveyor.hold(one := hold(300), deadline_s=5.0)
            primary = await cluster.owner(slot_of(NUMBER))
            replica = await cluster.replica_of(primary)
            primary.kill()
            conveyor.settle(end_of(one, 120))

            await replica.ask("CLUSTER", "FAILOVER", "TAKEOVER")

            await until(lambda: NUMBER in line.epochs)
            await recovered(partition, 2)
            assert await conveyor.drain(10.0) == 0
            assert [settled.generation for settled in line.settled] == [2]
            await nothing_is_held(partition, 2)


async def test_the_partitions_of_other_nodes_go_on_while_one_is_dead() -> None:
    async with (
        Cluster.started("cluster-require-full-coverage no", primaries=2) as cluster,
        open_redis(cluster.url) as client,
    ):
        await ready(client)
        line = Line(cluster.url)
        async with line.running() as conveyor:
            assert isinstance(await conveyor.hold(hold(1), deadline_s=5.0), Held)
            other = await cluster.other(await cluster.owner(slot_of(NUMBER)))
            (await cluster.replica_of(other)).kill()
            other.kill()

            await install(client)  # where it can
            assert isinstance(await conveyor.hold(hold(1)), Held)
            assert conveyor.admits
            assert len(conveyor.inactive) == line.partitions - 1
