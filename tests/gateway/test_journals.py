"""What a worker does about journals: its own, and those that dead processes left."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from gateway.journals import Journals, lost_end
from ledger.admission import End, Held, Hold
from ledger.clients import open_redis
from ledger.conveyor import Conveyor
from ledger.drain import PROVEN_CHANNEL
from ledger.frames import OpenCall
from ledger.functions import Entry, Partition, WalletState, install
from ledger.journal import Journal
from ledger.money import Nanos
from ledger.record import EndKind, Outcome, Record, decode, encode
from ledger.segments import Folder
from tests.gateway.proxy.gatehouse import CREDIT, WALLET, configured, sheet_of
from tests.vendor import Vendor


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A Valkey with one active partition and one wallet."""
    client = open_redis(redis_url)
    await install(client)
    partition = Partition(client, 0)
    await partition.freeze(1)
    await partition.load(1, [WalletState(WALLET, CREDIT, 0, 1)])
    await partition.activate(1, 1)
    yield client
    await client.aclose()


FEW, MANY = 40, 1_000  # ends that may wait, and ends that do


def call_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def ticket(number: int, *, input_tokens: int = 100) -> bytes:
    return encode(
        Record(
            call_id=call_id(number),
            organization_id=WALLET,
            project_id="p",
            key_id="k",
            member_id="",
            admitted_us=1_700_000_000_000_000,
            operation="chat/completions",
            provider="vendor",
            model_requested="m",
            model_target="m",
            price_version="",
            held=1_000_000,
            usage={"input": input_tokens},
        )
    )


def opened(number: int) -> OpenCall:
    return OpenCall(call_id(number), 0, WALLET, 1_000_000, (), ticket(number))


def ended(number: int, charge: int = 5) -> End:
    record = ticket(number)
    return End(call_id(number), 0, WALLET, EndKind.SETTLED, Nanos(charge), record)


def left_behind(folder: Path) -> Path:
    """The journal of a worker that died with one call open."""
    dead = Journal.create(folder, worker="dead")
    dead.dispatched(opened(1))
    dead.close()
    (left,) = folder.glob("dead*")
    return left


async def prove(redis: Redis, *, until: Callable[[], bool]) -> None:
    """Say again and again that Postgres has that call's end."""
    (end,) = await entries(redis, 1)
    async with asyncio.timeout(15):
        while not until():
            await redis.publish(PROVEN_CHANNEL, f"0 1 {end.id}")
            await asyncio.sleep(0.01)


@asynccontextmanager
async def working(
    redis: Redis, redis_url: str, folder: Path, vendor: Vendor, *, unanswered_max: int = 20_000
) -> AsyncIterator[tuple[Journals, Conveyor, Journal]]:
    """The journals of a worker with a conveyor that runs."""
    sheet = sheet_of(configured(vendor))
    journal = Journal.create(folder, worker="here")
    journals = Journals(journal, folder, prices=lambda: sheet, unanswered_max=unanswered_max)
    conveyor = Conveyor(
        redis_url,
        partitions=1,
        on_settled=journals.on_settled,
        on_generation=journals.on_generation,
    )
    journals.attach(conveyor)
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(conveyor.run(), name="conveyor"),
            group.create_task(journals.hear_proofs(redis), name="proofs"),
            group.create_task(journals.retell(redis), name="retell"),
            group.create_task(journals.hand_over(), name="hand over"),
            group.create_task(journals.adopt_orphans(), name="orphans"),
        ]
        yield journals, conveyor, journal
        for task in tasks:
            task.cancel()
    journals.release()
    journal.close()


async def entries(redis: Redis, count: int) -> list[Entry]:
    """The ends in the stream, once there are so many."""
    async with asyncio.timeout(10):
        while True:
            found = await Partition(redis, 0).peek(1, "0-0", 100)
            ends = [entry for entry in found if entry.fields[b"k"] != b"base"]
            if len(ends) >= count:
                return ends
            await asyncio.sleep(0.02)


async def test_what_a_dead_process_left_is_sent_and_its_open_calls_end_as_lost(
    redis: Redis, redis_url: str, tmp_path: Path, vendor: Vendor
) -> None:
    dead = Journal.create(tmp_path, worker="dead")
    for number in (1, 2):
        dead.dispatched(opened(number))
    dead.finished(ended(1))
    dead.close()

    async with working(redis, redis_url, tmp_path, vendor):
        ends = await entries(redis, 2)

    kinds = {entry.fields[b"i"]: entry.fields[b"k"] for entry in ends}
    assert kinds == {call_id(1): b"settled", call_id(2): b"lost"}
    assert {entry.fields[b"m"] for entry in ends} == {b"0"}, "their holds are unknown: late"


async def test_an_adopted_journal_goes_once_postgres_has_all_of_it(
    redis: Redis, redis_url: str, tmp_path: Path, vendor: Vendor
) -> None:
    left = left_behind(tmp_path)
    async with working(redis, redis_url, tmp_path, vendor) as (journals, _, _):
        await prove(redis, until=lambda: not journals.unproven_count and not left.exists())


async def test_a_folder_that_cannot_be_read_keeps_nobody_from_the_others(
    redis: Redis,
    redis_url: str,
    tmp_path: Path,
    vendor: Vendor,
    caplog: pytest.LogCaptureFixture,
) -> None:
    not_a_lock = tmp_path / "a-folder" / "lock"
    not_a_lock.mkdir(parents=True)
    no_segment = tmp_path / "b-folder"
    no_segment.mkdir()
    (no_segment / "lock").touch()
    (no_segment / "00000001.journal").mkdir()
    left = left_behind(tmp_path)

    async with working(redis, redis_url, tmp_path, vendor) as (journals, _, _):
        await prove(redis, until=lambda: not journals.unproven_count and not left.exists())

    records = [one for one in caplog.records if "cannot be read" in one.message]
    told = [vars(record)["journal"] for record in records]
    assert told == ["a-folder", "b-folder"], "once each"
    claimed = Folder.claim(no_segment)
    assert claimed is not None, "it is left to others"
    claimed.release()


async def test_a_journal_that_cannot_be_deleted_is_told_and_left(
    redis: Redis,
    redis_url: str,
    tmp_path: Path,
    vendor: Vendor,
    caplog: pytest.LogCaptureFixture,
) -> None:
    left = left_behind(tmp_path)
    (left / "somebody's").touch()

    async with working(redis, redis_url, tmp_path, vendor) as (journals, _, _):
        await prove(redis, until=lambda: not (left / "lock").exists())
        async with asyncio.timeout(10):
            while "journal not deleted" not in caplog.messages:
                await asyncio.sleep(0.01)
        assert journals.unproven_count == 0


async def test_a_journal_that_is_being_deleted_is_not_left_to_others(
    redis: Redis, redis_url: str, tmp_path: Path, vendor: Vendor
) -> None:
    left = left_behind(tmp_path)
    empty = [left / f"{number:08d}.journal" for number in range(10, 20_000)]
    for segment in empty:  # so many that deleting them takes a while
        segment.touch()

    async with working(redis, redis_url, tmp_path, vendor):
        await prove(redis, until=lambda: not empty[0].exists())

    assert Folder.claim(left) is None, "the worker's stop gave away what its thread deletes"
    async with asyncio.timeout(10):
        while left.exists():
            await asyncio.sleep(0.01)


async def test_an_end_awaited_is_told_when_a_stream_has_it(
    redis: Redis, redis_url: str, tmp_path: Path, vendor: Vendor
) -> None:
    async with working(redis, redis_url, tmp_path, vendor) as (journals, conveyor, _):
        held = await conveyor.hold(Hold(call_id(1), 0, WALLET, Nanos(10), ticket=ticket(1)))
        assert isinstance(held, Held)
        conveyor.settle(ended(1))
        placed = journals.placed(call_id(1))

        async with asyncio.timeout(5):
            await placed


async def test_what_only_an_older_stream_had_is_sent_again(
    redis: Redis, redis_url: str, tmp_path: Path, vendor: Vendor
) -> None:
    async with working(redis, redis_url, tmp_path, vendor) as (_, conveyor, journal):
        journal.dispatched(opened(1))
        journal.finished(ended(1))
        conveyor.settle(ended(1))
        await entries(redis, 1)
        await redis.flushall()
        partition = Partition(redis, 0)
        await partition.freeze(2)
        await partition.load(2, [WalletState(WALLET, CREDIT, 0, 2)])
        await partition.activate(2, 2)

        async with asyncio.timeout(10):
            while not (found := await partition.peek(2, "0-0", 10)):
                await asyncio.sleep(0.02)

    assert found[0].fields[b"i"] == call_id(1)


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


class TestBacklog:
    """Of what nobody proved while Postgres was away, little is in memory at any time."""

    async def test_orphans_are_read_one_after_another_as_fast_as_redis_answers(
        self, redis: Redis, redis_url: str, tmp_path: Path, vendor: Vendor
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

    async def test_what_ended_calls_owe_is_held_before_they_are_told_again(
        self, redis: Redis, redis_url: str, tmp_path: Path, vendor: Vendor
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


def test_a_lost_call_costs_its_estimated_input_and_never_more_than_its_hold(
    vendor: Vendor,
) -> None:
    sheet = sheet_of(configured(vendor))

    usual = lost_end(opened(1), sheet)
    small = lost_end(opened(1)._replace(held=1_000), sheet)

    grown = decode(ticket(1))
    grown.usage_source, grown.charge, grown.usage = "estimated", 2_500_000, {"output": 9}
    told = opened(1)._replace(held=3_000_000, ticket=encode(grown))
    assert lost_end(told, sheet).charge == 2_500_000, "what it told last, above its first hold"
    assert decode(lost_end(told, sheet).record).usage == {"output": 9}

    record = decode(usual.record)
    assert (usual.kind, usual.charge) == (EndKind.LOST, 100 * 3_000)
    assert (record.outcome, record.usage_source) == (Outcome.UNKNOWN, "estimated")
    assert small.charge == 1_000
