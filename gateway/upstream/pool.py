"""The connections to one origin: who gets which, and who waits.

Everything here decides without awaiting but for `connect`, so that no two callers can be given the
same connection or the same slot. A slot is the right to have one connection open.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from gateway.upstream.connection import Connection
from gateway.upstream.errors import UpstreamBusy, UpstreamCut, UpstreamError

# Given up this much before the vendor would: its end must not cross our next request.
_KEEP_ALIVE_MARGIN_S = 1.0
# Some vendors (llama.cpp) close after a stream whose head promised to keep the connection. Their
# end comes a moment behind the last event, and must not meet the next request on its way.
AFTER_STREAM_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds of one pool."""

    connections_max: int = 2_000  # to one origin, by one process; above what admission lets in
    waiting_max: int = 1_000  # callers in the queue for one; more are refused at once
    idle_s: float = 50.0  # below the 60 s after which most load balancers close silently
    age_s: float = 600.0  # so that a change of addresses or certificates is noticed


@dataclass(slots=True)
class Tallies:
    """What has happened so far: for tests, and for who looks into a process."""

    created: int = 0  # connections made
    failed: int = 0  # connections that could not be made
    reused: int = 0  # requests on a connection that had carried one before
    waits: int = 0  # callers who had to queue for a slot
    waited_s: float = 0.0
    refused: int = 0  # callers who got no slot in time


class Pool:
    """The connections to one origin."""

    def __init__(
        self, dial: Callable[["Pool", float], Awaitable[Connection]], *, limits: Limits
    ) -> None:
        self._dial, self.limits = dial, limits
        self._idle: list[Connection] = []  # the one used last is at the end, and used first
        self._busy: set[Connection] = set()
        self._waiting: deque[asyncio.Future[Connection | None]] = deque()
        self._slots = 0  # taken: connections that stand or are being made
        self._is_closed = False
        self.tallies = Tallies()

    @property
    def idle(self) -> int:
        """Connections that wait for a request."""
        return len(self._idle)

    @property
    def in_use(self) -> int:
        """Connections that carry a request."""
        return len(self._busy)

    @property
    def open(self) -> int:
        """Connections that stand or are being made."""
        return self._slots

    @property
    def waiting(self) -> int:
        """Callers in the queue."""
        return len(self._waiting)

    def take(self, now_s: float) -> Connection | None:
        """The idle connection used last, if one is fit for a request."""
        idle = self._idle
        if not idle:
            return None
        if not idle[-1].is_warm(now_s):
            return self._found(now_s)
        connection = idle.pop()
        self._busy.add(connection)
        self.tallies.reused += 1
        return connection

    async def connect(self, connect_s: float) -> Connection:
        """A new connection, or, when there may be no more of them, the next that becomes free.

        Raises `UpstreamBusy`, or what `dial` raises.
        """
        deadline_s = asyncio.get_running_loop().time() + connect_s
        if self._is_closed:
            raise UpstreamBusy("the gateway is shutting down")
        while self._slots >= self.limits.connections_max:
            if self._idle:  # passed over by `take`, but better than to wait
                doubtful = self._idle[-1]
                if self._is_taken(doubtful, asyncio.get_running_loop().time()):
                    return doubtful
                continue
            connection = await self._turn(deadline_s)
            if connection is None:
                break  # our turn to make one: the slot is ours already
            if connection.is_open():
                self.tallies.reused += 1
                return connection
        else:
            self._slots += 1
        try:
            connection = await self._dial(self, deadline_s)
        except BaseException as error:
            self.tallies.failed += isinstance(error, UpstreamError)
            self._free_slot()
            raise
        self.tallies.created += 1
        if not connection.is_open() or self._is_closed:
            connection.close()
            self._free_slot()
            raise UpstreamCut("the connection ended as it began", phase="connect", sent=False)
        self._busy.add(connection)
        return connection

    def freed(self, connection: Connection, now_s: float) -> None:
        """A connection can carry another request: the next in the queue gets it, else it rests."""
        limits = self.limits
        until_s = min(
            now_s + limits.idle_s,
            now_s + connection.keep_alive_s - _KEEP_ALIVE_MARGIN_S,
            connection.opened_at_s + limits.age_s,
        )
        if self._is_closed or until_s <= now_s:
            connection.close()
            return
        waiter = self._next_waiter() if self._waiting else None
        if waiter is not None:
            waiter.set_result(connection)
            return
        self._busy.discard(connection)
        self._idle.append(connection)
        connection.rest(now_s, until_s)

    def lost(self, connection: Connection) -> None:
        """A connection is closed: its slot is the next one's."""
        if connection in self._busy:
            self._busy.remove(connection)
            self._free_slot()
        elif connection in self._idle:
            self._idle.remove(connection)
            self._free_slot()

    def close(self) -> None:
        """Close everything; answers under way end as cut, and who waits is refused."""
        self._is_closed = True
        for connection in (*self._idle, *self._busy):
            connection.close()
        while (waiter := self._next_waiter()) is not None:
            waiter.set_exception(UpstreamBusy("the gateway is shutting down"))

    def _found(self, now_s: float) -> Connection | None:
        """The idle connection used last that is fit after a closer look."""
        for place in range(len(self._idle) - 1, -1, -1):
            connection = self._idle[place]
            if connection.is_after_stream and now_s - connection.idle_since_s < AFTER_STREAM_S:
                continue
            if self._is_taken(connection, now_s):
                return connection
        return None

    def _is_taken(self, connection: Connection, now_s: float) -> bool:
        """Take this idle connection; False if it was not fit and is closed now."""
        self._idle.remove(connection)
        self._busy.add(connection)
        if connection.is_fresh(now_s):
            self.tallies.reused += 1
            return True
        connection.close()
        return False

    async def _turn(self, deadline_s: float) -> Connection | None:
        """Queue for a connection, or for the slot of one that was closed (None)."""
        if len(self._waiting) >= self.limits.waiting_max:
            self.tallies.refused += 1
            raise UpstreamBusy("too many calls wait for a connection to this vendor")
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Connection | None] = loop.create_future()
        self._waiting.append(waiter)
        self.tallies.waits += 1
        started_s = loop.time()
        try:
            async with asyncio.timeout_at(deadline_s):
                return await waiter
        except BaseException as error:
            self._leave(waiter)
            if not isinstance(error, TimeoutError):
                raise
            self.tallies.refused += 1
            raise UpstreamBusy("no connection to this vendor became free in time") from error
        finally:
            self.tallies.waited_s += loop.time() - started_s

    def _leave(self, waiter: asyncio.Future[Connection | None]) -> None:
        """Out of the queue; what was already handed over goes to the next."""
        if waiter in self._waiting:
            self._waiting.remove(waiter)
        if not waiter.done() or waiter.cancelled() or waiter.exception() is not None:
            return
        connection = waiter.result()
        if connection is None:
            self._free_slot()
        elif connection.is_open():
            self.freed(connection, asyncio.get_running_loop().time())

    def _next_waiter(self) -> asyncio.Future[Connection | None] | None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                return waiter
        return None

    def _free_slot(self) -> None:
        waiter = self._next_waiter()
        if waiter is not None:
            waiter.set_result(None)
        else:
            self._slots -= 1
