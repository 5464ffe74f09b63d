"""One request of the data plane and the way to answer it, as raw bytes.

Heads are rendered here, because a head of aiohttp's own costs as much as the rest of a call.
"""

import asyncio
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import Protocol

from aiohttp.http_parser import RawRequestMessage
from aiohttp.http_writer import HttpVersion11
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from gateway.copied import Copy
from gateway.credential import Shown
from gateway.outbox import Outbox
from gateway.proxy.wall import flaw_of

_CLASSES = {2: "Good", 3: "Elsewhere", 4: "Refused", 5: "Failed"}
_PHRASES = {each: _CLASSES.get(each // 100, "Other") for each in range(100, 1_000)}
_PHRASES |= {each.value: each.phrase for each in HTTPStatus}
# Of every status there can be: vendors have some that no standard names, and those pass unchanged.
_FIRST_LINES = {
    status: f"HTTP/1.1 {status} {phrase}\r\n".encode() for status, phrase in _PHRASES.items()
}
_CHUNKED = b"Transfer-Encoding: chunked\r\n"
_CHUNKS_END = b"0\r\n\r\n"
_LAST_LINES = b"Connection: close\r\n\r\n"


class Answered:
    """The answer is written; says only whether the connection may go on."""

    __slots__ = ("keep_alive",)

    def __init__(self, *, keep_alive: bool) -> None:
        self.keep_alive = keep_alive

    async def prepare(self, _request: object) -> None:
        """Nothing is left to prepare."""

    async def write_eof(self) -> None:
        """Nothing is left to write."""


KEEP, CLOSE = Answered(keep_alive=True), Answered(keep_alive=False)


class ClientGone(Exception):
    """The client's connection is closed: what was to be written cannot be."""


class Memory:
    """What a connection knows of its last call, because the next one is most often alike.

    It is as old as its connection at most, and emptied when that is lost.
    """

    __slots__ = ("client", "host", "peer", "shown")

    def __init__(self, peer: str) -> None:
        self.peer = peer  # the address of the other end of the socket; "" if it has none
        self.host: str | None = None  # the Host that was found good
        self.shown = Shown()
        self.client = ("", "", "")  # organization, user agent and the id made of them

    def clear(self) -> None:
        """Forget the calls."""
        self.shown.clear()
        self.client = ("", "", "")


class Dates:
    """The Date header, rendered once a second."""

    __slots__ = ("_loop", "line")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.line = b""  # empty when it must be rendered

    def render(self) -> bytes:
        """The line of this second."""
        self.line = f"Date: {formatdate(usegmt=True)}\r\n".encode()
        self._loop.call_later(1.0, self._forget)
        return self.line

    def _forget(self) -> None:
        self.line = b""


class Line(Protocol):
    """The connection of an exchange."""

    transport: asyncio.Transport | None
    memory: Memory
    dates: Dates
    outbox: Outbox
    is_leaving: bool  # the process stops: what is answered is the connection's last answer

    @property
    def writing_paused(self) -> bool:
        """The client takes less than it is sent."""

    async def drained(self) -> None:
        """Wait until most of what was written is taken; `ConnectionError` if nobody is there."""


class Exchange:
    """One request and the way to answer it.

    It is no `web.BaseRequest`, which costs more to make than to use: of a request, aiohttp wants
    `_cancel` and, after an upgrade that was declined, `_finish`.
    """

    __slots__ = (
        "_is_chunked",
        "_is_last",
        "_line",
        "_message",
        "content",
        "copy",
        "flaw",
        "head_sent",
        "header",
        "is_read",
        "memory",
        "method",
        "on_gone",
        "query_string",
        "raw_path",
    )

    def __init__(self, message: RawRequestMessage, content: StreamReader, line: Line) -> None:
        self._message, self._line = message, line
        self.content = content  # the body
        self.memory = line.memory
        self.method = message.method
        self.raw_path = path = message.path  # the request target as it was sent, query and all
        self.query_string = message.url.query_string if "?" in path else ""  # decoded
        # The value of a request header, or None. No method of ours: it is called a lot.
        self.header: Callable[[str], str | None] = message.headers.get
        # Whether we answer in chunks: to HTTP/1.0 the end of the connection ends the answer.
        self._is_chunked = message.version == HttpVersion11
        host = self.header("host")
        # Why we read it not, as other servers may read it otherwise. All but the first of a
        # connection are told to be good by little: its Host is checked once.
        self.flaw = (
            None
            if host == self.memory.host
            and self._is_chunked
            and not message.chunked
            and not message.upgrade
            and path[0] == "/"
            and self.header("expect") is None
            else flaw_of(message)
        )
        if self.flaw is None:
            self.memory.host = host
        self.is_read = False  # all of the body was taken
        self.head_sent = False
        self.on_gone: Callable[[], None] | None = None
        self.copy: Copy | None = None  # of what the client is sent, for who chose to keep it

    def _cancel(self, exc: BaseException) -> None:
        # aiohttp calls this when the connection is lost while the handler runs.
        self.content.set_exception(exc)
        if self.on_gone is not None:
            self.on_gone()

    def _finish(self) -> None:
        """Nothing is left to clean up."""

    @property
    def path(self) -> str:
        """The path, decoded."""
        return self._message.url.path

    def every(self, name: str) -> str | None:
        """The values of all headers of this name, as one; None: there is none."""
        return ", ".join(self._message.headers.getall(name, ())) or None

    @property
    def is_gone(self) -> bool:
        """The client has closed its connection."""
        transport = self._line.transport
        return transport is None or transport.is_closing()

    @property
    def has_body(self) -> bool:
        """Bytes of the body are still to come."""
        return not self.content.is_eof()

    def whole_body(self) -> bytes | None:
        """The body, if all of it has come by now, as it does with most heads; once."""
        content = self.content
        if not content.is_eof():
            return None
        self.is_read = True
        if content is EMPTY_PAYLOAD:
            return b""
        # Nearly always one part. What `read_nowait` does besides is for bodies still on their way.
        parts = content._buffer  # noqa: SLF001 - six calls less, and a test says if it is renamed
        return parts.popleft() if len(parts) == 1 else content.read_nowait(-1)

    def write(self, data: bytes) -> None:
        """Send these bytes with what else this turn sends; `ClientGone` if nobody is there."""
        line = self._line
        transport = line.transport
        if transport is None or transport.is_closing():
            raise ClientGone
        line.outbox.put(transport, data)

    @property
    def is_behind(self) -> bool:
        """The client takes less than it is sent."""
        return self._line.writing_paused

    async def drained(self) -> None:
        """Wait until the client has taken most of what was written; one that stalls is gone."""
        try:
            await self._line.drained()  # the guard cuts who takes nothing
        except ConnectionError as error:
            raise ClientGone from error

    def cut(self) -> None:
        """Close the client's connection now: the only way to say that an answer is not whole."""
        transport = self._line.transport
        if transport is not None:
            self._line.outbox.flush()
            transport.abort()

    def answer(self, status: int, headers: bytes, body: bytes, *, close: bool = False) -> Answered:
        """Send a whole answer in one write. `headers`: rendered lines, each ending in CRLF."""
        line = self._line
        close = (
            close
            or line.is_leaving
            or self._message.should_close
            or (not self.is_read and self.has_body)
        )
        dates = line.dates
        whole = b"%b%bContent-Length: %d\r\n%b%b%b" % (
            _FIRST_LINES[status],
            dates.line or dates.render(),
            len(body),
            headers,
            _LAST_LINES if close else b"\r\n",
            body if self.method != "HEAD" else b"",
        )
        self.head_sent = True
        if self.copy is not None:
            self.copy.add(body)
        self.write(whole)
        return CLOSE if close else KEEP

    def start(self, status: int, headers: bytes, first: bytes) -> None:
        """Send the head of an answer that goes on, and its first chunk, in one write."""
        if self.copy is not None:
            self.copy.add(first)
        dates = self._line.dates
        date_line = dates.line or dates.render()
        if not self._is_chunked:
            head = b"".join((_FIRST_LINES[status], date_line, headers, _LAST_LINES))
            self.head_sent = True
            self.write(head + first)
            return
        # Said in the head or not done at all: a client calls again as soon as this one ends.
        self._is_last = self._message.should_close or self._line.is_leaving
        ending = _LAST_LINES if self._is_last else b"\r\n"
        head = b"".join((_FIRST_LINES[status], date_line, _CHUNKED, headers, ending))
        self.head_sent = True
        self.write(head + chunk(first))

    def write_chunk(self, data: bytes) -> None:
        """Send these bytes, at least one, as the next chunk."""
        if self.copy is not None:
            self.copy.add(data)
        self.write(b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked else data)

    def finish(self, last: bytes) -> Answered:
        """Send the last chunk and the end of the answer in one write."""
        if self.copy is not None:
            self.copy.add(last)
        if not self._is_chunked:
            self.write(last)
            return CLOSE
        self.write(chunk(last) + _CHUNKS_END)
        return CLOSE if self._is_last else KEEP


def chunk(data: bytes) -> bytes:
    """The bytes as one chunk of a chunked body; nothing for none, which would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
