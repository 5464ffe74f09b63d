"""The data plane's listener: aiohttp's low-level server behind a guard, and answers as raw bytes.

aiohttp parses requests (its C parser) and keeps the connection's turn; heads are rendered here,
because a head of aiohttp's own costs as much as the rest of a call. Handlers write to an `Exchange`
and return `KEEP` or `CLOSE`, which is all aiohttp still has to know.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, cast

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.http_writer import HttpVersion10, HttpVersion11
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler

from gateway import errors

_log = logging.getLogger(__name__)

Handler = Callable[["Exchange"], Awaitable["Answered"]]

_REASONS = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}
_CHUNKS_END = b"0\r\n\r\n"

_LINGER_S = 5.0
"""How long the rest of a body that was refused is read and dropped. Most clients read no answer
before they have sent all, and closing on unread bytes would reset the connection and the answer
with it."""


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


class Exchange(web.BaseRequest):
    """One request and the way to answer it."""

    def __init__(self, *args: Any, **options: Any) -> None:  # Any: aiohttp's own signature
        super().__init__(*args, **options)
        self.head_sent = False
        self._is_chunked = True
        self.on_gone: Callable[[], None] | None = None

    def _cancel(self, exc: BaseException) -> None:
        # aiohttp calls this when the connection is lost while the handler runs.
        super()._cancel(exc)
        if self.on_gone is not None:
            self.on_gone()

    @property
    def is_gone(self) -> bool:
        """The client has closed its connection."""
        transport = self._protocol.transport
        return transport is None or transport.is_closing()

    @property
    def raw_path(self) -> str:
        """The request target as it was sent, query and all."""
        return self._message.path

    @property
    def is_sound(self) -> bool:
        """False for requests that other servers may read otherwise, so that we read them not."""
        message = self._message
        if message.version == HttpVersion11:
            return True
        return message.version == HttpVersion10 and not message.chunked

    def header(self, name: str) -> str | None:
        """The value of this request header, or None."""
        return self._headers.get(name)

    @property
    def wants_close(self) -> bool:
        """The connection ends with this answer, by the client's wish or its version's."""
        return self._message.should_close

    @property
    def peer(self) -> str:
        """The address of the other end of the socket; "" if it has none."""
        name = self._transport_peername
        return name[0] if isinstance(name, tuple) else ""

    @property
    def has_body(self) -> bool:
        """Bytes of the body are still to come or to be read."""
        return not self._payload.is_eof()

    def write(self, data: bytes) -> None:
        """Send these bytes; `ClientGone` if nobody is there."""
        transport = self._protocol.transport
        if transport is None or transport.is_closing():
            raise ClientGone
        transport.write(data)

    async def drained(self, stall_s_max: float) -> None:
        """Wait until the client has taken most of what was written; one that stalls is gone."""
        if not self._protocol.writing_paused:
            return
        try:
            async with asyncio.timeout(stall_s_max):
                await self._payload_writer.drain()
        except (TimeoutError, ConnectionError) as error:
            self.cut()
            raise ClientGone from error

    def cut(self) -> None:
        """Close the client's connection now: the only way to say that an answer is not whole."""
        transport = self._protocol.transport
        if transport is not None:
            transport.abort()

    def answer(self, status: int, headers: bytes, body: bytes, *, close: bool = False) -> Answered:
        """Send a whole answer in one write. `headers`: rendered lines, each ending in CRLF."""
        close = close or self.wants_close or self.has_body
        ending = b"Connection: close\r\n\r\n" if close else b"\r\n"
        length = b"Content-Length: %d\r\n" % len(body)
        self.head_sent = True
        if self._method == "HEAD":
            body = b""
        self.write(b"".join((_REASONS[status], self._date(), length, headers, ending, body)))
        return CLOSE if close else KEEP

    def _date(self) -> bytes:
        server = self._protocol._manager  # noqa: SLF001 - aiohttp offers no other way to it
        return server.date_line() if isinstance(server, DataServer) else b""

    def start(self, status: int, headers: bytes, first: bytes) -> None:
        """Send the head of an answer that goes on, and its first chunk, in one write."""
        self.head_sent = True
        # To HTTP/1.0 the end of the connection is the end of the answer.
        self._is_chunked = self._message.version == HttpVersion11
        framing = b"Transfer-Encoding: chunked\r\n" if self._is_chunked else b""
        close = self.wants_close or not self._is_chunked
        ending = b"Connection: close\r\n\r\n" if close else b"\r\n"
        shown = chunk(first) if self._is_chunked else first
        self.write(b"".join((_REASONS[status], self._date(), framing, headers, ending, shown)))

    def write_chunk(self, data: bytes) -> None:
        """Send these bytes, at least one, as the next chunk."""
        self.write(chunk(data) if self._is_chunked else data)

    def finish(self, last: bytes) -> Answered:
        """Send the last chunk and the end of the answer in one write."""
        if not self._is_chunked:
            self.write(last)
            return CLOSE
        self.write(chunk(last) + _CHUNKS_END)
        return CLOSE if self.wants_close else KEEP


def unparsed_answer(status: int, message: str | None) -> tuple[bytes, bytes]:
    """Header lines and body for a request that is no HTTP, or that hit a bug of ours."""
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        error: errors.GatewayError = errors.Internal(
            "The gateway failed; nothing was charged.", code="internal_error"
        )
    else:
        reason = (message or "unreadable").splitlines()[0][:200]
        error = errors.BadRequest(f"This is not a valid HTTP request: {reason}", code="bad_http")
    return b"Content-Type: application/json\r\n", errors.body(error)


def chunk(data: bytes) -> bytes:
    """The bytes as one chunk of a chunked body; nothing for none, which would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wall:
    """What the guard allows before a request reaches a handler."""

    header_timeout_s: float
    headers_max: int
    header_bytes_max: int
    keep_alive_s: float
    connections_max: int


class Guard(RequestHandler):
    """One client connection: aiohttp's protocol with the deadlines and limits it does not have."""

    __slots__ = ("_head_deadline", "_wall")

    def __init__(self, server: "DataServer", wall: Wall, **options: Any) -> None:
        super().__init__(server, **options)
        self._wall = wall
        self._head_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        server = cast("DataServer", self._manager)
        if len(server.connections_open) > self._wall.connections_max:
            server.refused += 1
            self.force_close()
            return
        self._await_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        waiting = self._current_request is None and not self._messages
        super().data_received(data)
        if not waiting:
            return
        if self._messages:
            self._stop_waiting()
        elif self._head_deadline is None:
            self._await_head()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        # Reached for requests aiohttp cannot parse, and for a bug that escaped every handler.
        exchange = cast("Exchange", request)
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            _log.error("handler failed", exc_info=exc)
        if exchange.head_sent:
            exchange.cut()
            raise ConnectionResetError from exc
        answer = exchange.answer(status, *unparsed_answer(status, message), close=True)
        return cast("web.StreamResponse", answer)

    def _await_head(self) -> None:
        self._head_deadline = self._loop.call_later(self._wall.header_timeout_s, self._too_slow)

    def _stop_waiting(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None

    def _too_slow(self) -> None:
        # A head that drips in is an attack or a broken client; neither reads an answer.
        self._head_deadline = None
        self.force_close()


class DataServer(web.Server):
    """Makes a guarded connection of every accepted socket."""

    def __init__(self, handler: Handler, wall: Wall) -> None:
        super().__init__(
            cast("Any", handler), request_factory=self._exchange, handler_cancellation=False
        )
        self._wall = wall
        self._date_line, self._date_until_s = b"", 0.0
        self.refused = 0

    def date_line(self) -> bytes:
        """The Date header, rendered once a second."""
        now_s = self._loop.time()
        if now_s >= self._date_until_s:
            self._date_line = f"Date: {formatdate(usegmt=True)}\r\n".encode()
            self._date_until_s = now_s + 1.0
        return self._date_line

    @property
    def connections_open(self) -> dict[RequestHandler, asyncio.Transport]:
        """The open connections."""
        return self._connections

    def _exchange(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: RequestHandler,
        writer: AbstractStreamWriter,
        task: "asyncio.Task[None]",
    ) -> Exchange:
        return Exchange(message, payload, protocol, writer, task, self._loop)

    def __call__(self) -> Guard:
        return Guard(
            self,
            self._wall,
            loop=self._loop,
            access_log=None,
            logger=_log,
            keepalive_timeout=self._wall.keep_alive_s,
            max_headers=self._wall.headers_max,
            max_line_size=8190,
            max_field_size=self._wall.header_bytes_max,
            auto_decompress=False,
            lingering_time=_LINGER_S,
        )


def bind(host: str, port: int) -> socket.socket:
    """A listening socket that several workers can share a port with."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.setblocking(False)
    listener.bind((host, port))
    return listener
