"""The files of one journal: its folder, its lock, its segments, and what is read back from them.

The folder of a journal belongs to whoever holds the lock of the file `lock` in it: the process that
writes it, and after that process's death whoever adopts it.
"""

import fcntl
import os
import secrets
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from ledger.admission import End
from ledger.frames import (
    DISPATCHED,
    FINISHED,
    Frame,
    Framing,
    OpenCall,
    read_dispatched,
    read_finished,
)
from ledger.proof import Proof, Span


class Folder:
    """One journal's folder, held by this process."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path, self._lock = path, lock
        self.framing = Framing(path.name)

    @classmethod
    def create(cls, directory: Path, *, worker: str) -> "Folder":
        """A new folder; it is visible to others only once it is locked."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = f"{worker}-{secrets.token_hex(8)}"
        hidden = directory / f".{name}"
        hidden.mkdir(mode=0o700)
        lock = os.open(hidden / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        hidden.rename(directory / name)
        _sync_names(directory)
        return cls(directory / name, lock)

    @classmethod
    def claim(cls, path: Path) -> "Folder | None":
        """The folder, if nobody holds it and it still exists."""
        try:
            lock = os.open(path / "lock", os.O_RDWR | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        if os.fstat(lock).st_nlink == 0:  # another process adopted and removed it meanwhile
            os.close(lock)
            return None
        return cls(path, lock)

    def segment(self, number: int) -> Path:
        """Where the segment of this number is."""
        return self.path / f"{number:08d}.journal"

    def numbers(self) -> list[int]:
        """The segments that exist, in order."""
        return sorted(int(each.stem) for each in self.path.glob("*.journal"))

    def frames(self, span: Span) -> Iterator[Frame]:
        """The frames of the span, their positions counted from its start."""
        with self.segment(span.segment).open("rb") as file:
            file.seek(span.start)
            data = file.read(span.end - span.start)
        return self.framing.frames(data)

    def sync_names(self) -> None:
        """Make the names of the segments outlive a power loss."""
        _sync_names(self.path)

    def remove(self) -> None:
        """Delete the journal, the lock last: until then nobody else touches it."""
        for number in self.numbers():
            self.segment(number).unlink()
        (self.path / "lock").unlink()
        self.path.rmdir()
        self.release()

    def release(self) -> None:
        """Leave the journal to whoever adopts it."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)


def unproven(folder: Folder, proof: Proof, generations: Mapping[int, int]) -> Iterator[list[End]]:
    """The ends to send (again) while each partition's stream is of this generation, by span.

    They are those without a place in any stream, and those whose place is in the stream of another
    generation and unproven there; from then on all are `unsent`. More may come than is needed,
    never less: a span does not know which of its ends are proven.
    """
    for partition, generation in generations.items():
        proof.reopen(partition, generation=generation)
    for span in _spans(proof, lambda: {*proof.unsent.values(), *proof.stale(generations)}):
        again = proof.stale_in(span, generations)
        ends = [end for end in ends_in(folder, span) if end.partition in generations]
        for end in ends:
            if end.partition in again:
                proof.unplaced(end.call_id, span)
        for partition in again:
            proof.forget_places(span, partition, generation=generations[partition])
        yield [end for end in ends if proof.unsent.get(end.call_id) is span]


def unsent(folder: Folder, proof: Proof) -> Iterator[list[End]]:
    """The ends without a place in any stream, by span."""
    for span in _spans(proof, lambda: {*proof.unsent.values()}):
        yield [end for end in ends_in(folder, span) if proof.unsent.get(end.call_id) is span]


def _spans(proof: Proof, due: Callable[[], Container[Span]]) -> Iterator[Span]:
    """The spans that are due, and those to which some of it was copied meanwhile.

    Between two of them anything may happen to the journal.
    """
    seen: set[Span] = set()
    wanted = due()
    turn = [span for span in proof.pending() if span in wanted]
    while turn:
        for span in turn:
            seen.add(span)
            if span.pending:  # else proven meanwhile, and its segment deleted perhaps
                yield span
        wanted = due()
        turn = [
            span
            for span in proof.pending()
            if span.has_copies and span in wanted and span not in seen
        ]


def open_calls(folder: Folder, proof: Proof) -> Iterator[OpenCall]:
    """The calls that were dispatched and have no end."""
    for span in dict.fromkeys(proof.open.values()):
        if span.pending:  # else its segment is deleted perhaps
            yield from newest(
                c for c in calls_in(folder, span) if proof.open.get(c.call_id) is span
            )


def newest(calls: Iterable[OpenCall]) -> list[OpenCall]:
    """Of each call what was written last: how far it had come."""
    return [*{call.call_id: call for call in calls}.values()]


def ends_in(folder: Folder, span: Span) -> Iterator[End]:
    """The ends that were written into this span."""
    for frame in folder.frames(span):
        if frame.kind == FINISHED:
            with suppress(msgspec.DecodeError):  # counted when the journal was adopted
                yield read_finished(frame.body)


def calls_in(folder: Folder, span: Span) -> Iterator[OpenCall]:
    """The calls that were dispatched in this span."""
    for frame in folder.frames(span):
        if frame.kind == DISPATCHED:
            with suppress(msgspec.DecodeError):  # counted when the journal was adopted
                yield read_dispatched(frame.body)


def _sync_names(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
