"""Writes frames to a journal's newest segment, begins new ones, and puts them on the disk."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from ledger.segments import Folder


class JournalFull(Exception):
    """The journal cannot be written: no room, or the disk refuses. Nothing was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """The calls of the operating system that a journal makes."""

    write: Callable[[int, bytes], int] = os.write
    sync: Callable[[int], None] = os.fdatasync
    clock: Callable[[], float] = time.monotonic


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskWork:
    """What a thread shall do: sync these handles, close the full ones, delete what is over."""

    sync: tuple[int, ...]
    close: tuple[int, ...]
    sync_names: bool
    delete: tuple[int, ...]


class Appender:
    """The newest segment. `number` and `offset` say where the next frame goes."""

    def __init__(self, folder: Folder, *, segment_bytes: int, system: System) -> None:
        self._folder, self.system, self._write = folder, system, system.write
        self._segment_bytes = segment_bytes
        self._full: list[int] = []  # handles of the segments before, not yet synced
        self._handle = -1
        self._is_unsynced, self._is_new = False, False
        self._sizes: dict[int, int] = {}  # bytes of the segments before, by number
        self.number, self.offset = 0, 0
        self.bytes = 0  # of all segments
        self.is_refused = False  # the last write failed
        self.begin_segment()

    def append(self, framed: bytes) -> None:
        """Hand the frame to the operating system, whole; `JournalFull` and nothing is written."""
        try:
            if self.offset >= self._segment_bytes:
                self.begin_segment()
            written = self._write(self._handle, framed)
        except OSError as error:
            self._mend()
            raise JournalFull(f"the journal could not be written: {error}") from error
        if written != len(framed):
            self._mend()
            raise JournalFull("the journal could not be written: the disk is full")
        self.offset += written
        self.bytes += written
        self.is_refused, self._is_unsynced = False, True

    def begin_segment(self) -> None:
        """The next frame goes to a new segment; `OSError` if there can be none."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        handle = os.open(self._folder.segment(self.number + 1), flags, 0o600)
        if self._handle >= 0:
            self._full.append(self._handle)
            self._sizes[self.number] = self.offset
        self.number, self.offset, self._handle = self.number + 1, 0, handle
        self._is_unsynced, self._is_new = True, True

    def take_work(self, *, keep_from: int) -> DiskWork:
        """What is to be done on the disk now; segments below `keep_from` may go."""
        handles = (*self._full, self._handle) if self._is_unsynced else tuple(self._full)
        work = DiskWork(
            sync=handles,
            close=tuple(self._full),
            sync_names=self._is_new,
            delete=tuple(number for number in self._sizes if number < keep_from),
        )
        self._full, self._is_unsynced, self._is_new = [], False, False
        return work

    def do(self, work: DiskWork) -> None:
        """Do it, in this order; may run in a thread. `OSError` if the disk refused."""
        try:
            for handle in work.sync:
                self.system.sync(handle)
            if work.sync_names:
                self._folder.sync_names()
        finally:
            for handle in work.close:
                os.close(handle)
        for number in work.delete:
            self._folder.segment(number).unlink(missing_ok=True)

    def deleted(self, work: DiskWork) -> None:
        """The work was done: what it deleted counts no more."""
        self.bytes -= sum(self._sizes.pop(number) for number in work.delete)

    def close(self) -> None:
        """Sync and close. A failure is no worse than kill -9: the segments stay as they are."""
        with suppress(OSError):
            self.do(self.take_work(keep_from=0))
        os.close(self._handle)

    def _mend(self) -> None:
        """Take back a frame that was written in part. A reader would get over it as well."""
        self.is_refused = True
        with suppress(OSError):
            os.ftruncate(self._handle, self.offset)
        size = os.fstat(self._handle).st_size
        self.bytes += size - self.offset
        self.offset = size
