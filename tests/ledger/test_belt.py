"""One connection's batches; what its lanes make of the answers is proved with them."""

import asyncio

from ledger.admission import Held
from ledger.clients import open_redis
from tests.ledger.cluster import followed
from tests.ledger.line import Line
from tests.ledger.partitions import end_of, hold, ready


async def test_an_end_is_settled_once_a_replica_has_it_on_its_disk() -> None:
    async with (
        followed("appendfsync always") as (master, replica),
        open_redis(url := f"redis://{master.host}") as client,
    ):
        await ready(client)
        line = Line(url, needs_replica=True)
        async with line.running() as conveyor:
            first, second = hold(10), hold(20)
            for one in (first, second):
                assert isinstance(await conveyor.hold(one, deadline_s=5.0), Held)
            conveyor.settle(end_of(first, 10))
            assert await conveyor.drain(5.0) == 0

            await replica.stop_replicating()
            conveyor.settle(end_of(second, 20))
            assert await conveyor.drain(1.0) == 1, "told as settled though one server has it"
            assert len(line.settled) == 1

            await replica.replicate_again()
            assert await conveyor.drain(20.0) == 0
            assert [end.call_id for end in line.settled[-1].ends] == [second.call_id]


async def test_holds_do_not_wait_for_a_replica() -> None:
    async with (
        followed("appendfsync always") as (master, replica),
        open_redis(url := f"redis://{master.host}") as client,
    ):
        await ready(client)
        async with Line(url, needs_replica=True).running() as conveyor:
            await conveyor.hold(hold(1), deadline_s=5.0)
            await replica.stop_replicating()

            async with asyncio.timeout(1.0):
                assert isinstance(await conveyor.hold(hold(1)), Held)


async def test_a_server_that_says_at_once_that_it_writes_no_file_is_not_asked_all_the_time() -> (
    None
):
    async with (
        followed("appendfsync always") as (master, _),
        open_redis(url := f"redis://{master.host}") as client,
    ):
        await ready(client)
        line = Line(url, needs_replica=True)
        async with line.running() as conveyor:
            await conveyor.hold(one := hold(10), deadline_s=5.0)
            await client.config_set("appendonly", "no")
            before = len(line.batches)
            conveyor.settle(end_of(one, 10))
            assert await conveyor.drain(1.0) == 1
            assert len(line.batches) - before < 100, "thousands, at the speed of the network"

            await client.config_set("appendonly", "yes")
            assert await conveyor.drain(20.0) == 0
