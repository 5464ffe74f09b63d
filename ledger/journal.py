"""The gateway's own log on disk: every call it sends to a vendor, and how that call ended.

`dispatched` is written before the vendor hears of a call and `finished` before the client has its
last byte; both are in the operating system's hands when they return, so kill -9 loses neither. What
is written stays until Postgres is known to have it (`ledger.proof`). A process that dies leaves its
journal to whoever adopts it (`ledger.adoption`).
"""

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Literal

from ledger.admission import End
from ledger.appender import Appender, JournalFull, System
from ledger.frames import Mark, OpenCall
from ledger.proof import Proof, Span
from ledger.segments import Folder, calls_in, ends_in, newest, open_calls, unproven, unsent

__all__ = ["Journal", "JournalFull"]

log = logging.getLogger(__name__)

SEGMENT_BYTES = 64 << 20
JOURNAL_BYTES_MAX = 1 << 30
SYNC_INTERVAL_S = 1.0
TIDY_EVERY_S = 1.0
SPAN_BYTES = 64 << 10  # about a hundred calls: what is read again to send one of them again
SPAN_S = 1.0  # the precision of `unproven_oldest_s`
CARRY_SPANS_MAX = 32  # 2 MiB read a second: some milliseconds of the event loop
ENDS_SHARE = 16  # 1/16 of the room is kept for the ends of calls already under way


class Journal:
    """One process's journal. Only waiting for the disk is asynchronous."""

    def __init__(
        self,
        folder: Folder,
        appender: Appender,
        *,
        bytes_max: int,
        is_group: bool,
        sync_interval_s: float,
    ) -> None:
        self._folder, self._appender, self._framing = folder, appender, folder.framing
        self._sync_interval_s = sync_interval_s
        self._clock = appender.system.clock
        self._bytes_max = bytes_max
        self._calls_bytes_max = bytes_max - bytes_max // ENDS_SHARE
        self._proof = Proof()
        self._span = self._proof.begin(appender.number, appender.offset, self._clock())
        self._tidied_s = self._span.since_s
        self._mark = self._marked_to = Mark(0, 0)
        self.is_group = is_group  # `synced` waits for the disk
        self._is_looping = False
        self._waiters: list[asyncio.Future[None]] = []
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self.sync_failures = 0

    @classmethod
    def create(
        cls,
        directory: Path,
        *,
        worker: str,
        fsync: Literal["interval", "group"] = "interval",
        sync_interval_s: float = SYNC_INTERVAL_S,
        segment_bytes: int = SEGMENT_BYTES,
        bytes_max: int = JOURNAL_BYTES_MAX,
        system: System | None = None,
    ) -> "Journal":
        """A new journal below this directory, held by this process until `close`."""
        folder = Folder.create(directory, worker=worker)
        appender = Appender(folder, segment_bytes=segment_bytes, system=system or System())
        return cls(
            folder,
            appender,
            bytes_max=bytes_max,
            is_group=fsync == "group",
            sync_interval_s=sync_interval_s,
        )

    def dispatched(self, call: OpenCall) -> None:
        """Write that the call goes to its vendor now; `JournalFull` if it must not."""
        framed = self._framing.dispatched(call)
        self._proof.opened(call.call_id, self._append(framed, self._calls_bytes_max))

    def progressed(self, call: OpenCall) -> None:
        """Write what an open call holds and has consumed by now, in place of what was written.

        A call that has ended, or went past the journal, stays as it is; so does all if it is full.
        """
        if call.call_id not in self._proof.open:
            return
        framed = self._framing.dispatched(call)
        with suppress(JournalFull):
            self._proof.opened(call.call_id, self._append(framed, self._calls_bytes_max))

    def finished(self, end: End) -> None:
        """Write how the call ended, before its client has the last byte.

        After `JournalFull` the caller settles straight with Redis; the call stays open here until
        `appended` says that Redis has it.
        """
        framed = self._framing.finished(end)
        self._proof.ended(end.call_id, self._append(framed, self._bytes_max))

    async def synced(self) -> None:
        """Return once everything written before is on the disk; at once if fsync is by interval.

        `JournalFull` if the disk could not take it.
        """
        if not self.is_group:
            return
        if not self._is_looping:
            await self.sync()
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._wake.set()
        await waiter

    def appended(
        self, call_ids: Iterable[bytes], partition: int, *, generation: int, stream_id: str
    ) -> None:
        """Redis has these calls' ends, in places up to this one, the highest of them."""
        self._proof.appended(call_ids, partition, generation=generation, stream_id=stream_id)

    def proven(self, partition: int, *, generation: int, stream_id: str) -> None:
        """The watermark that Postgres has for the partition."""
        self._proof.proven(partition, generation=generation, stream_id=stream_id)

    def unproven(self, generations: Mapping[int, int]) -> Iterator[list[End]]:
        """The ends to send (again) now that partitions' streams are of these generations, by span.

        Other work may be done between two of them. Those that Redis never confirmed, and those it
        confirmed in the stream of another generation whose proof has not come: all are `unsent`
        from then on. Read from the file.
        """
        return unproven(self._folder, self._proof, generations)

    def unsent(self) -> Iterator[list[End]]:
        """The ends that no stream is known to have, by span; otherwise as `unproven`."""
        return unsent(self._folder, self._proof)

    def open_calls(self) -> Iterator[OpenCall]:
        """The calls dispatched and not finished. Read from the file."""
        return open_calls(self._folder, self._proof)

    @property
    def is_full(self) -> bool:
        """Whether calls are refused, or soon will be: the gateway is not ready then.

        A disk that refused is tried again every second.
        """
        is_near = self._appender.bytes >= self._calls_bytes_max - SPAN_BYTES
        return is_near or self._appender.is_refused

    @property
    def disk_bytes(self) -> int:
        """What the journal takes on disk."""
        return self._appender.bytes

    @property
    def open_count(self) -> int:
        """Calls dispatched and not finished."""
        return len(self._proof.open)

    @property
    def unproven_count(self) -> int:
        """Ends that Postgres is not known to have."""
        return len(self._proof.unsent) + self._proof.placed_count

    @property
    def unproven_oldest_s(self) -> float:
        """The age of the oldest of them, to about a second; 0 if there is none."""
        since_s = self._proof.oldest_unproven_s()
        return 0.0 if since_s is None else max(0.0, self._clock() - since_s)

    async def sync_loop(self) -> None:
        """Sync at every interval, in group mode also when somebody waits; until cancelled."""
        self._is_looping = True
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._sync_interval_s):
                        await self._wake.wait()
                self._wake.clear()
                with suppress(JournalFull):  # logged, and told to those who waited
                    await self.sync()
        finally:
            self._is_looping = False
            _fail(self._waiters, JournalFull("the journal is being closed"))

    async def sync(self) -> None:
        """Put on the disk what was written before, then delete the segments that are over.

        `JournalFull` if the disk could not take it. What comes next goes to a new segment, because
        a second fsync of the same file may claim success for pages that were dropped.
        """
        waiters, self._waiters = self._waiters, []
        self._tidy()
        work = self._appender.take_work(keep_from=self._proof.head().segment)
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._appender.do, work)
        except OSError as error:
            self.sync_failures += 1
            said = {"journal": self._folder.path.name, "reason": str(error), "cause": "journal"}
            log.error("journal not synced", extra=said)  # noqa: TRY400 - the reason says it all
            with suppress(OSError):
                self._appender.begin_segment()
            _fail(waiters, JournalFull(f"the journal could not be synced: {error}"))
            raise JournalFull(f"the journal could not be synced: {error}") from error
        except asyncio.CancelledError:
            _fail(waiters, JournalFull("the journal is being closed"))
            raise
        self._appender.deleted(work)
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def close(self) -> None:
        """Sync and let go. What is not proven stays for whoever adopts it; else nothing stays."""
        self._thread.shutdown(wait=True)
        _fail(self._waiters, JournalFull("the journal is closed"))
        self._write_mark()
        self._appender.close()
        if self._proof.pending():
            self._folder.release()
        else:
            self._folder.remove()

    def _append(self, framed: bytes, room: int) -> Span:
        """Write the frame and return the span it is in."""
        appender, span, now_s, size = self._appender, self._span, self._clock(), len(framed)
        if appender.bytes + size > room:
            raise JournalFull(f"the journal holds {appender.bytes} of {self._bytes_max} bytes")
        appender.append(framed)
        end = appender.offset
        if (
            end - size - span.start >= SPAN_BYTES
            or now_s - span.since_s >= SPAN_S
            or appender.number != span.segment
        ):
            span = self._span = self._proof.begin(appender.number, end - size, now_s)
        span.end = end
        return span

    def _tidy(self) -> None:
        """Once a second: carry stragglers out of old segments, and mark how far all is proven."""
        now_s = self._clock()
        if now_s - self._tidied_s >= TIDY_EVERY_S:
            self._tidied_s = now_s
            with suppress(JournalFull):
                self._carry_stragglers()
            self._write_mark()

    def _carry_stragglers(self) -> None:
        """Copy what little is pending in the oldest segments, so that they can go.

        Without this one stream of an hour, or one partition that is away, would keep every segment
        since. A span of which much is pending is a backlog, which copying would not make smaller.
        """
        for span in self._proof.pending()[:CARRY_SPANS_MAX]:
            if span.segment >= self._appender.number - 1:
                return
            calls, ends = self._needed(span)
            framing = self._framing
            framed = b"".join([framing.dispatched(call) for call in calls])
            framed += b"".join([framing.finished(end) for end in ends])
            if len(framed) * 4 > span.end - span.start:
                return
            if not framed:  # what is pending was settled past the journal: its proof is near
                continue
            to = self._append(framed, self._bytes_max)
            to.has_copies = True
            for call in calls:
                self._proof.opened(call.call_id, to)
            for end in ends:
                if end.call_id in self._proof.unsent:
                    self._proof.ended(end.call_id, to)
            self._proof.carry_places(span, to)

    def _needed(self, span: Span) -> tuple[list[OpenCall], list[End]]:
        """The calls and ends of the span that are open, unsent or, perhaps, unproven."""
        proof, placed = self._proof, self._proof.partitions_placed(span)
        calls = newest(c for c in calls_in(self._folder, span) if proof.open.get(c.call_id) is span)
        ends = [
            end
            for end in ends_in(self._folder, span)
            if proof.unsent.get(end.call_id) is span or end.partition in placed
        ]
        return calls, ends

    def _write_mark(self) -> None:
        """Note how far all is proven, so that whoever adopts this does not send it all again.

        It is also how a journal that was refused finds out that it can be written again.
        """
        head = self._proof.head()
        mark = Mark(head.segment, head.start if head.pending else head.end)
        if mark in {self._mark, self._marked_to} and not self._appender.is_refused:
            return
        with suppress(JournalFull):
            self._append(self._framing.proven(mark), self._bytes_max)
            self._mark = mark
            self._marked_to = Mark(self._appender.number, self._appender.offset)


def _fail(waiters: list[asyncio.Future[None]], failure: JournalFull) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_exception(failure)
