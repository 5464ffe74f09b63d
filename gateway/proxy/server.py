"""The data plane's listener: aiohttp's low-level server behind a guard.

aiohttp accepts connections, parses (its C parser), queues pipelined requests, keeps the deadline of
idle connections and shuts down. Whose turn it is, is decided in `Guard.start` and not by aiohttp's
own `start`, which makes a task, a request and a writer for each call: they serve context variables
and answers of kinds that we have not, and took 12 of the 20 us that a call spends here. A test
compares the methods of aiohttp that this leans on with those it was written for.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

from aiohttp import web
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import ERROR, RequestHandler, _ErrInfo

from gateway import errors
from gateway.outbox import Outbox
from gateway.proxy.exchange import CLOSE, Answered, ClientGone, Dates, Exchange, Memory

_log = logging.getLogger(__name__)

Handler = Callable[["Exchange"], Awaitable["Answered"]]

_LINGER_S = 5.0
"""How long the rest of a body that was refused is read and dropped. Most clients read no answer
before they have sent all, and closing on unread bytes would reset the connection and the answer
with it."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Wall:
    """What the guard allows before a request reaches a handler."""

    header_timeout_s: float
    headers_max: int
    header_bytes_max: int
    keep_alive_s: float
    connections_max: int


class Guard(RequestHandler):
    """One client connection: aiohttp's protocol with the deadlines and limits it does not have.

    `start` is ours whole, see the head of this file; it keeps the fields that the rest of aiohttp's
    protocol reads: whose turn it is, whether somebody waits, when an idle connection ends.
    """

    __slots__ = ("_head_deadline", "_wall", "dates", "memory", "outbox", "server")

    _current_request: Any  # an Exchange, which is no BaseRequest

    def __init__(self, server: "DataServer", wall: Wall, **options: Any) -> None:
        super().__init__(server, **options)
        self.server, self._wall = server, wall
        self.dates, self.outbox, self.memory = server.dates, server.outbox, Memory("")
        self._head_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        name = transport.get_extra_info("peername")
        self.memory.peer = name[0] if isinstance(name, tuple) else ""
        super().connection_made(transport)
        server = self.server
        if len(server.connections_open) > self._wall.connections_max:
            server.refused += 1
            self.force_close()
            return
        self._await_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_waiting()
        self.memory.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head_deadline is not None:
            if self._messages:
                self._stop_waiting()
        elif self._current_request is None and not self._messages:
            self._await_head()

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002 - aiohttp's own signature
        # Every body asks for this at its end, and hardly any was ever paused.
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def force_close(self) -> None:
        self.outbox.flush()
        super().force_close()

    async def drained(self) -> None:
        """Wait until most of what was written is taken; `ConnectionError` if nobody is there."""
        await self._drain_helper()

    async def start(self) -> None:
        """Answer one request after the other until the connection ends."""
        loop, handler = self._loop, self.server.handler
        try:
            while not self._force_close:
                if not self._messages:
                    self._waiter = loop.create_future()
                    try:
                        await self._waiter
                    finally:
                        self._waiter = None
                    continue  # the connection may be lost by now
                message, content = self._take()
                if isinstance(message, _ErrInfo):
                    self._tell_unparsed(message)
                    break
                exchange = self._current_request = Exchange(message, content, self)
                self._request_in_progress = True
                try:
                    answered = await handler(exchange)
                except Exception as error:  # noqa: BLE001 - the request's edge: it is answered and logged
                    answered = self._failed(exchange, error)
                finally:
                    self._current_request, self._request_in_progress = None, False
                    if self._handler_waiter is not None:
                        self._handler_waiter.set_result(None)
                if self._upgraded or (not exchange.is_read and exchange.has_body):
                    await self._tidy(exchange, answered)
                if not answered.keep_alive or self._close or self._force_close:
                    break
                # Or an idle connection would keep all of its last request.
                del message, content, exchange
                self._next_keepalive_close_time = loop.time() + self._keepalive_timeout
                if self._keepalive_handle is None:
                    self._keepalive_handle = loop.call_at(
                        self._next_keepalive_close_time, self._process_keepalive
                    )
        except BaseException:
            self.force_close()
            raise
        self._hang_up()

    def _hang_up(self) -> None:
        """Close the connection when what was written has left."""
        if not self._force_close:
            self._task_handler = None
            self.outbox.flush()
            if self.transport is not None:
                self.transport.close()

    def _take(self) -> tuple[RawRequestMessage | _ErrInfo, StreamReader]:
        """The next request of the queue, which has room for another one then."""
        taken = self._messages.popleft()
        if self._parser is not None:
            self._parser.message_consumed()
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()
        return taken

    def _tell_unparsed(self, fault: _ErrInfo) -> None:
        exchange = Exchange(ERROR, EMPTY_PAYLOAD, self)
        with suppress(ClientGone):
            exchange.answer(fault.status, *unparsed_answer(fault.status, fault.message), close=True)

    def _failed(self, exchange: Exchange, error: Exception) -> Answered:
        """Answer for a bug that escaped every handler."""
        _log.error("handler failed", exc_info=error)
        try:
            if not exchange.head_sent:
                return exchange.answer(500, *unparsed_answer(500, None), close=True)
            exchange.cut()
        except ClientGone:
            pass
        return CLOSE

    async def _tidy(self, exchange: Exchange, answered: Answered) -> None:
        """Before the next request: decline an upgrade, read and drop the rest of a body."""
        if self._upgraded:
            # aiohttp parses what came behind it then.
            await self.finish_response(cast("Any", exchange), cast("Any", answered), None)
        content = exchange.content
        if content.is_eof() or exchange.is_gone:
            return
        try:
            async with asyncio.timeout(_LINGER_S):
                while not content.is_eof():
                    await content.readany()
        except TimeoutError:
            self.close()

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
        super().__init__(cast("Any", handler), handler_cancellation=False)
        self.handler, self._wall = handler, wall
        self.dates, self.outbox = Dates(self._loop), Outbox(self._loop)
        self.refused = 0

    @property
    def connections_open(self) -> dict[RequestHandler, asyncio.Transport]:
        """The open connections."""
        return self._connections

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
