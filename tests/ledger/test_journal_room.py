"""The journal gives its room back, and refuses calls rather than forget ends."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ledger.appender import System
from ledger.journal import Journal, JournalFull
from tests.ledger.calls import call, end
from tests.ledger.journaling import (
    Clock,
    adopt_one,
    create,
    ids,
    place,
    segments,
    until_full,
    write,
)
from tests.ledger.test_appender import Disk


@pytest.fixture
def clock() -> Clock:
    return Clock()


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
    assert [e.call_id for some in journal.unproven({3: 1}) for e in some] == ids(1, 3)
    assert journal.unproven_count == 3
    assert [e.call_id for some in journal.unproven({3: 2}) for e in some] == ids(1, 2, 3)
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
    assert [e.call_id for some in journal.unproven({3: 2}) for e in some] == ids(1)
    journal.close()


@pytest.mark.parametrize("is_placed", [False, True])
async def test_what_is_carried_while_the_journal_is_read_is_read_as_well(
    tmp_path: Path, clock: Clock, *, is_placed: bool
) -> None:
    journal = create(tmp_path, clock, segment_bytes=20_000)
    for straggler in (1, 2):
        write(journal, straggler, partition=3)
        if is_placed:
            place(journal, straggler, partition=3)
        for number in range(straggler * 1_000, straggler * 1_000 + 400):
            write(journal, number, bulk=200)
            place(journal, number)
            journal.proven(7, generation=1, stream_id=f"{number}-0")
    reading = journal.unproven({3: 2}) if is_placed else journal.unsent()

    first = next(reading)
    clock.now_s += 2
    await journal.sync()
    rest = [each.call_id for some in reading for each in some]

    assert len(segments(tmp_path)) == 1
    assert [each.call_id for each in first] == ids(1)
    assert set(ids(2)) <= set(rest) <= set(ids(1, 2))
    assert {each.call_id for some in journal.unsent() for each in some} == set(ids(1, 2))
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
