"""Commands reach the server that has their key, wherever that is by now."""

import asyncio

import pytest
from redis.crc import key_slot
from redis.exceptions import RedisError, ResponseError

from ledger.clients import (
    HOME_KEY,
    ClusterAway,
    ask_all,
    holder,
    is_cluster,
    open_redis,
    primaries,
)
from ledger.fcall import execute, heard
from ledger.topology import SLOTS
from tests.ledger.cluster import Cluster, Watched, until

SLOT = int(key_slot(b"tg:1"))


async def test_one_server_is_all_there_is(redis_url: str) -> None:
    async with open_redis(redis_url) as client:
        assert not is_cluster(client)
        assert await primaries(client) == [client]
        assert await holder(client, "tg:1") is client


async def test_a_cluster_is_used_like_one_server(cluster: Cluster) -> None:
    async with open_redis(cluster.url) as client:
        assert is_cluster(client)
        assert len(await primaries(client)) == 2
        async with client.pipeline(transaction=False) as pipeline:
            for number in range(50):
                _ = pipeline.set(f"tg:{number}", number)
            await pipeline.execute()
        stored = [await client.get(f"tg:{number}") for number in range(50)]
        assert stored == [str(number).encode() for number in range(50)]
        assert len(await execute(client, "TIME")) == 2
        assert await execute(client, "ZADD", HOME_KEY, 1, "me") == 1


async def test_a_node_is_found_again_after_its_keys_have_gone_elsewhere(cluster: Cluster) -> None:
    async with open_redis(cluster.url) as client:
        await client.set("tg:1", "here")
        primary = await cluster.owner(SLOT)
        replica = await cluster.replica_of(primary)
        await replica.ask("CLUSTER", "FAILOVER")

        async def is_master() -> bool:
            return await replica.role() == "master"

        await until(is_master)

        await client.set("tg:1", "there")

        assert await client.get("tg:1") == b"there"
        primary.kill()
        assert await client.get("tg:1") == b"there"


async def test_what_no_node_has_is_away(cluster: Cluster) -> None:
    async with open_redis(cluster.url) as client:
        await client.set("tg:1", "here")
        for node in cluster.nodes:
            if await node.role() == "master":
                await node.ask("CONFIG SET", "cluster-require-full-coverage", "no")
        owner = await cluster.owner(SLOT)
        await owner.ask("CLUSTER", "DELSLOTS", SLOT)

        with pytest.raises(ClusterAway):
            await client.get("tg:1")


async def test_errors_of_a_pipeline_are_raised_or_answered(cluster: Cluster) -> None:
    async with open_redis(cluster.url) as client, client.pipeline(transaction=False) as pipeline:
        await client.set("tg:1", "a text")
        _ = pipeline.incr("tg:1")
        _ = pipeline.get("tg:1")
        answers = await pipeline.execute(raise_on_error=False)
        assert isinstance(answers[0], ResponseError)
        assert answers[1] == b"a text"

        _ = pipeline.incr("tg:1")
        with pytest.raises(ResponseError):
            await pipeline.execute()


async def test_a_node_that_is_away_takes_no_answer_from_the_others(cluster: Cluster) -> None:
    async with open_redis(cluster.url) as client:
        for node in cluster.nodes:
            await node.ask("CONFIG SET", "cluster-require-full-coverage", "no")
        here = next(f"k{n}" for n in range(99) if key_slot(f"k{n}".encode()) >= SLOTS // 2)
        away = next(f"k{n}" for n in range(99) if key_slot(f"k{n}".encode()) < SLOTS // 2)
        await client.set(here, "here")
        gone = await cluster.owner(0)
        replica = await cluster.replica_of(gone)
        gone.kill()
        replica.kill()

        async with client.pipeline(transaction=False) as pipeline:
            _ = pipeline.get(away)
            _ = pipeline.get(here)
            answers = await pipeline.execute(raise_on_error=False)

        assert isinstance(answers[0], RedisError)
        assert answers[1] == b"here"
        told = await ask_all(client, "PING")
        assert [one for one in told if not isinstance(one, RedisError)] == [True]
        assert len(told) == 2


async def test_what_is_said_at_one_node_is_heard_at_all(cluster: Cluster) -> None:
    async with open_redis(cluster.url) as client:
        for _ in cluster.nodes:  # each listens elsewhere
            async with client.pubsub(ignore_subscribe_messages=True) as subscription:
                await subscription.subscribe("tg:news")
                first = asyncio.ensure_future(anext(heard(subscription)))
                while not first.done():
                    await client.publish("tg:news", "some")
                    await asyncio.sleep(0.01)
                assert (await first)["data"] == b"some"


async def test_behind_sentinels_the_master_is_asked_whoever_it_is() -> None:
    async with Watched.started() as watched, open_redis(watched.url) as client:
        await client.set("tg:1", "here")
        before = await watched.master()
        await watched.sentinels[0].ask("SENTINEL FAILOVER", "tollgate")

        async def is_written_elsewhere() -> bool:
            await client.set("tg:1", "there")
            return await watched.master() is not before

        await until(is_written_elsewhere)
        assert await (await watched.master()).client.get("tg:1") == b"there"
