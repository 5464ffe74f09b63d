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
from gateway.proxy.wall import TellTurnedAway, Wall, bind
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
        wall = Wall.of(limits, stall_s_max=_STALL_S_MAX)
        self.server = DataServer(self._first, wall, tell=self._turned_away)
        self._tell: TellTurnedAway | None = None
        self._handler: Handler | None = None
        self._listening: asyncio.Server | None = None

    def limit(self, limits: Limits) -> None:
        """Hold new connections to these."""
        self.server.wall = Wall.of(limits, stall_s_max=_STALL_S_MAX)

    async def open(
        self, handler: Handler | None = None, *, tell: TellTurnedAway | None = None
    ) -> None:
        """Listen; and give requests to `handler` from now on, if there is one by now.

        `tell` hears of connections that are turned away.
        """
        if handler is not None:
            self._handler = self.server.handler = handler
            self._tell = tell
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

    def _turned_away(self, error: errors.GatewayError, limit: str) -> None:
        if self._tell is not None:
            self._tell(error, limit)

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
