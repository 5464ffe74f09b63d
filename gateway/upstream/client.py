"""The only sender: every byte that goes to a vendor goes through `Upstream.send`.

No redirects are followed, no proxies are taken from the environment, no cookies are kept, nothing
is retried: an error says what the vendor may have seen, and the caller decides.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from gateway.upstream.answer import Answer
from gateway.upstream.connection import Connection, Deadlines
from gateway.upstream.dialing import Dialer, Origin, tls_context
from gateway.upstream.errors import UpstreamRefused
from gateway.upstream.head import authority, head, length_line
from gateway.upstream.pool import Limits, Pool
from providers.adapter import Target, UpstreamRequest

_Place: TypeAlias = tuple[str, str, int]  # an `Origin`, or one made in passing

_HEADS_MAX = 1_024  # request heads kept in their written form
_POOLS_MAX = 1_024  # origins; those without a connection are forgotten above it


class Upstream:
    """Sends requests to vendors over pooled connections. Made and used within one event loop."""

    def __init__(self, limits: Limits | None = None, *, extra_ca: Path | None = None) -> None:
        """`extra_ca`: a PEM file of authorities trusted beside the system's."""
        self._limits = limits or Limits()
        self._connections_max: Mapping[_Place, int] = {}
        self._dialer = Dialer(tls_context(extra_ca))
        self._pools: dict[_Place, Pool] = {}
        self._heads: dict[tuple[str, str, object, str, str, int], bytes] = {}
        self._loop = asyncio.get_running_loop()

    async def send(
        self,
        request: UpstreamRequest,
        target: Target,
        *,
        deadlines: Deadlines,
        on_sent: Callable[[], None] | None = None,
    ) -> Answer:
        """Send a request; returns when the head of the final answer is complete.

        `on_sent` is called once the first byte has been handed over: from then on the vendor may
        have seen the request. Raises an `UpstreamError`; cancelled, it closes the connection.
        """
        written = self._head(request, target)
        pool = self._pool(target)
        connection = pool.take(self._loop.time())
        if connection is None:
            connection = await pool.connect(deadlines.connect_s)
        return await connection.send(
            written + length_line(request),
            request.body,
            deadlines=deadlines,
            on_sent=on_sent,
            is_bodyless=request.method == "HEAD",
        )

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

    def _pool(self, target: Target) -> Pool:
        pool = self._pools.get((target.scheme, target.host, target.port))
        return pool if pool is not None else self._new_pool(target)

    def _limits_of(self, origin: _Place) -> Limits:
        most = self._connections_max.get(origin)
        return self._limits if most is None else replace(self._limits, connections_max=most)

    def _new_pool(self, target: Target) -> Pool:
        if target.scheme not in ("http", "https"):
            raise UpstreamRefused(f"the scheme {target.scheme[:20]!r} is not spoken here")
        if len(self._pools) >= _POOLS_MAX:
            self._pools = {key: pool for key, pool in self._pools.items() if pool.open}
        origin = Origin(target.scheme, target.host, target.port)

        async def dial(pool: Pool, deadline_s: float) -> Connection:
            return await self._dialer.dial(
                origin, lambda: Connection(self._loop, pool), deadline_s=deadline_s
            )

        pool = self._pools[origin] = Pool(dial, limits=self._limits_of(origin))
        return pool

    def _head(self, request: UpstreamRequest, target: Target) -> bytes:
        """Written and checked once for the calls that differ only in their bodies."""
        key = (
            request.method,
            request.path,
            request.headers,
            target.scheme,
            target.host,
            target.port,
        )
        written = self._heads.get(key)
        if written is None:
            written = head(request, authority(target.scheme, target.host, target.port))
            if len(self._heads) >= _HEADS_MAX:
                self._heads.clear()
            self._heads[key] = written
        return written
