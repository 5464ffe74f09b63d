"""Journals that dead processes left: what they still hold is ended and sent by whoever adopts them.

A file does not say which ends Redis had, so all are sent again that are not marked as proven in it;
the call id makes each count once.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from ledger.admission import End
from ledger.frames import (
    DISPATCHED,
    FINISHED,
    PROVEN,
    Frame,
    OpenCall,
    read_dispatched,
    read_finished,
    read_proven,
)
from ledger.journal import SPAN_BYTES
from ledger.proof import Proof, Span
from ledger.segments import Folder, open_calls, unproven, unsent

_ANY_TIME_S = 0.0


def adopt(
    directory: Path,
    *,
    apart: Container[str] = (),
    on_unreadable: Callable[[str, OSError], None] | None = None,
) -> Iterator["AdoptedJournal"]:
    """The journals below this directory that nobody holds; each is held from here on.

    Those named in `apart` are left alone. One that cannot be read is told and keeps nobody from the
    others; without `on_unreadable` its error is raised.
    """
    if not directory.is_dir():
        return
    for path in sorted(directory.iterdir()):
        if path.name.startswith(".") or path.name in apart:
            continue
        folder: Folder | None = None
        try:
            folder = Folder.claim(path)
            journal = None if folder is None else AdoptedJournal(folder)
        except OSError as error:
            if folder is not None:
                folder.release()
            if on_unreadable is None:
                raise
            on_unreadable(path.name, error)
        else:
            if journal is not None:
                yield journal


class AdoptedJournal:
    """A journal whose owner is gone. Nothing is written to it; it is deleted when all is proven.

    Making one reads the whole journal, some 100 MiB a second: not on an event loop.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder, self._proof = folder, Proof()
        self.name = folder.path.name
        self.damaged = 0  # stretches and bodies that could not be read
        for number in folder.numbers():
            self._read(number)

    def unsent(self) -> Iterator[list[End]]:
        """As `Journal.unsent`: the ends that Redis has not confirmed to us."""
        return unsent(self._folder, self._proof)

    def ends(self) -> Iterator[End]:
        """The same, one by one."""
        for some in self.unsent():
            yield from some

    def open_calls(self) -> Iterator[OpenCall]:
        """The calls sent to vendors that nobody ended; the adopter ends them as lost."""
        return open_calls(self._folder, self._proof)

    def unproven(self, generations: Mapping[int, int]) -> Iterator[list[End]]:
        """As `Journal.unproven`; lost calls without proof are among `open_calls` again."""
        return unproven(self._folder, self._proof, generations)

    def appended(
        self, call_ids: Iterable[bytes], partition: int, *, generation: int, stream_id: str
    ) -> None:
        """As `Journal.appended`; for an open call, its lost end has its place."""
        self._proof.appended(call_ids, partition, generation=generation, stream_id=stream_id)

    def proven(self, partition: int, *, generation: int, stream_id: str) -> None:
        """As `Journal.proven`."""
        self._proof.proven(partition, generation=generation, stream_id=stream_id)

    @property
    def unproven_count(self) -> int:
        """Ends that Postgres is not known to have, and calls that have none."""
        return len(self._proof.open) + len(self._proof.unsent) + self._proof.placed_count

    @property
    def is_proven(self) -> bool:
        """Whether Postgres is known to have all of it."""
        return not self._proof.pending()

    def remove(self) -> None:
        """Delete it. It is this caller's alone from here on: nobody may release it beside this."""
        self._folder.remove()

    def release(self) -> None:
        """Let go of it unfinished: somebody adopts it later."""
        self._folder.release()

    def _read(self, number: int) -> None:
        span = self._proof.begin(number, 0, _ANY_TIME_S)
        for frame in self._folder.framing.frames(self._folder.segment(number).read_bytes()):
            if frame.start - span.start >= SPAN_BYTES:
                span = self._proof.begin(number, frame.start, _ANY_TIME_S)
            span.end = frame.end
            try:
                self._note(frame, span)
            except msgspec.DecodeError:
                self.damaged += 1

    def _note(self, frame: Frame, span: Span) -> None:
        if frame.kind == DISPATCHED:
            self._proof.opened(read_dispatched(frame.body).call_id, span)
        elif frame.kind == FINISHED:
            self._proof.ended(read_finished(frame.body).call_id, span)
        elif frame.kind == PROVEN:
            mark = read_proven(frame.body)
            self._proof.drop_before(mark.segment, mark.offset)
        else:
            self.damaged += 1
