"""The journal keeps every call and end until Postgres has it."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ledger.appender import System
from ledger.journal import Journal, JournalFull
from tests.ledger.calls import call, end
from tests.ledger.journaling import Clock, adopt_one, create, ids, place, segments, to_send, write


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def journal(tmp_path: Path, clock: Clock) -> Iterator[Journal]:
    journal = create(tmp_path, clock)
    yield journal
    journal.close()


# What is to be sent


def test_an_end_is_sent_until_redis_has_it(journal: Journal) -> None:
    write(journal, 1, 2, 3)
    assert to_send(journal, 1) == ids(1, 2, 3)
    place(journal, 2)
    assert to_send(journal, 1) == ids(1, 3)
    place(journal, 1, 3)
    assert to_send(journal, 1) == []
    assert journal.unproven_count == 3


def test_an_end_is_sent_as_it_was_written(journal: Journal) -> None:
    write(journal, 1)
    assert list(journal.unproven({7: 1})) == [[end(1)]]


def test_an_end_in_the_stream_of_a_lost_generation_is_sent_again(journal: Journal) -> None:
    write(journal, 1, 2, 3)
    place(journal, 1, 2, 3)
    # Recovery drained the old stream up to 1-0 and lost the rest; the new one is far ahead.
    journal.proven(7, generation=1, stream_id="1-0")
    journal.proven(7, generation=2, stream_id="900-0")
    assert set(to_send(journal, 2)) >= set(ids(2, 3))
    place(journal, 1, 2, 3, generation=2)
    journal.proven(7, generation=2, stream_id="900-0")
    assert (to_send(journal, 2), journal.unproven_count) == ([], 0)


def test_an_end_that_is_proven_in_its_own_generation_is_not_sent_again(journal: Journal) -> None:
    write(journal, 1)
    place(journal, 1)
    journal.proven(7, generation=1, stream_id="1-0")
    assert to_send(journal, 2) == []


def test_ends_of_other_partitions_are_not_sent(journal: Journal) -> None:
    write(journal, 1)
    write(journal, 2, partition=8)
    assert to_send(journal, 1) == ids(1)


def test_the_age_of_what_is_unproven_is_known(journal: Journal, clock: Clock) -> None:
    assert journal.unproven_oldest_s == 0
    write(journal, 1)
    clock.now_s += 5
    write(journal, 2)
    assert journal.unproven_oldest_s == 5
    place(journal, 1, 2)
    journal.proven(7, generation=1, stream_id="1-0")
    assert journal.unproven_oldest_s == 0


def test_a_call_is_open_until_it_is_finished(journal: Journal) -> None:
    journal.dispatched(call(1))
    journal.dispatched(call(2))
    journal.finished(end(1))
    assert list(journal.open_calls()) == [call(2)]
    assert journal.open_count == 1


# The disk


class Platter:
    """Counts what would survive a power loss: the bytes of each file when it was last synced."""

    def __init__(self) -> None:
        self.durable: dict[int, int] = {}
        self.failures = 0

    def sync(self, handle: int) -> None:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        os.fdatasync(handle)
        status = os.fstat(handle)
        self.durable[status.st_ino] = status.st_size

    def bytes_durable(self) -> int:
        return sum(self.durable.values())


@asynccontextmanager
async def looping(journal: Journal) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        loop = group.create_task(journal.sync_loop(), name="sync")
        await asyncio.sleep(0)
        yield
        loop.cancel()


async def test_in_group_mode_the_wait_ends_when_all_before_it_is_on_the_disk(
    tmp_path: Path,
) -> None:
    platter = Platter()
    system = System(sync=platter.sync)
    journal = Journal.create(tmp_path, worker="w0", fsync="group", system=system)

    async def one(number: int) -> None:
        write(journal, number)
        written = journal.disk_bytes
        await journal.synced()
        assert platter.bytes_durable() >= written

    async with looping(journal), asyncio.TaskGroup() as group:
        for number in range(50):
            group.create_task(one(number), name=f"call {number}")
    await one(51)
    journal.close()


async def test_by_interval_nobody_waits_and_the_loop_syncs(tmp_path: Path, clock: Clock) -> None:
    platter = Platter()
    system = System(sync=platter.sync, clock=clock)
    journal = Journal.create(tmp_path, worker="w0", system=system)
    write(journal, 1)
    await journal.synced()
    assert platter.bytes_durable() == 0
    await journal.sync()
    assert platter.bytes_durable() == journal.disk_bytes
    journal.close()


async def test_who_waits_is_told_if_the_disk_failed_and_the_next_write_is_in_a_new_segment(
    tmp_path: Path,
) -> None:
    platter = Platter()
    platter.failures = 1
    system = System(sync=platter.sync)
    journal = Journal.create(tmp_path, worker="w0", fsync="group", system=system)
    async with looping(journal):
        write(journal, 1)
        with pytest.raises(JournalFull, match="could not be synced"):
            async with asyncio.timeout(10):
                await journal.synced()
        write(journal, 2)
        await journal.synced()
    assert journal.sync_failures == 1
    assert len(segments(tmp_path)) == 2
    assert to_send(journal, 1) == ids(1, 2)
    journal.close()


async def test_who_waits_when_the_loop_is_stopped_is_not_left_waiting(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, worker="w0", fsync="group")
    loop = asyncio.ensure_future(journal.sync_loop())
    await asyncio.sleep(0)
    write(journal, 1)
    waiter = asyncio.ensure_future(journal.synced())
    await asyncio.sleep(0)
    loop.cancel()
    with pytest.raises(JournalFull, match="being closed"):
        await waiter
    journal.close()


# The end


def test_a_journal_in_which_all_is_proven_leaves_nothing(tmp_path: Path, clock: Clock) -> None:
    journal = create(tmp_path, clock)
    write(journal, 1)
    place(journal, 1)
    journal.proven(7, generation=1, stream_id="1-0")
    journal.close()
    assert list(tmp_path.iterdir()) == []


def test_a_journal_with_anything_unproven_stays(tmp_path: Path, clock: Clock) -> None:
    journal = create(tmp_path, clock)
    write(journal, 1)
    place(journal, 1)
    journal.close()
    adopted = adopt_one(tmp_path)
    assert list(adopted.ends()) == [end(1)]


async def test_an_idle_journal_writes_nothing(tmp_path: Path, clock: Clock) -> None:
    journal = create(tmp_path, clock)
    write(journal, 1)
    place(journal, 1)
    journal.proven(7, generation=1, stream_id="1-0")
    for _ in range(3):
        clock.now_s += 2
        await journal.sync()
    size = journal.disk_bytes
    for _ in range(10):
        clock.now_s += 2
        await journal.sync()
    assert journal.disk_bytes == size
    journal.close()
