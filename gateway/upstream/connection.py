"""One HTTP/1.1 connection to a vendor: one request at a time, its answer parsed as it comes.

It belongs either to one request or to its pool. It goes back to the pool by itself, in the step
that parses the answer's last byte, and only if both sides are at a message border; in every other
case it is closed, so that nobody can read what was meant for somebody else.
"""

import asyncio
import math
import re
import select
from dataclasses import dataclass
from typing import Protocol, cast

import httptools

from gateway.outbox import Outbox
from gateway.upstream.errors import (
    Phase,
    UpstreamCut,
    UpstreamError,
    UpstreamGarbled,
    UpstreamTimeout,
)
from gateway.upstream.inbox import Inbox

BUFFER_BYTES_MAX = 256 * 1024  # of an answer nobody reads; then the vendor is read no more
HEAD_BYTES_MAX = 64 * 1024  # interim answers included
HEADERS_MAX = 128
_SLICE_BYTES = 256 * 1024  # a larger body is sent in slices, no faster than the vendor takes them
_TIMER_SLACK_S = 0.001  # the loop's clock ticks in milliseconds
# A connection that just worked is not asked whether it still stands: that costs a system call.
_CHECKED_WHEN_IDLE_S = 1.0
_KEEP_ALIVE_TIMEOUT = re.compile(rb"(?:^|[\s,;])timeout=(\d{1,6})", re.IGNORECASE)


class Waits(Protocol):
    """How long each step of a call may take. There is none for the whole: good streams are long."""

    @property
    def connect_s(self) -> float:
        """For a free connection, or for name, address and certificate of a new one."""

    @property
    def first_byte_s(self) -> float:
        """From the request's last byte to the end of the answer's head."""

    @property
    def idle_s(self) -> float:
        """Without a byte of the answer's body; without progress while sending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """The plainest `Waits`."""

    connect_s: float
    first_byte_s: float
    idle_s: float


class Owner(Protocol):
    """Who is told where the connection stands."""

    def freed(self, connection: "Connection", now_s: float) -> None:
        """It can carry another request."""

    def lost(self, connection: "Connection") -> None:
        """It is closed. Told once."""


class _Interrupt(Exception):
    """Raised inside the parser's callbacks to stop it."""


class Connection(asyncio.Protocol):
    """A connection in the hands of `Owner` or of one request."""

    __slots__ = (
        "_deadline_s",
        "_inbox",
        "_is_closed",
        "_is_reusable",
        "_is_writable",
        "_loop",
        "_outbox",
        "_owner",
        "_parser",
        "_poll",
        "_received_bytes",
        "_timer",
        "_timer_at_s",
        "_transport",
        "idle_since_s",
        "is_after_stream",
        "is_paused",
        "is_sent",
        "keep_alive_s",
        "opened_at_s",
        "requests",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, owner: Owner, outbox: Outbox) -> None:
        self._loop, self._owner, self._outbox = loop, owner, outbox
        self._transport: asyncio.Transport
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._inbox: Inbox | None = None
        self._poll: select.poll | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_s = self._deadline_s = math.inf
        self._is_closed = False
        self.is_paused = False  # it reads no more: too much waits in the inbox
        self._is_writable = True
        self.is_sent = True  # the request has been handed over whole
        self._is_reusable = True  # the vendor will read another request
        self._received_bytes = 0  # of the answer
        self.opened_at_s = self.idle_since_s = loop.time()
        self.keep_alive_s = math.inf  # how long the vendor says it keeps an idle connection
        self.is_after_stream = False  # its last answer was an event stream
        self.requests = 0

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "busy" if self._inbox else "idle"
        return f"<Connection {state}, {self.requests} requests>"

    # What the pool asks.

    def is_open(self) -> bool:
        """It may carry a request, for all we know without asking the system."""
        return not self._is_closed and not self._transport.is_closing()

    def is_warm(self, now_s: float) -> bool:
        """It has just worked, and not for a stream: it may carry a request, nothing to doubt."""
        return (
            now_s - self.idle_since_s < _CHECKED_WHEN_IDLE_S
            and not self.is_after_stream
            and not self._is_closed
            and not self._transport.is_closing()
        )

    def is_fresh(self, now_s: float) -> bool:
        """It may carry a request. One that has been idle is asked: a byte or an end lies there."""
        if not self.is_open():
            return False
        if now_s - self.idle_since_s < _CHECKED_WHEN_IDLE_S:
            return True
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self._transport.get_extra_info("socket"), select.POLLIN)
        return not self._poll.poll(0)

    def rest(self, now_s: float, until_s: float) -> None:
        """Wait in the pool, and close when `until_s` passes."""
        self.idle_since_s = now_s
        self._deadline_s = until_s
        if until_s < self._timer_at_s:
            self._arm(until_s)

    def close(self) -> None:
        """Close at once, whatever is under way. Harmless when repeated."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._parser = None  # it holds us, and we it
        if self._inbox is not None:
            self._fail(UpstreamCut, "the connection was closed here")
        self._transport.abort()
        self._owner.lost(self)

    # One request.

    # Only a large body suspends here: the caller awaits what `wait` returns, with no coroutine of
    # ours between. When that is cancelled, the caller abandons the request.

    def begin(self, head: bytes, body: bytes, *, is_bodyless: bool) -> Inbox:
        """Hand over the request, or as much of it as goes in one piece (`is_sent`)."""
        assert self._inbox is None, "a connection carries one request at a time"
        inbox = self._inbox = Inbox(is_bodyless=is_bodyless)
        self.requests += 1
        self._received_bytes = 0
        self._deadline_s = math.inf
        self.is_sent = False
        if self._is_closed or self._transport.is_closing():
            self._fail(UpstreamCut, "the connection was lost before the request", sent=False)
        elif len(body) <= _SLICE_BYTES:
            self._outbox.put(self._transport, head + body)
            self.is_sent = True
        else:
            self._transport.write(head)
        return inbox

    async def send_slices(self, inbox: Inbox, body: bytes, *, idle_s: float) -> None:
        """Hand over a body that is too large for one piece."""
        view = memoryview(body)
        for start in range(0, len(view), _SLICE_BYTES):
            while not self._is_writable and not inbox.status and inbox.failure is None:
                await self.wait(inbox, idle_s)
            if inbox.status or inbox.failure is not None:
                return  # answered before it had read all: what it says counts
            self._transport.write(view[start : start + _SLICE_BYTES])
        self.is_sent = True

    def wait(self, inbox: Inbox, seconds: float) -> "asyncio.Future[None]":
        """Done when the inbox has something new; too long is its failure."""
        at_s = self._deadline_s = self._loop.time() + seconds
        if at_s < self._timer_at_s:
            self._arm(at_s)
        waiter = inbox.waiter = self._loop.create_future()
        return waiter

    def drained(self, inbox: Inbox) -> None:
        """There is room in the inbox again."""
        if self.is_paused and self._inbox is inbox:
            self.is_paused = False
            self._transport.resume_reading()

    def abandon(self, inbox: Inbox) -> None:
        """Close the connection if the inbox is still its own."""
        if self._inbox is inbox:
            self.close()

    # What the transport tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        inbox, parser = self._inbox, self._parser
        if inbox is None or parser is None:
            self.close()  # nobody asked for anything: what follows could not be told apart
            return
        self._received_bytes += len(data)
        status = inbox.status
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._is_reusable = False
            if not inbox.is_complete:
                self._fail(UpstreamGarbled, f"the vendor's answer is not HTTP: {error}")
                return
        if inbox.is_complete:
            self._deadline_s = math.inf
            inbox.wake()
            self._part()
        elif inbox.chunks or inbox.status != status:
            self._deadline_s = math.inf
            inbox.wake()
            if inbox.size > BUFFER_BYTES_MAX:
                self.is_paused = True
                self._transport.pause_reading()
        elif not inbox.status and self._received_bytes > HEAD_BYTES_MAX:
            self._fail(UpstreamGarbled, "the head of the vendor's answer is too long")

    def eof_received(self) -> None:
        self._ended(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._ended(error)

    def pause_writing(self) -> None:
        self._is_writable = False

    def resume_writing(self) -> None:
        self._is_writable = True
        if self._inbox is not None and not self.is_sent:
            self._inbox.wake()

    # What the parser tells.

    def on_message_begin(self) -> None:
        inbox = self._inbox
        if inbox is None or inbox.is_complete:
            raise _Interrupt  # bytes after the answer

    def on_header(self, name: bytes, value: bytes) -> None:
        inbox = self._inbox
        assert inbox is not None
        if not inbox.status:  # else it is a trailer, which nobody needs
            inbox.head.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        inbox, parser = self._inbox, self._parser
        assert inbox is not None
        assert parser is not None
        status = parser.get_status_code()
        if status < 200:  # noqa: PLR2004 - interim answers
            if status == 101:  # noqa: PLR2004 - nobody asked for another protocol
                raise _Interrupt
            inbox.head.clear()
            return
        head = inbox.head
        named = inbox.named = dict(head)
        if self._received_bytes > HEAD_BYTES_MAX or len(head) > HEADERS_MAX:
            self._check_size(head)
        if b"transfer-encoding" in named:
            self._check_codings(head)
        if b"keep-alive" in named:
            found = _KEEP_ALIVE_TIMEOUT.search(named[b"keep-alive"])
            self.keep_alive_s = float(found[1]) if found else math.inf
        self._is_reusable = parser.should_keep_alive()
        self.is_after_stream = inbox.is_event_stream = (
            named.get(b"content-type", b"").lower().startswith(b"text/event-stream")
        )
        inbox.status = status
        if inbox.is_bodyless:
            inbox.is_complete = True
            raise _Interrupt  # the parser would wait for the body that the head describes

    def on_body(self, chunk: bytes) -> None:
        inbox = self._inbox
        assert inbox is not None
        inbox.chunks.append(chunk)
        inbox.size += len(chunk)

    def on_message_complete(self) -> None:
        inbox = self._inbox
        if inbox is not None and inbox.status:
            inbox.is_complete = True

    # How it goes on.

    def _check_size(self, head: list[tuple[bytes, bytes]]) -> None:
        """Judge a long head exactly; what was received may hold much of the body, too."""
        size = sum(len(name) + len(value) for name, value in head)
        if len(head) > HEADERS_MAX or size > HEAD_BYTES_MAX:
            raise _Interrupt

    def _check_codings(self, head: list[tuple[bytes, bytes]]) -> None:
        """Refuse every coding that was not asked for and is not undone here."""
        for name, value in head:
            if name == b"transfer-encoding" and value.strip().lower() != b"chunked":
                raise _Interrupt

    def _part(self) -> None:
        """The answer is whole: hand the connection back, or close it."""
        self._inbox = None
        if self.is_paused:
            self.is_paused = False
            self._transport.resume_reading()
        if self._is_reusable and self.is_sent and not self._is_closed:
            self._owner.freed(self, self._loop.time())
        else:
            self.close()

    def _ended(self, error: Exception | None) -> None:
        inbox = self._inbox
        if inbox is not None and error is None and inbox.ends_with_connection:
            inbox.is_complete = True
            self._inbox = None
            inbox.wake()
        elif inbox is not None:
            self._fail(UpstreamCut, "the vendor closed the connection")
        self.close()

    def _fail(self, kind: type[UpstreamError], message: str, *, sent: bool = True) -> None:
        """End the request with a failure, and the connection with it."""
        inbox = self._inbox
        assert inbox is not None
        phase: Phase = "body" if inbox.status else "head" if self.is_sent else "send"
        inbox.failure = kind(
            message,
            phase=phase,
            sent=sent,
            reused=self.requests > 1,
            answered=self._received_bytes > 0,
        )
        self._inbox = None
        inbox.wake()
        self.close()

    # One timer, armed anew only when it fires or must fire earlier.

    def _arm(self, at_s: float) -> None:
        if self._is_closed:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(at_s, self._tick)
        self._timer_at_s = at_s

    def _tick(self) -> None:
        self._timer, self._timer_at_s = None, math.inf
        if self._deadline_s == math.inf:
            return
        if self._deadline_s - self._loop.time() > _TIMER_SLACK_S:
            self._arm(self._deadline_s)
        elif self._inbox is None:
            self.close()
        else:
            self._fail(UpstreamTimeout, "the vendor took too long")
