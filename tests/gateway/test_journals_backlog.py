"""Of what nobody proved while Postgres was away, little is in memory at any time."""

import asyncio
from pathlib import Path

from redis.asyncio import Redis

from gateway.journals import Journals
from ledger.conveyor import Conveyor
from ledger.functions import Entry, Partition, WalletState
from ledger.journal import Journal
from tests.gateway.proxy.gatehouse import CREDIT, WALLET
from tests.gateway.worker import call_id, ended, opened, working
from tests.vendor import Vendor

FEW, MANY = 40, 1_000  # ends that may wait, and ends that do


def many_left_behind(folder: Path, *, worker: str, first: int = 1) -> range:
    """The journal of a worker that died with `MANY` ends that nobody proved; their numbers."""
    dead, numbers = Journal.create(folder, worker=worker), range(first, first + MANY)
    for number in numbers:
        dead.dispatched(opened(number))
        dead.finished(ended(number))
    dead.close()
    return numbers


async def found(redis: Redis, generation: int, count: int, conveyor: Conveyor) -> list[Entry]:
    """The ends in the stream, once there are so many; never do too many wait for it."""
    async with asyncio.timeout(20):
        while True:
            entries = await Partition(redis, 0).peek(generation, "0-0", 10 * MANY)
            assert conveyor.unanswered_count <= FEW
            if len(entries) >= count:
                return entries
            await asyncio.sleep(0.005)


async def filled(conveyor: Conveyor) -> None:
    """Wait until the conveyor has as many ends as may wait, and see that there come no more."""
    async with asyncio.timeout(10):
        while conveyor.unanswered_count < FEW:
            await asyncio.sleep(0.005)
    for _ in range(200):
        await asyncio.sleep(0)
        assert conveyor.unanswered_count == FEW


async def looked_for_orphans(journals: Journals) -> None:
    """Have it look once more; when it rests for the second time, it has."""
    async with asyncio.timeout(10):
        for _ in range(2):
            journals._has_told.set()
            while journals._has_told.is_set():
                await asyncio.sleep(0.001)


async def owed(partition: Partition, generation: int) -> list[int]:
    """What is held as sums, those of the older generations first; once there is this one's."""
    async with asyncio.timeout(10):
        while len(sums := await partition.open_holds(generation)) < generation - 1:
            await asyncio.sleep(0.005)
    return [one.amount for one in sums]


async def activate(redis: Redis, generation: int) -> None:
    partition = Partition(redis, 0)
    await partition.load(generation, [WalletState(WALLET, CREDIT, 0, generation)])
    await partition.activate(generation, generation)


async def test_orphans_are_read_one_after_another_as_fast_as_redis_answers(
    redis: Redis, redis_url: str, tmp_path: Path, vendor: Vendor
) -> None:
    numbers = [
        *many_left_behind(tmp_path, worker="dead-1"),
        *many_left_behind(tmp_path, worker="dead-2", first=1 + MANY),
    ]
    await Partition(redis, 0).freeze(2)  # and nothing is answered
    working_on = working(redis, redis_url, tmp_path, vendor, unanswered_max=FEW)
    async with working_on as (journals, conveyor, _):
        await filled(conveyor)
        await looked_for_orphans(journals)
        assert len(journals._adopted) == 1
        await activate(redis, 2)

        ends = await found(redis, 2, len(numbers), conveyor)

        assert {entry.fields[b"i"] for entry in ends} == {call_id(one) for one in numbers}
        assert len(ends) == len(numbers), "none twice"
        assert len(journals._adopted) == 2


async def test_an_orphan_that_cannot_be_read_pins_nothing(
    redis: Redis, redis_url: str, tmp_path: Path, vendor: Vendor
) -> None:
    partition, orphan = Partition(redis, 0), Journal.create(tmp_path, worker="dead")
    for number in range(10, 10 + FEW):
        orphan.finished(ended(number))
    orphan.dispatched(opened(2)._replace(ticket=b"no record"))
    working_on = working(redis, redis_url, tmp_path, vendor, unanswered_max=FEW)
    async with working_on as (journals, conveyor, journal):
        journal.finished(ended(1))
        conveyor.settle(ended(1))
        assert await conveyor.drain(10) == 0
        await redis.flushall()
        await partition.freeze(2)
        conveyor.look(0)
        assert await owed(partition, 2) == [5]
        orphan.close()
        await looked_for_orphans(journals)
        assert len(journals._adopted) == 1, "it waits for room before its end is read"
        await partition.freeze(3)
        conveyor.look(0)
        assert len(await owed(partition, 3)) == 2
        await activate(redis, 3)

        await found(redis, 3, 1 + FEW, conveyor)
        async with asyncio.timeout(10):
            while await redis.zcard("tg:{p00}:due"):
                await asyncio.sleep(0.005)
        assert not journals._adopted


async def test_what_ended_calls_owe_is_held_before_they_are_told_again(
    redis: Redis, redis_url: str, tmp_path: Path, vendor: Vendor
) -> None:
    partition, numbers = Partition(redis, 0), range(1, 1 + MANY)
    working_on = working(redis, redis_url, tmp_path, vendor, unanswered_max=FEW)
    async with working_on as (_, conveyor, journal):
        for number in numbers:
            journal.dispatched(opened(number))
            journal.finished(ended(number))
            conveyor.settle(ended(number))
        assert await conveyor.drain(10) == 0
        await redis.flushall()
        for generation in (2, 3):  # and the second in the middle of the first
            await partition.freeze(generation)
            conveyor.look(0)
            await filled(conveyor)
            assert await owed(partition, generation) == [5 * MANY] * (generation - 1)
        await activate(redis, 3)

        ends = await found(redis, 3, MANY, conveyor)
        async with asyncio.timeout(10):
            while await redis.zcard("tg:{p00}:due"):
                await asyncio.sleep(0.005)

    assert {entry.fields[b"i"] for entry in ends} == {call_id(one) for one in numbers}
    assert {entry.fields[b"m"] for entry in ends} == {b"1"}, "each is taken from what was held"
    (wallet,) = (await partition.snap(3, [WALLET])).wallets
    assert (wallet.held, wallet.spent) == (0, 5 * MANY)
