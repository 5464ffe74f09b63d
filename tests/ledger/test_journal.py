"""The journal keeps every call and end until Postgres has it, and refuses rather than forget."""

import asyncio
import errno
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import pytest

from ledger.adoption import AdoptedJournal, adopt
from ledger.appender import System
from ledger.journal import Journal, JournalFull
from tests.ledger.calls import call, call_id, end
from tests.ledger.test_appender import Disk


class Clock:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def create(
    directory: Path, clock: Clock, *, segment_bytes: int = 1 << 20, bytes_max: int = 1 << 30
) -> Journal:
    return Journal.create(
        directory,
        worker="w0",
        segment_bytes=segment_bytes,
        bytes_max=bytes_max,
        system=System(clock=clock),
    )


@pytest.fixture
def journal(tmp_path: Path, clock: Clock) -> Iterator[Journal]:
    journal = create(tmp_path, clock)
    yield journal
    journal.close()


def write(journal: Journal, *numbers: int, partition: int = 7, bulk: int = 0) -> None:
    """Calls and their ends; `bulk` bytes more in each end."""
    for number in numbers:
        journal.dispatched(call(number, partition=partition))
        journal.finished(end(number, partition=partition, record=b"record" + bytes(bulk)))


def place(journal: Journal, *numbers: int, generation: int = 1, partition: int = 7) -> None:
    for number in numbers:
        journal.appended(call_id(number), partition, generation=generation, stream_id=f"{number}-0")


def to_send(journal: Journal, generation: int, older_than_s: float = 0.0) -> list[bytes]:
    ends = journal.unproven(7, generation=generation, older_than_s=older_than_s)
    return [each.call_id for each in ends]


def ids(*numbers: int) -> list[bytes]:
    return [call_id(number) for number in numbers]


def until_full(write_one: Callable[[int], None]) -> int:
    """How many were written before the journal was full."""
    for number in count():
        try:
            write_one(number)
        except JournalFull:
            return number
    raise AssertionError


def segments(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("w0-*/*.journal"))


def adopt_one(directory: Path) -> AdoptedJournal:
    (adopted,) = adopt(directory)
    return adopted


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
    assert list(journal.unproven(7, generation=1)) == [end(1)]


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


def test_ends_that_redis_may_still_answer_are_left_out(journal: Journal, clock: Clock) -> None:
    write(journal, 1)
    clock.now_s += 5
    write(journal, 2)
    assert to_send(journal, 1, older_than_s=3.0) == ids(1)


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


# Room


async def test_segments_in_which_all_is_proven_are_deleted(tmp_path: Path, clock: Clock) -> None:
    journal = create(tmp_path, clock, segment_bytes=2_000)
    write(journal, *range(60))
    assert len(segments(tmp_path)) > 4
    place(journal, *range(60))
    journal.proven(7, generation=2, stream_id="900-0")
    await journal.sync()
    assert segments(tmp_path)[0] == "00000001.journal"
    journal.proven(7, generation=1, stream_id="900-0")
    await journal.sync()
    assert len(segments(tmp_path)) == 1
    assert journal.disk_bytes == sum(p.stat().st_size for p in tmp_path.glob("w0-*/*.journal"))
    journal.close()


async def test_one_long_call_keeps_no_segment_and_stays_open(tmp_path: Path, clock: Clock) -> None:
    journal = create(tmp_path, clock, segment_bytes=20_000)
    journal.dispatched(call(1))
    for number in range(2, 400):
        write(journal, number, bulk=200)
        place(journal, number)
        journal.proven(7, generation=1, stream_id=f"{number}-0")
    clock.now_s += 2
    await journal.sync()
    assert len(segments(tmp_path)) == 1
    assert list(journal.open_calls()) == [call(1)]
    journal.close()
    assert list(adopt_one(tmp_path).open_calls()) == [call(1)]


async def test_a_partition_that_is_away_keeps_no_segment_and_loses_no_end(
    tmp_path: Path, clock: Clock
) -> None:
    journal = create(tmp_path, clock, segment_bytes=20_000)
    write(journal, 1, 2, 3, partition=3)
    place(journal, 2, partition=3)  # 1 and 3 were never answered; 2 was, but is not proven
    for number in range(4, 400):
        write(journal, number, bulk=200)
        place(journal, number)
        journal.proven(7, generation=1, stream_id=f"{number}-0")
    clock.now_s += 2
    await journal.sync()
    assert len(segments(tmp_path)) == 1
    assert [e.call_id for e in journal.unproven(3, generation=1)] == ids(1, 3)
    assert journal.unproven_count == 3
    assert [e.call_id for e in journal.unproven(3, generation=2)] == ids(1, 2, 3)
    journal.close()
    left = list(adopt_one(tmp_path).ends())
    assert [e.call_id for e in left if e.partition == 3] == ids(1, 2, 3)
    assert len(left) < 100


async def test_an_end_that_waits_for_proof_is_carried_from_segment_to_segment(
    tmp_path: Path, clock: Clock
) -> None:
    journal = create(tmp_path, clock, segment_bytes=20_000)
    write(journal, 1, partition=3)
    place(journal, 1, partition=3)
    for number in range(2, 800):
        write(journal, number, bulk=200)
        place(journal, number)
        journal.proven(7, generation=1, stream_id=f"{number}-0")
        if number % 200 == 0:
            clock.now_s += 2
            await journal.sync()
    assert journal.unproven_count == 1
    assert [e.call_id for e in journal.unproven(3, generation=2)] == ids(1)
    journal.close()


async def test_a_backlog_is_not_copied_about(tmp_path: Path, clock: Clock) -> None:
    journal = create(tmp_path, clock, segment_bytes=2_000)
    write(journal, *range(60))
    place(journal, *range(60))
    before = journal.disk_bytes
    clock.now_s += 2
    await journal.sync()
    assert journal.disk_bytes < before + 100
    journal.close()


def test_a_full_journal_refuses_calls_before_it_refuses_ends(tmp_path: Path, clock: Clock) -> None:
    journal = create(tmp_path, clock, bytes_max=1_000_000)
    calls = until_full(lambda number: journal.dispatched(call(number)))
    assert journal.is_full
    ends = until_full(lambda number: journal.finished(end(number)))
    assert calls > ends > 100
    assert journal.disk_bytes <= 1_000_000
    journal.close()


async def test_a_disk_that_was_full_is_tried_again_every_second(
    tmp_path: Path, clock: Clock
) -> None:
    disk = Disk(room=1_000)
    journal = Journal.create(tmp_path, worker="w0", system=System(write=disk.write, clock=clock))
    with pytest.raises(JournalFull):
        write(journal, *range(100))
    assert journal.is_full
    clock.now_s += 2
    await journal.sync()
    assert journal.is_full
    disk.room = 1_000_000
    clock.now_s += 2
    await journal.sync()
    assert not journal.is_full
    written = journal.unproven_count
    assert written > 0
    journal.close()
    adopted = adopt_one(tmp_path)
    assert [e.call_id for e in adopted.ends()] == ids(*range(written))
    assert adopted.damaged == 0


def test_a_call_whose_end_found_no_room_is_open_until_redis_has_it(
    tmp_path: Path, clock: Clock
) -> None:
    disk = Disk(room=100)
    journal = Journal.create(tmp_path, worker="w0", system=System(write=disk.write, clock=clock))
    journal.dispatched(call(1))
    with pytest.raises(JournalFull):
        journal.finished(end(1))
    assert journal.open_count == 1
    place(journal, 1)
    assert (journal.open_count, journal.unproven_count) == (0, 1)
    journal.proven(7, generation=1, stream_id="1-0")
    assert journal.unproven_count == 0
    journal.close()
    assert list(tmp_path.iterdir()) == []


def test_a_limit_on_the_file_is_a_full_journal_and_no_crash(tmp_path: Path) -> None:
    script = """
        import resource, sys
        from pathlib import Path
        from ledger.journal import Journal, JournalFull
        from tests.ledger.calls import call
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        journal = Journal.create(Path(sys.argv[1]), worker="w0")
        for number in range(1_000):
            try:
                journal.dispatched(call(number))
            except JournalFull as full:
                print(number, journal.disk_bytes)
                sys.exit(0)
    """
    child = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    taken, size = subprocess.run(child, check=True, capture_output=True, timeout=30).stdout.split()
    adopted = adopt_one(tmp_path)
    assert len(list(adopted.open_calls())) == int(taken) > 50
    assert (int(size) <= 10_000, adopted.damaged) == (True, 0)


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
