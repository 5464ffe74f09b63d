"""Rules of the flusher as it runs."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis

from ledger.admission import Cap
from ledger.clients import open_redis
from ledger.commit import Position
from ledger.drain import PROVEN_CHANNEL, proof_lines, read_proof
from ledger.fcall import key_names
from ledger.flusher import Flusher, Pace, watermarks
from ledger.functions import Renewal
from ledger.money import Nanos
from ledger.moved import News
from ledger.record import EndKind, encode
from tests.ledger.deployment import Deployment, record_of, until

CAP = Cap("key-1", Nanos(5_000), (0,))


def flusher_of(
    deployment: Deployment, on_epoch: Callable[[int], None], pace: Pace | None = None
) -> Flusher:
    return flusher_at(deployment.url, deployment.redis, on_epoch, pace)


def flusher_at(
    url: str,
    redis: Redis,
    on_epoch: Callable[[int], None] = lambda _: None,
    pace: Pace | None = None,
) -> Flusher:
    return Flusher(
        url,
        redis,
        partitions=range(16),
        clock=time.time,  # noqa: TID251 - a test is its own root
        on_epoch=on_epoch,
        pace=pace,
    )


@asynccontextmanager
async def running(
    deployment: Deployment,
    on_epoch: Callable[[int], None] = lambda _: None,
    pace: Pace | None = None,
) -> AsyncIterator[Flusher]:
    flusher = flusher_of(deployment, on_epoch, pace)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(flusher.run(), name="flusher")
        yield flusher
        task.cancel()


async def test_what_calls_cost_arrives_by_itself(deployment: Deployment) -> None:
    acme = await deployment.active()
    async with running(deployment) as flusher:
        for _ in range(20):
            await deployment.call(acme, 10, (CAP,))

        async def arrived() -> bool:
            return await deployment.balance(acme) == 1_000_000 - 200

        await until(arrived)
    assert flusher.tallies.records == 20
    assert await deployment.differences() == []
    assert await deployment.free(acme) == 1_000_000 - 200


async def test_a_credit_nobody_pushed_is_usable_within_half_a_second(
    deployment: Deployment,
) -> None:
    acme = await deployment.active(credit=100)
    async with running(deployment):

        async def has(amount: int) -> bool:
            return await deployment.free(acme) == amount

        await deployment.credit(acme, 50)
        await until(lambda: has(150))
        await deployment.credit(acme, 50)
        await until(lambda: has(200), within_s=0.5 * 4)  # four times: machines are busy


async def test_overdue_holds_are_ended_and_a_late_end_corrects_them(
    deployment: Deployment,
) -> None:
    acme = await deployment.active()
    call_id = await deployment.hold(acme)
    await deployment.redis.zadd(f"tg:{{p{acme.partition:02d}}}:due", {call_id: 1})
    async with running(deployment) as flusher:

        async def swept() -> bool:
            return await deployment.count("usage_record") == 1

        await until(swept)
        assert flusher.tallies.swept == 1
        assert await deployment.late(acme, call_id, 70) == "late"

        async def corrected() -> bool:
            return await deployment.free(acme) == 1_000_000 - 70

        await until(corrected)
    assert flusher.tallies.corrections == 1
    assert await deployment.balance(acme) == 1_000_000 - 70
    assert await deployment.differences() == []


@pytest.mark.parametrize("is_swept_first", [True, False])
async def test_a_lost_call_costs_the_most_that_anybody_knew_of_it(
    deployment: Deployment, *, is_swept_first: bool
) -> None:
    acme = await deployment.active()
    partition, call_id = deployment.partition(acme), await deployment.hold(acme)
    so_far = encode(record_of(acme, call_id, charge=10))
    await partition.renew(1, [Renewal(call_id, 0, 10, so_far)])
    await deployment.redis.zadd(f"tg:{{p{acme.partition:02d}}}:due", {call_id: 1})
    adopted = deployment.end(acme, call_id, 50)._replace(kind=EndKind.LOST)

    if is_swept_first:
        assert await partition.sweep(1, 10) == 1
        assert (await partition.settle(1, adopted)).outcome == "unknown"
        assert (await partition.late(1, adopted)).outcome == "late"
    else:
        assert (await partition.settle(1, adopted)).outcome == "settled"
        assert await partition.sweep(1, 10) == 0
    await deployment.flush(acme)
    assert (await partition.late(1, adopted)).outcome == "late", "Redis has forgotten the call"
    await deployment.flush(acme)

    (row,) = await deployment.pool.fetch("SELECT kind, charge, is_corrected FROM usage_call")
    assert tuple(row) == ("lost", 50, is_swept_first)
    assert await deployment.count("correction") == is_swept_first
    assert await deployment.balance(acme) == 1_000_000 - 50
    assert await deployment.differences() == []


async def test_it_survives_that_its_connections_are_cut_again_and_again(
    deployment: Deployment,
) -> None:
    acme = await deployment.active()
    async with running(deployment) as flusher, deployment.connected() as killer:
        for _ in range(8):
            for _ in range(5):
                await deployment.call(acme, 1)
            await killer.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = 'tollgate flusher'"
            )

        async def arrived() -> bool:
            return await deployment.balance(acme) == 1_000_000 - 40

        await until(arrived)
    assert flusher.tallies.failures > 0
    assert await deployment.differences() == []


async def test_a_partition_in_trouble_does_not_keep_the_others_waiting(
    deployment: Deployment,
) -> None:
    ill, well = await deployment.active(), await deployment.active()
    assert ill.partition < well.partition
    await deployment.redis.set(f"tg:{{p{ill.partition:02d}}}:log:1", "no stream")
    async with running(deployment) as flusher:
        await deployment.call(well, 10)

        async def arrived() -> bool:
            return await deployment.balance(well) == 1_000_000 - 10

        await until(arrived)

        async def told() -> bool:
            return flusher.tallies.failures > 0

        await until(told)


async def test_an_entry_of_a_newer_release_stops_flushing_alone(deployment: Deployment) -> None:
    acme = await deployment.active()
    await deployment.newer(by=1)
    await deployment.recover(acme)
    log = key_names(acme.partition, await deployment.generation(acme))[-1]
    await deployment.call(acme, 2)
    await deployment.call(acme, 3)
    await deployment.flush(acme)
    await deployment.redis.xadd(log, {"k": "new", "w": acme.id, "c": "7"})
    overdue = await deployment.hold(acme)
    await deployment.redis.zadd(f"tg:{{p{acme.partition:02d}}}:due", {overdue: 1})
    async with running(deployment, pace=Pace(keep_bytes=0)) as flusher:

        async def waits() -> bool:
            return flusher.tallies.trouble.get("cause") == "NewerRelease"

        await until(waits)
        await deployment.credit(acme, 50)

        async def is_swept() -> bool:
            return flusher.tallies.swept == 1

        async def has_credit() -> bool:
            return await deployment.free(acme) == 1_000_000 - 5 + 50

        await until(is_swept)
        await until(has_credit)
    left = await deployment.partition(acme).peek(await deployment.generation(acme), "0-0", 9)
    assert [entry.fields[b"k"] for entry in left][-3:] == [b"new", b"expired", b"base"], (
        "nothing unflushed is trimmed"
    )
    assert await deployment.count("usage_record") == 2
    assert await deployment.count("dead_letter") == 0


async def test_what_moved_is_told_once_it_is_committed(deployment: Deployment) -> None:
    acme = await deployment.active()
    other = await deployment.active()
    async with running(deployment) as flusher:

        async def has_told(wallet: str, *windows: str) -> bool:
            news = flusher.moved.take()
            return news == News(frozenset({wallet}), frozenset(windows))

        await until(lambda: _is_all(flusher))  # of each partition, first: nobody knows what moved
        await deployment.call(acme, 10, (CAP,))
        await until(lambda: has_told(acme.id, "key-1@0"))
        assert await deployment.balance(acme) == 1_000_000 - 10
        await deployment.credit(other, 50)
        await until(lambda: has_told(other.id))


async def _is_all(flusher: Flusher) -> bool:
    """Whether it has met both partitions and told so."""
    if flusher.tallies.rounds < 2:
        return False
    return flusher.moved.take() == News(None, None)


async def test_two_of_them_do_the_work_once(deployment: Deployment) -> None:
    acme = await deployment.active()
    async with running(deployment) as one, running(deployment) as two:
        for _ in range(40):
            await deployment.call(acme, 3)

        async def arrived() -> bool:
            return await deployment.balance(acme) == 1_000_000 - 120

        await until(arrived)
    assert one.tallies.records + two.tallies.records == 40
    assert await deployment.differences() == []


async def test_what_is_not_committed_is_neither_acknowledged_nor_proven(
    deployment: Deployment,
) -> None:
    acme = await deployment.active()
    call_id = await deployment.call(acme, 5)
    flusher = flusher_of(deployment, lambda _: None)
    before = await deployment.watermark(acme)
    async with deployment.connected() as other, other.transaction():
        await other.execute("SELECT FROM part WHERE number = $1 FOR UPDATE", acme.partition)
        assert await flusher.flush_once(acme.partition) == 0
        assert flusher._proven[acme.partition] == before
        assert await deployment.settle(acme, call_id, 5) == "duplicate", "Redis remembers it"

    assert await flusher.flush_once(acme.partition) == 1
    assert flusher._proven[acme.partition] == await deployment.watermark(acme) > before
    assert await deployment.settle(acme, call_id, 5) == "unknown"


async def test_a_partition_that_lost_its_data_is_reported(deployment: Deployment) -> None:
    acme = await deployment.active()
    reported = asyncio.Event()
    ill: set[int] = set()

    def report(partition: int) -> None:
        ill.add(partition)
        if partition == acme.partition:
            reported.set()

    await deployment.redis.flushall()
    async with running(deployment, report), asyncio.timeout(10):
        await reported.wait()
    assert acme.partition in ill


async def test_a_redis_ahead_of_postgres_is_reported(deployment: Deployment) -> None:
    acme = await deployment.active()
    await deployment.pool.execute("UPDATE part SET version = version - 1")
    reported = asyncio.Event()

    def report(partition: int) -> None:
        if partition == acme.partition:
            reported.set()

    async with running(deployment, report), asyncio.timeout(10):
        await reported.wait()


async def test_the_proof_is_published_as_postgres_has_it(deployment: Deployment) -> None:
    acme = await deployment.active()
    async with deployment.redis.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe(PROVEN_CHANNEL)
        proven = None
        async with running(deployment), asyncio.timeout(10):
            await deployment.call(acme, 5)
            async for message in pubsub.listen():
                proven = read_proof(message["data"]).get(acme.partition)
                if proven is not None and proven.stream_id != "0-0":
                    break
    assert proven == await deployment.watermark(acme)
    async with deployment.connected() as connection:
        assert (await watermarks(connection))[acme.partition] == proven


def test_a_proof_is_read_as_it_was_written() -> None:
    proven = {3: Position(2, "17-0"), 4: Position(9, "0-0")}
    assert read_proof(proof_lines(proven).encode()) == proven


async def test_the_last_flush_takes_all_there_is(deployment: Deployment) -> None:
    acme, other = await deployment.active(), await deployment.active()
    for organization in (acme, other, acme):
        await deployment.call(organization, 5)

    await flusher_of(deployment, lambda _: None).flush_rest(within_s=30)

    assert await deployment.count("usage_record") == 3
    assert await deployment.differences() == []


async def test_the_last_flush_gives_a_silent_postgres_up_in_time(redis_url: str) -> None:
    asked = 0

    def count(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        open_ends.append(writer)

    open_ends: list[asyncio.StreamWriter] = []
    async with open_redis(redis_url) as redis:
        server = await asyncio.start_server(count, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        flusher = flusher_at(f"postgresql://u:p@127.0.0.1:{port}/d?sslmode=disable", redis)
        async with asyncio.timeout(5):
            await flusher.flush_rest(within_s=0.2)
        for writer in open_ends:
            writer.close()
        server.close()

    assert asked == 1, "one silence is enough"


async def test_the_last_flush_is_cut_in_the_middle_of_a_transaction(
    deployment: Deployment,
) -> None:
    acme = await deployment.active()
    await deployment.call(acme, 5)
    async with deployment.connected() as other, other.transaction():
        await other.execute("LOCK TABLE usage_record IN ACCESS EXCLUSIVE MODE")
        async with asyncio.timeout(1.5):  # a statement waits 2 s for a lock
            await flusher_of(deployment, lambda _: None).flush_rest(within_s=0.5)

    assert await deployment.count("usage_record") == 0


async def test_one_batch_can_be_flushed_by_hand(deployment: Deployment) -> None:
    acme = await deployment.active()
    await deployment.call(acme, 5)
    flusher = flusher_of(deployment, lambda _: None)
    assert await flusher.flush_once(acme.partition) == 1
    assert await flusher.flush_once(acme.partition) == 0
