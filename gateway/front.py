"""The data plane's listener, from a worker's first moments on.

A gateway that starts while Postgres or Redis is away has no prices, so it can judge no call. It
listens all the same: who finds nobody there, as a probe does, takes it for dead and kills it.
"""

import asyncio
from collections.abc import Awaitable

import msgspec
import uuid_utils

from gateway import errors
from gateway.proxy.answer import refuse
from gateway.proxy.exchange import CLOSE, Answered, ClientGone, Exchange
from gateway.proxy.server import DataServer, Handler
from gateway.proxy.table import HEALTHY, JSON
from gateway.proxy.wall import Wall, bind
from gateway.readiness import Ready
from gateway.settings import Limits, Listener

_BACKLOG = 4_096  # connections the kernel may hold for us while we are busy
_STALL_S_MAX = 60.0  # how long a client may take nothing of what it was sent
_LAST_ANSWERS_S = 1.0
_UNREADY = msgspec.json.encode(Ready(ready=False, checks={"prices": "starting"}))


class Front:
    """Where calls come in: who asks before they can be served is told so."""

    def __init__(self, address: Listener, limits: Limits) -> None:
        self._address = address
        wall = Wall(
            header_timeout_s=limits.header_timeout_s,
            headers_max=limits.headers_max,
            header_bytes_max=limits.header_bytes_max,
            keep_alive_s=limits.keep_alive_s,
            connections_max=limits.connections_max,
            connections_per_address_max=limits.connections_per_address_max,
            stall_s_max=_STALL_S_MAX,
        )
        self.server = DataServer(self._first, wall)
        self._handler: Handler | None = None
        self._listening: asyncio.Server | None = None

    async def open(self, handler: Handler | None = None) -> None:
        """Listen; and give requests to `handler` from now on, if there is one by now."""
        if handler is not None:
            self._handler = self.server.handler = handler
        if self._listening is None:
            sock = bind(self._address.host, self._address.port, stall_s_max=_STALL_S_MAX)
            self._listening = await asyncio.get_running_loop().create_server(
                self.server, sock=sock, backlog=_BACKLOG
            )

    def close(self) -> None:
        """Listen no more; connections stay."""
        if self._listening is not None:
            self._listening.close()

    async def shut(self) -> None:
        """Listen no more, and end the connections."""
        self.close()
        await self.server.shutdown(_LAST_ANSWERS_S)

    def _first(self, exchange: Exchange) -> Awaitable[Answered]:
        # A connection keeps the handler it was made with, and may have been silent until now.
        if self._handler is not None:
            return self._handler(exchange)
        return self._not_yet(exchange)

    async def _not_yet(self, exchange: Exchange) -> Answered:
        """Each answer is its connection's last, so that the next one goes straight to the table."""
        path = exchange.raw_path.partition("?")[0]
        is_probe = exchange.method in ("GET", "HEAD")
        try:
            if is_probe and path == "/healthz":
                return exchange.answer(200, JSON, HEALTHY, close=True)
            if is_probe and path == "/readyz":
                return exchange.answer(503, JSON, _UNREADY, close=True)
            error = errors.Unavailable(
                "The gateway starts and cannot reach its ledger yet; nothing was charged.",
                code="ledger_unavailable",
            )
            return refuse(exchange, error, str(uuid_utils.uuid7()), close=True)
        except ClientGone:
            return CLOSE
