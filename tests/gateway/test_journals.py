"""What a worker does about journals: its own, and those that dead processes left."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis

from gateway.journals import lost_end
from ledger.admission import Held, Hold
from ledger.drain import PROVEN_CHANNEL
from ledger.functions import Entry, Partition, WalletState
from ledger.journal import Journal
from ledger.money import Nanos
from ledger.record import EndKind, Outcome, decode, encode
from ledger.segments import Folder
from tests.gateway.proxy.gatehouse import CREDIT, WALLET, configured, sheet_of
from tests.gateway.worker import call_id, ended, opened, ticket, working
from tests.vendor import Vendor


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
