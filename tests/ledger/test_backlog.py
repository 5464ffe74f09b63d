"""What Postgres has not got yet is counted, and too much of it closes partitions."""

import pytest
from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import RedisError

from ledger.admission import Held
from ledger.backlog import _DUE, _META, Backlog, Count, Limits, read_over
from ledger.clients import open_redis
from ledger.fcall import key_names
from ledger.functions import Partition
from tests.ledger.cluster import Cluster
from tests.ledger.partitions import NUMBER, end_of, hold


async def end_calls(partition: Partition, count: int) -> None:
    """So many calls, held and ended."""
    for _ in range(count):
        held = hold(1)
        assert isinstance(await partition.hold(1, held), Held)
        await partition.settle(1, end_of(held, 1))


async def test_what_the_flusher_has_not_written_is_counted(
    client: Redis, partition: Partition
) -> None:
    backlog = Backlog(client, partitions=[NUMBER], limits=Limits(100))
    await end_calls(partition, 5)
    added = await backlog.added(NUMBER, 1)
    backlog.took(NUMBER, 1, read=5, wrote=3, added=added)

    await backlog.count()

    assert backlog.counts == {NUMBER: Count(unflushed=2, open_holds=0)}


async def test_until_it_is_known_all_that_the_stream_holds_counts(
    client: Redis, partition: Partition
) -> None:
    backlog = Backlog(client, partitions=[NUMBER], limits=Limits(100))
    await end_calls(partition, 4)
    await partition.hold(1, hold(1))

    await backlog.count()

    assert backlog.counts[NUMBER] == Count(unflushed=4, open_holds=1)


async def test_only_partitions_above_their_share_are_closed_and_only_when_all_are_too_many(
    client: Redis,
) -> None:
    backlog = Backlog(client, partitions=[0, 1], limits=Limits(10))
    backlog.counts = {0: Count(10, 0), 1: Count(0, 0)}
    assert backlog.over() == []

    backlog.counts = {0: Count(10, 0), 1: Count(1, 0)}
    assert backlog.over() == [0]


async def test_memory_that_runs_out_closes_the_partitions_that_fill_it(
    client: Redis, partition: Partition
) -> None:
    await end_calls(partition, 1)
    used = int((await client.info("memory"))["used_memory"])
    backlog = Backlog(client, partitions=[NUMBER, 0], limits=Limits(10**6, memory_share_max=0.7))
    try:
        for times, is_over in ((4, False), (1.25, True)):
            await client.config_set("maxmemory", int(used * times))
            await backlog.count()
            backlog.counts = {NUMBER: Count(2_000, 0), 0: Count(5, 0)}
            assert backlog.over() == ([NUMBER] if is_over else [])
            backlog.counts = {NUMBER: Count(20, 0), 0: Count(5, 0)}
            assert backlog.over() == [], "what fills Redis is no backlog"
    finally:
        await client.config_set("maxmemory", 0)


@pytest.mark.parametrize("counts", [[80_000], [5_000] * 16, [4_990] * 8 + [5_010] * 8])
async def test_memory_that_runs_out_closes_even_loads_too(client: Redis, counts: list[int]) -> None:
    numbers = range(len(counts))
    backlog = Backlog(client, partitions=numbers, limits=Limits(10**6, memory_share_max=0.7))
    used = int((await client.info("memory"))["used_memory"])
    try:
        await client.config_set("maxmemory", int(used * 1.25))
        await backlog.count()
        backlog.counts = {number: Count(counts[number], 0) for number in numbers}
        assert backlog.over() == [*numbers]
    finally:
        await client.config_set("maxmemory", 0)


async def test_a_backlog_worries_before_it_closes_anything(client: Redis) -> None:
    backlog = Backlog(client, partitions=[0], limits=Limits(10, warn_share=0.5))
    for entries, is_worrying in ((5, False), (6, True)):
        backlog.counts = {0: Count(entries, 0)}
        assert (backlog.is_worrying, backlog.over()) == (is_worrying, [])


async def test_of_a_cluster_a_node_that_is_away_hides_what_it_has_and_nothing_else(
    cluster: Cluster,
) -> None:
    gone, whole = cluster.nodes[:2]
    for node in (gone, whole):
        await node.ask("CONFIG SET", "cluster-require-full-coverage", "no")
    async with open_redis(cluster.url) as client:
        owners = [await cluster.owner(key_slot(key_names(n, 1)[0].encode())) for n in range(20)]
        at_gone, elsewhere = owners.index(gone), owners.index(whole)
        backlog = Backlog(client, partitions=[at_gone, elsewhere], limits=Limits(10**6))
        for number in (at_gone, elsewhere):
            await client.hset(key_names(number, 1)[0], "gen", 1)
            await client.xadd(key_names(number, 1)[-1], {"k": "settled"})
        assert await backlog.count() is None
        for node in (await cluster.replica_of(gone), gone):
            node.kill()
        await client.xadd(key_names(elsewhere, 1)[-1], {"k": "settled"})
        await whole.ask("CONFIG SET", "maxmemory", "2mb")  # and it uses more

        said = await backlog.count()

        assert isinstance(said, RedisError)
        assert backlog.counts == {at_gone: Count(1, 0), elsewhere: Count(2, 0)}
        backlog.counts = {elsewhere: Count(2_000, 0)}
        assert backlog.fill > 1, "the memory that counts is that of the fullest node"


async def test_a_partition_without_a_stream_has_no_backlog(client: Redis) -> None:
    backlog = Backlog(client, partitions=[0], limits=Limits(10))

    await backlog.count()

    assert backlog.counts == {0: Count(0, 0)}


@pytest.mark.parametrize("key", [_META, _DUE, -1])
async def test_what_redis_refuses_to_say_is_told_and_hides_nothing_else(
    client: Redis, partition: Partition, key: int
) -> None:
    await end_calls(partition, 1)
    await client.set(key_names(0, 0)[key], "not what it should be")
    backlog = Backlog(client, partitions=[0, NUMBER], limits=Limits(10))

    said = await backlog.count()

    assert isinstance(said, RedisError)
    assert backlog.counts == {NUMBER: Count(1, 0)}


def test_what_is_told_is_understood() -> None:
    assert read_over(b"0 7 12") == {0, 7, 12}
    assert read_over(b"") == frozenset()
