"""The data plane's listener: aiohttp's low-level server behind a guard.

aiohttp accepts connections, parses (its C parser), queues pipelined requests, keeps the deadline of
idle connections and shuts down. Whose turn it is, is decided in `Guard.start` and not by aiohttp's
own `start`, which makes a task, a request and a writer for each call: they serve context variables
and answers of kinds that we have not, and took 12 of the 20 us that a call spends here. A test
compares the methods of aiohttp that this leans on with those it was written for.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, cast

from aiohttp import web
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import ERROR, RequestHandler, _ErrInfo

from gateway import errors
from gateway.outbox import Outbox
from gateway.proxy.exchange import CLOSE, Answered, ClientGone, Dates, Exchange, Memory
from gateway.proxy.wall import (
    OVERHEAD_FREE,
    OVERHEAD_PER_BYTE,
    Flaw,
    Stall,
    TellTurnedAway,
    Turnstile,
    Wall,
    answer_of,
)

_log = logging.getLogger(__name__)

Handler = Callable[["Exchange"], Awaitable["Answered"]]

_LAST_WORDS_S = 1.0
"""How long a client whose request was not read may take to read why."""

_LINGER_S = 5.0
"""How long the rest of a body that was refused is read and dropped. Most clients read no answer
before they have sent all, and closing on unread bytes would reset the connection and the answer
with it."""


class Guard(RequestHandler):
    """One client connection: aiohttp's protocol with the deadlines and limits it does not have.

    `start` is ours whole, see the head of this file; it keeps the fields that the rest of aiohttp's
    protocol reads: whose turn it is, whether somebody waits, when an idle connection ends.
    """

    __slots__ = (
        "_body",
        "_bytes",
        "_head_deadline",
        "_heads",
        "_is_admitted",
        "_stall",
        "_wall",
        "dates",
        "is_leaving",
        "memory",
        "outbox",
        "server",
    )

    _current_request: Any  # an Exchange, which is no BaseRequest

    def __init__(self, server: "DataServer", wall: Wall, **options: Any) -> None:
        super().__init__(server, **options)
        self.server, self._wall = server, wall
        self.dates, self.outbox, self.memory = server.dates, server.outbox, Memory("")
        self.is_leaving = server.is_leaving
        self._head_deadline: asyncio.TimerHandle | None = None
        self._stall = Stall(self._loop, wall.stall_s_max)
        self._is_admitted = False
        self._heads = 0  # that were parsed whole
        self._body: StreamReader | None = None  # of the latest of them, while it still comes
        self._bytes = 0  # of the body, or of the head, that comes now

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        accepted = cast("asyncio.Transport", transport)  # uvloop's is none by name
        name = transport.get_extra_info("peername")
        self.memory.peer = name[0] if isinstance(name, tuple) else ""
        server = self.server
        if server.turnstile.admits(
            accepted, self.memory.peer, is_open=len(server.connections_open)
        ):
            self._is_admitted = True
            super().connection_made(transport)
            self._await_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_waiting()
        self._stall.end()
        if self._is_admitted:
            self._is_admitted = False
            self.server.turnstile.left(self.memory.peer)
        self.memory.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if len(data) > self._wall.header_bytes_max and self._is_head_too_large(data):
            self._refuse(Flaw(431, "the headers are too large"))
            return
        super().data_received(data)
        if self._heads == self._request_count:
            self._continued(len(data))
            return
        self._heads, self._bytes = self._request_count, 0
        if self._head_deadline is not None:
            self._stop_waiting()
        content = self._messages[-1][1]
        if self._body is not None and not self._body.is_eof():
            # What cannot be parsed stands inside of a body: whoever reads that would wait for ever.
            self._body.set_exception(_bad_body("The body's chunks cannot be read."))
        self._body = None if content.is_eof() else content

    def _continued(self, size: int) -> None:
        """No head has ended with these bytes: they are of a body, or of the next head."""
        if self._close or self._force_close:
            return  # nobody parses them any more
        self._bytes += size
        body = self._body
        if body is not None:
            if body.is_eof():
                self._body, self._bytes = None, 0
            elif self._bytes > OVERHEAD_FREE + (OVERHEAD_PER_BYTE + 1) * body.total_bytes:
                body.set_exception(_bad_body("The body's chunks are mostly something else."))
                self.close()
            return
        if not size:
            return
        if self._bytes > self._wall.header_bytes_max:
            self._refuse(Flaw(431, "the headers are too large"))
        elif self._head_deadline is None and self._current_request is None and not self._messages:
            self._await_head()

    @property
    def answering(self) -> "asyncio.Task[None] | None":
        """The task that answers a request, if there is one here."""
        task = self._task_handler
        if task is None or task.done() or (self._current_request is None and not self._messages):
            return None
        return task

    def _is_head_too_large(self, data: bytes) -> bool:
        if self._body is not None or self._close or self._force_close:
            return False
        end = data.find(b"\r\n\r\n")
        size = len(data) if end < 0 else end
        return self._bytes + size > self._wall.header_bytes_max

    def _refuse(self, flaw: Flaw) -> None:
        """Answer so when it is this request's turn; nothing more is read."""
        if self._close or self._force_close:
            return
        self._stop_waiting()
        self._close = True
        fault = _ErrInfo(status=flaw.status, exc=ValueError(flaw.message), message=flaw.message)
        self._messages.append((fault, EMPTY_PAYLOAD))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def pause_writing(self) -> None:
        """The client takes less than it is sent: from now on it must take some in time."""
        super().pause_writing()
        if self.transport is not None:
            self._stall.watch(self.transport)

    def resume_writing(self) -> None:
        """It has taken most of it."""
        super().resume_writing()
        self._stall.end()

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002 - aiohttp's own signature
        # Every body asks for this at its end, and hardly any was ever paused.
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def force_close(self) -> None:
        self.outbox.flush()
        transport = self.transport
        super().force_close()
        if transport is not None:
            self._stall.see_closed(transport)

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
                exchange = self._exchange(message, content)
                if exchange is None:
                    return
                self._current_request = exchange
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
            transport = self.transport
            if transport is None or transport.is_closing():
                return
            if self._body is not None and not self._body.is_eof():
                self._last_words(transport)
            else:
                transport.close()
                self._stall.see_closed(transport)

    def _exchange(
        self, message: RawRequestMessage | _ErrInfo, content: StreamReader
    ) -> Exchange | None:
        """The request, if it is one that we read; else its sender is told."""
        if isinstance(message, _ErrInfo):
            self._tell_flaw(Flaw(message.status, message.message or ""))
            return None
        exchange = Exchange(message, content, self)
        if exchange.flaw is None:
            return exchange
        self._tell_flaw(exchange.flaw)
        return None

    def _tell_flaw(self, flaw: Flaw) -> None:
        """Answer a request that is not read any further, and then hear nothing more."""
        transport = self.transport
        if self._force_close or transport is None:
            return
        self._task_handler, self._close = None, True
        with suppress(ClientGone):
            Exchange(ERROR, EMPTY_PAYLOAD, self).answer(
                flaw.status, *answer_of(flaw.status, flaw.message), close=True
            )
        self.outbox.flush()
        if not transport.is_closing():
            self._last_words(transport)

    def _last_words(self, transport: asyncio.Transport) -> None:
        """Send what is written and hear nothing more; then close.

        To close on bytes that were not read would reset the connection, and the answer with it.
        """
        self._close = True
        transport.write_eof()
        self._loop.call_later(_LAST_WORDS_S, transport.abort)

    def _take(self) -> tuple[RawRequestMessage | _ErrInfo, StreamReader]:
        """The next request of the queue, which has room for another one then."""
        taken = self._messages.popleft()
        if self._parser is not None:
            self._parser.message_consumed()
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()
        return taken

    def _failed(self, exchange: Exchange, error: Exception) -> Answered:
        """Answer for a bug that escaped every handler."""
        _log.error("handler failed", exc_info=error)
        try:
            if not exchange.head_sent:
                return exchange.answer(500, *answer_of(500, None), close=True)
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
        except (TimeoutError, errors.GatewayError):
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


def _bad_body(message: str) -> errors.BadRequest:
    return errors.BadRequest(message, code="bad_http")


class DataServer(web.Server):
    """Makes a guarded connection of every accepted socket."""

    def __init__(self, handler: Handler, wall: Wall, *, tell: TellTurnedAway) -> None:
        super().__init__(cast("Any", handler), handler_cancellation=False)
        self.handler = handler
        self.dates, self.outbox = Dates(self._loop), Outbox(self._loop)
        self.turnstile = Turnstile(wall, tell)
        self.is_leaving = False

    def leave(self) -> None:
        """Say with each answer from now on that it is the last: who calls again goes elsewhere."""
        self.is_leaving = True
        for guard in self._connections:
            cast("Guard", guard).is_leaving = True

    def close_idle(self) -> "set[asyncio.Task[None]]":
        """Close each connection that waits for its next request.

        Returns the tasks of the others: after `leave` they end with the answer to theirs.
        """
        busy = set()
        for guard in cast("list[Guard]", [*self._connections]):
            task = guard.answering
            if task is None:
                guard.close()
            else:
                busy.add(task)
        return busy

    @property
    def connections_open(self) -> dict[RequestHandler, asyncio.Transport]:
        """The open connections."""
        return self._connections

    @property
    def wall(self) -> Wall:
        """What new connections are held to; those that are open keep what they began with."""
        return self.turnstile.wall

    @wall.setter
    def wall(self, wall: Wall) -> None:
        self.turnstile.wall = wall

    def __call__(self) -> Guard:
        wall = self.wall
        return Guard(
            self,
            wall,
            loop=self._loop,
            access_log=None,
            logger=_log,
            keepalive_timeout=wall.keep_alive_s,
            max_headers=wall.headers_max,
            max_line_size=8190,
            max_field_size=wall.header_bytes_max,
            auto_decompress=False,
        )
