"""The only sender: every byte that goes to a vendor goes through `Upstream.send`.

No redirects are followed, no proxies are taken from the environment, no cookies are kept, nothing
is retried: an error says what the vendor may have seen, and the caller decides.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeAlias

from gateway.outbox import Outbox
from gateway.upstream.answer import Answer
from gateway.upstream.connection import Connection, Waits
from gateway.upstream.dialing import Dialer, Origin, tls_context
from gateway.upstream.errors import UpstreamRefused
from gateway.upstream.head import authority, head, length_line
from gateway.upstream.pool import Limits, Pool
from providers.adapter import Target, UpstreamRequest

_Place: TypeAlias = tuple[str, str, int]  # an `Origin`, or one made in passing

_HEADS_MAX = 1_024  # request heads kept in their written form
_POOLS_MAX = 1_024  # origins; those without a connection are forgotten above it


class _Way(NamedTuple):
    """What is the same for the requests that differ only in their bodies."""

    head: bytes  # but for what depends on the body
    pool: Pool


class Upstream:
    """Sends requests to vendors over pooled connections. Made and used within one event loop."""

    def __init__(self, limits: Limits | None = None, *, extra_ca: Path | None = None) -> None:
        """`extra_ca`: a PEM file of authorities trusted beside the system's."""
        self._limits = limits or Limits()
        self._connections_max: Mapping[_Place, int] = {}
        self._dialer = Dialer(tls_context(extra_ca))
        self._pools: dict[_Place, Pool] = {}
        self._ways: dict[tuple[str, str, object, str, str, int], _Way] = {}
        self._loop = asyncio.get_running_loop()
        self._outbox = Outbox(self._loop)

    async def send(self, request: UpstreamRequest, target: Target, *, deadlines: Waits) -> Answer:
        """Send a request; returns when the head of the final answer is complete.

        Raises an `UpstreamError`; cancelled, it closes the connection.
        """
        method, path, headers, body = request
        way = self._ways.get((method, path, headers, target.scheme, target.host, target.port))
        written, pool = way or self._new_way(request, target)
        connection = pool.take(self._loop.time())
        if connection is None:
            connection = await pool.connect(deadlines.connect_s)
        inbox = connection.begin(
            written + length_line(method, len(body)), body, is_bodyless=method == "HEAD"
        )
        reused = connection.requests > 1
        try:
            if not connection.is_sent:
                await connection.send_slices(inbox, body, idle_s=deadlines.idle_s)
            while not inbox.status and inbox.failure is None:
                await connection.wait(inbox, deadlines.first_byte_s)
        except BaseException:
            connection.abandon(inbox)
            raise
        if inbox.failure is not None and not inbox.status:
            raise inbox.failure
        return Answer(inbox, connection, idle_s=deadlines.idle_s, reused=reused)

    def limit(self, connections_max: Mapping[_Place, int]) -> None:
        """From now on at most so many connections to these origins; to others as many as before.

        Those that stand above a smaller number are not cut; no new ones are made.
        """
        self._connections_max = dict(connections_max)
        for origin, pool in self._pools.items():
            pool.limits = self._limits_of(origin)

    @property
    def pools(self) -> Mapping[_Place, Pool]:
        """By scheme, host and port; for the metrics."""
        return self._pools

    async def close(self) -> None:
        """Close every connection; answers under way end as cut."""
        for pool in self._pools.values():
            pool.close()
        await self._dialer.close()

    def _new_way(self, request: UpstreamRequest, target: Target) -> _Way:
        """Write and check the head, find or make the pool, and remember both."""
        origin = (target.scheme, target.host, target.port)
        written = head(request, authority(*origin))
        pool = self._pools.get(origin) or self._new_pool(target)
        if len(self._ways) >= _HEADS_MAX:
            self._ways.clear()
        way = self._ways[(request.method, request.path, request.headers, *origin)] = _Way(
            written, pool
        )
        return way

    def _limits_of(self, origin: _Place) -> Limits:
        most = self._connections_max.get(origin)
        return self._limits if most is None else replace(self._limits, connections_max=most)

    def _new_pool(self, target: Target) -> Pool:
        if target.scheme not in ("http", "https"):
            raise UpstreamRefused(f"the scheme {target.scheme[:20]!r} is not spoken here")
        if len(self._pools) >= _POOLS_MAX:
            self._pools = {key: pool for key, pool in self._pools.items() if pool.open}
            self._ways.clear()  # they lead to pools that are forgotten
        origin = Origin(target.scheme, target.host, target.port)

        async def dial(pool: Pool, deadline_s: float) -> Connection:
            return await self._dialer.dial(
                origin, lambda: Connection(self._loop, pool, self._outbox), deadline_s=deadline_s
            )

        pool = self._pools[origin] = Pool(dial, limits=self._limits_of(origin))
        return pool
