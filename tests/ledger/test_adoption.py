"""What a dead process left is found whole, once, and by nobody while it lives."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ledger.adoption import AdoptedJournal, adopt
from ledger.journal import Journal
from ledger.money import Nanos
from tests.ledger.calls import call, call_id, end
from tests.ledger.journaling import Clock, adopt_one, create, ids, place, write


def left_behind(directory: Path, *, count: int = 30, open_count: int = 0) -> Path:
    """A journal with `count` ends and then `open_count` open calls; its one segment."""
    journal = Journal.create(directory, worker="w0")
    write(journal, *range(count))
    for number in range(count, count + open_count):
        journal.dispatched(call(number))
    journal.close()
    (segment,) = directory.glob("w0-*/*.journal")
    return segment


def found(adopted: AdoptedJournal) -> list[bytes]:
    return [each.call_id for each in adopted.ends()]


def test_nothing_is_adopted_where_nothing_is(tmp_path: Path) -> None:
    assert list(adopt(tmp_path / "missing")) == []
    (tmp_path / "stray").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    assert list(adopt(tmp_path)) == []


def test_a_journal_is_not_adopted_while_its_owner_lives(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, worker="w0")
    write(journal, 1)
    assert list(adopt(tmp_path)) == []
    journal.close()
    assert found(adopt_one(tmp_path)) == ids(1)


def test_only_one_process_adopts_a_journal(tmp_path: Path) -> None:
    left_behind(tmp_path)
    adopted = adopt_one(tmp_path)
    assert list(adopt(tmp_path)) == []
    adopted.release()
    assert len(found(adopt_one(tmp_path))) == 30


def test_ends_and_open_calls_are_found_as_they_were_written(tmp_path: Path) -> None:
    left_behind(tmp_path, count=2, open_count=2)
    adopted = adopt_one(tmp_path)
    assert list(adopted.ends()) == [end(0), end(1)]
    assert list(adopted.open_calls()) == [call(2), call(3)]
    assert (adopted.unproven_count, adopted.damaged) == (4, 0)


def test_it_is_deleted_once_everything_in_it_is_proven_and_not_before(tmp_path: Path) -> None:
    left_behind(tmp_path, count=2, open_count=1)
    adopted = adopt_one(tmp_path)
    for each in adopted.ends():
        adopted.appended([each.call_id], 7, generation=4, stream_id="10-0")
    assert found(adopted) == []
    adopted.proven(7, generation=4, stream_id="10-0")
    assert not adopted.is_proven
    (lost,) = (each.lost(Nanos(5)) for each in adopted.open_calls())
    adopted.appended([lost.call_id], 7, generation=4, stream_id="11-0")
    adopted.proven(7, generation=4, stream_id="10-9")
    assert not adopted.is_proven
    adopted.proven(7, generation=4, stream_id="11-0")
    assert adopted.is_proven
    adopted.remove()
    assert list(tmp_path.iterdir()) == []


def test_after_a_recovery_its_ends_and_its_lost_calls_are_sent_again(tmp_path: Path) -> None:
    left_behind(tmp_path, count=2, open_count=1)
    adopted = adopt_one(tmp_path)
    for number in range(3):
        adopted.appended([call_id(number)], 7, generation=4, stream_id="10-0")
    adopted.proven(7, generation=5, stream_id="900-0")
    (ends,) = adopted.unproven({7: 5})
    assert [each.call_id for each in ends] == ids(0, 1)
    assert [each.call_id for each in adopted.open_calls()] == ids(2)
    assert not adopted.is_proven


def test_of_an_open_call_what_its_owner_told_last_is_found(tmp_path: Path) -> None:
    journal = create(tmp_path, Clock())
    for number in range(2):
        journal.dispatched(call(number))
    told = call(0)._replace(held=900, ticket=b"so far")
    journal.progressed(told._replace(held=500))
    journal.progressed(told)
    journal.finished(end(1))
    journal.progressed(call(1)._replace(held=7))
    journal.progressed(call(2))
    journal.close()

    adopted = adopt_one(tmp_path)

    assert list(adopted.open_calls()) == [told]
    assert list(adopted.ends()) == [end(1)]


async def test_what_its_owner_knew_to_be_proven_is_not_sent_again(
    tmp_path: Path,
) -> None:
    clock = Clock()
    journal = create(tmp_path, clock)
    for number in range(2_000):
        write(journal, number)
        place(journal, number)
    journal.proven(7, generation=1, stream_id="1500-0")
    clock.now_s += 2
    await journal.sync()
    journal.close()
    again = found(adopt_one(tmp_path))
    assert set(again) >= set(ids(*range(1_501, 2_000)))
    assert len(again) < 1_200


def test_a_segment_cut_anywhere_loses_only_what_was_cut(tmp_path: Path) -> None:
    segment = left_behind(tmp_path)
    data = segment.read_bytes()
    counts = []
    for cut in range(len(data) - 4_096, len(data), 61):
        segment.write_bytes(data[:cut])
        adopted = adopt_one(tmp_path)
        ends, calls = found(adopted), [each.call_id for each in adopted.open_calls()]
        assert ends == ids(*range(len(ends)))
        assert calls in ([], ids(len(ends)))
        assert adopted.damaged <= 1
        counts.append(len(ends))
        adopted.release()
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_a_call_whose_end_is_damaged_is_open(tmp_path: Path) -> None:
    segment = left_behind(tmp_path, count=3)
    data = bytearray(segment.read_bytes())
    data[data.index(b"record", data.index(b"record") + 1)] ^= 1
    segment.write_bytes(bytes(data))
    adopted = adopt_one(tmp_path)
    assert found(adopted) == ids(0, 2)
    assert list(adopted.open_calls()) == [call(1)]
    assert adopted.damaged == 1


def test_garbage_is_counted_and_nothing_is_raised(tmp_path: Path) -> None:
    segment = left_behind(tmp_path, count=3)
    for garbage in (b"", bytes(10_000), b"\xc1TGF" * 1_000, os.urandom(10_000)):
        segment.write_bytes(garbage)
        adopted = adopt_one(tmp_path)
        assert found(adopted) == []
        assert (adopted.damaged > 0) == bool(garbage)
        adopted.release()
    adopted = adopt_one(tmp_path)
    assert adopted.is_proven
    adopted.remove()


WRITER = """
    import os, sys
    from pathlib import Path
    from ledger.journal import Journal
    from tests.ledger.calls import call, end
    journal = Journal.create(Path(sys.argv[1]), worker="w0", segment_bytes=100_000)
    for number in range(10_000_000):
        journal.dispatched(call(number))
        os.write(1, b"D%d\\n" % number)
        journal.finished(end(number, record=bytes(number % 3_000)))
        os.write(1, b"F%d\\n" % number)
"""


@pytest.mark.parametrize("said", [1, 500, 3_000])
def test_kill_9_loses_nothing_that_was_said_to_be_written(tmp_path: Path, said: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path)], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(said)]
        assert list(adopt(tmp_path)) == []  # it lives
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.read().splitlines(keepends=True)
        child.wait(timeout=30)
    whole = [line.strip() for line in lines if line.endswith(b"\n")]
    finished = {int(line[1:]) for line in whole if line.startswith(b"F")}
    dispatched = {int(line[1:]) for line in whole if line.startswith(b"D")}
    adopted = adopt_one(tmp_path)
    ends = {int.from_bytes(each, "big") for each in found(adopted)}
    calls = {int.from_bytes(each.call_id, "big") for each in adopted.open_calls()}
    assert finished <= ends
    assert dispatched <= ends | calls
    assert len(ends - finished) + len(calls) <= 2
    assert adopted.damaged <= 1
    adopted.release()
