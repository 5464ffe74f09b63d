"""A frame is written whole or not at all, and its segment's file is the gateway's alone."""

import errno
import os
from pathlib import Path

import pytest

from ledger.appender import Appender, JournalFull, System
from ledger.segments import Folder


class Disk:
    """A disk that takes `room` bytes more, in part if it must, and then says that it is full."""

    def __init__(self, room: int) -> None:
        self.room = room

    def write(self, handle: int, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = os.write(handle, data[: self.room])
        self.room -= taken
        return taken


def appender(folder: Folder, *, segment_bytes: int = 1 << 20, disk: Disk | None = None) -> Appender:
    system = System(write=disk.write) if disk else System()
    return Appender(folder, segment_bytes=segment_bytes, system=system)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder.create(tmp_path, worker="w0")


def test_a_frame_is_in_the_file_when_append_returns(folder: Folder) -> None:
    tail = appender(folder)
    tail.append(b"frame")
    assert folder.segment(1).read_bytes() == b"frame"
    assert (tail.number, tail.offset, tail.bytes) == (1, 5, 5)
    tail.close()


def test_a_frame_that_does_not_fit_on_the_disk_leaves_no_trace(folder: Folder) -> None:
    disk = Disk(room=12)
    tail = appender(folder, disk=disk)
    tail.append(b"0123456789")
    for _ in range(2):  # the first is taken in part, the second not at all
        with pytest.raises(JournalFull, match="could not be written"):
            tail.append(b"abcdefghij")
        assert tail.is_refused
        assert folder.segment(1).read_bytes() == b"0123456789"
        assert tail.bytes == 10
    disk.room = 100
    tail.append(b"abcdefghij")
    assert not tail.is_refused
    assert folder.segment(1).read_bytes() == b"0123456789abcdefghij"
    tail.close()


def test_a_full_segment_is_followed_by_the_next(folder: Folder) -> None:
    tail = appender(folder, segment_bytes=10)
    for _ in range(5):
        tail.append(b"123456")
    assert [folder.segment(number).stat().st_size for number in folder.numbers()] == [12, 12, 6]
    assert all(folder.segment(n).stat().st_mode & 0o777 == 0o600 for n in folder.numbers())
    assert tail.bytes == 30
    tail.close()


def test_a_folder_that_takes_no_new_segment_refuses_the_frame(folder: Folder) -> None:
    tail = appender(folder, segment_bytes=5)
    tail.append(b"123456")
    folder.segment(2).mkdir()  # the name of the next segment is taken
    with pytest.raises(JournalFull):
        tail.append(b"123456")
    assert tail.is_refused
    folder.segment(2).rmdir()
    tail.append(b"123456")
    assert not tail.is_refused
    tail.close()


def test_segments_are_synced_before_any_is_deleted(folder: Folder) -> None:
    seen: list[list[int]] = []

    def sync(handle: int) -> None:
        os.fsync(handle)
        seen.append(folder.numbers())

    tail = Appender(folder, segment_bytes=5, system=System(sync=sync))
    for _ in range(3):
        tail.append(b"123456")
    work = tail.take_work(keep_from=3)
    tail.do(work)
    tail.deleted(work)
    assert seen == [[1, 2, 3]] * 3
    assert (folder.numbers(), tail.bytes) == ([3], 6)
    assert tail.take_work(keep_from=3).sync == ()
    tail.close()


def test_nothing_is_deleted_if_the_disk_refuses_to_sync(folder: Folder) -> None:
    def sync(_handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    tail = Appender(folder, segment_bytes=5, system=System(sync=sync))
    for _ in range(3):
        tail.append(b"123456")
    with pytest.raises(OSError, match="Input/output"):
        tail.do(tail.take_work(keep_from=3))
    assert folder.numbers() == [1, 2, 3]
    tail.close()
