"""A master that was replaced is left, though it goes on answering; the newest failover counts."""

import asyncio

import pytest

from ledger.admission import Held
from ledger.clients import follow, open_redis
from ledger.fcall import execute
from ledger.functions import Partition
from ledger.location import Location
from ledger.sentinels import Sentinels, View, newest
from ledger.wire import WireError
from tests.ledger.cluster import Watched, until
from tests.ledger.line import Line, nothing_is_held
from tests.ledger.line import until as heard
from tests.ledger.partitions import NUMBER, end_of, hold, ready, recovered


def test_the_newest_failover_counts_whoever_tells_it() -> None:
    told = [View(1, "old:1"), View(1, "old:1"), View(2, "new:1")]
    assert newest(told, of=3, known="old:1") == "new:1"
    assert newest(told[::-1], of=3, known="") == "new:1"


def test_of_one_failover_what_most_say_counts() -> None:
    assert newest([View(1, "b:1"), View(1, "a:1"), View(1, "a:1")], of=3, known="b:1") == "a:1"


def test_too_few_change_no_mind_and_make_up_an_empty_one() -> None:
    assert newest([View(9, "b:1")], of=3, known="a:1") == "a:1"
    assert newest([View(9, "b:1")], of=3, known="") == "b:1"


def test_sentinels_that_were_set_up_anew_are_believed() -> None:
    assert newest([View(0, "b:1")] * 2, of=3, known="a:1") == "b:1"


async def test_a_master_is_the_one_that_says_so_itself() -> None:
    async with Watched.started() as watched:
        sentinels = Sentinels(Location.parse(watched.url))
        before = await watched.master()
        (await sentinels.open(timeout_s=1.0)).close()
        # The Sentinels do not know yet that it follows another.
        other = next(node for node in watched.nodes if node is not before)
        await before.ask("REPLICAOF", "127.0.0.1", other.port)

        with pytest.raises(WireError, match="no master"):
            await sentinels.open(timeout_s=1.0)
        sentinels.close()


async def test_sentinels_that_do_not_answer_are_said() -> None:
    with pytest.raises(WireError, match="Sentinel"):
        await Sentinels(Location.parse("redis+sentinel://127.0.0.1:1/main")).look()


async def test_a_name_that_no_sentinel_knows_is_said() -> None:
    async with Watched.started() as watched:
        sentinels = Sentinels(Location.parse(watched.url.replace("/tollgate", "/another")))
        with pytest.raises(WireError, match="No such master"):
            await sentinels.look()
        sentinels.close()


async def test_one_that_is_stopped_keeps_nobody_waiting() -> None:
    async with Watched.started() as watched:
        sentinels = Sentinels(Location.parse(watched.url))
        watched.sentinels[-1].pause()
        assert await sentinels.look() == (await watched.master()).host
        watched.sentinels[-1].resume()
        sentinels.close()


async def test_calls_leave_a_master_that_was_replaced_and_lives() -> None:
    async with Watched.started() as watched, open_redis(watched.url) as client:
        await ready(client)
        line = Line(watched.url)
        async with line.running() as conveyor:
            one = hold(300)
            assert await conveyor.hold(one, deadline_s=5.0) == Held(1, 700)

            old, new = await watched.split()

            await heard(lambda: NUMBER in line.epochs)
            assert await old.role() == "master"
            await recovered(partition := Partition(new.client, NUMBER), 2)
            conveyor.settle(end_of(one, 300))
            assert await conveyor.drain(5.0) == 0
            assert [settled.generation for settled in line.settled] == [2]
            await nothing_is_held(partition, 2)


async def test_clients_leave_it_too_with_their_subscriptions() -> None:
    async with (
        Watched.started() as watched,
        open_redis(watched.url) as client,
        client.pubsub(ignore_subscribe_messages=True) as subscription,
        asyncio.TaskGroup() as group,
    ):
        following = group.create_task(follow(client))
        await subscription.subscribe("news")
        old, new = await watched.split()
        assert await old.role() == "master"

        async def is_there() -> bool:
            return bool((await execute(client, "INFO", "server"))["tcp_port"] == new.port)

        await until(is_there)
        told: list[bytes] = []

        async def hears() -> bool:
            await execute(new.client, "PUBLISH", "news", "hello")
            message = await subscription.get_message(timeout=0.1)
            told.extend([message["data"]] if message else [])
            return b"hello" in told

        await until(hears)
        following.cancel()
