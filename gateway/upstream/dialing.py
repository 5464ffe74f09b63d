"""Make a connection: the name, the address, the certificate, each with its own way to fail."""

import asyncio
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import aiohappyeyeballs

from gateway.upstream.connection import Connection
from gateway.upstream.errors import Phase, UpstreamTimeout, UpstreamUnreachable

_Address = tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int]]
_FRESH_S = 30.0  # how long an answer of the resolver is believed
_NAMES_MAX = 512
_NEXT_ADDRESS_AFTER_S = 0.25  # RFC 8305's connection attempt delay


class Origin(NamedTuple):
    """Whom a connection is to; requests to different origins never share one."""

    scheme: str
    host: str
    port: int


class _Known(NamedTuple):
    addresses: list[_Address]
    until_s: float


def tls_context(extra_ca: Path | None = None) -> ssl.SSLContext:
    """Certificates are verified against the system's authorities and those in `extra_ca` (PEM)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies names and certificates
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.load_default_certs()
    if extra_ca is not None:
        context.load_verify_locations(cafile=extra_ca)
    return context


class Dialer:
    """Makes connections. Names are resolved once for many callers, and remembered shortly."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        self._tls = tls
        self._known: dict[Origin, _Known] = {}
        self._lookups: dict[Origin, asyncio.Task[list[_Address]]] = {}

    async def dial(
        self, origin: Origin, make: Callable[[], Connection], *, deadline_s: float
    ) -> Connection:
        """A connection to the first of the origin's addresses that answers.

        Raises `UpstreamUnreachable` or `UpstreamTimeout`; in both cases nothing was sent.
        """
        phase: Phase = "dns"
        peer: socket.socket | None = None
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(deadline_s):
                addresses = await self._addresses(origin)
                phase = "connect"
                peer = await aiohappyeyeballs.start_connection(
                    addresses, happy_eyeballs_delay=_NEXT_ADDRESS_AFTER_S, interleave=1
                )
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                phase = "tls" if origin.scheme == "https" else "connect"
                _, connection = await loop.create_connection(
                    make,
                    sock=peer,
                    ssl=self._tls if origin.scheme == "https" else None,
                    server_hostname=origin.host if origin.scheme == "https" else None,
                )
        except TimeoutError as error:
            self._forget(origin, peer)
            raise UpstreamTimeout(
                f"{phase} took too long: {origin.host}", phase=phase, sent=False
            ) from error
        except (OSError, UnicodeError) as error:  # certificate and resolver errors are OSErrors
            self._forget(origin, peer)
            raise UpstreamUnreachable(
                f"{phase} failed: {origin.host}: {error}", phase=phase, sent=False
            ) from error
        except BaseException:
            self._forget(origin, peer)
            raise
        return connection

    async def close(self) -> None:
        """Stop the lookups under way."""
        for lookup in self._lookups.values():
            lookup.cancel()
        await asyncio.gather(*self._lookups.values(), return_exceptions=True)

    def _forget(self, origin: Origin, peer: socket.socket | None) -> None:
        """The next one resolves anew: the addresses may have moved."""
        if peer is not None:
            peer.close()
        if origin in self._known:
            self._known[origin] = self._known[origin]._replace(until_s=0.0)

    async def _addresses(self, origin: Origin) -> list[_Address]:
        now_s = asyncio.get_running_loop().time()
        known = self._known.get(origin)
        if known is not None and now_s < known.until_s:
            return known.addresses
        lookup = self._lookups.get(origin)
        if lookup is None:
            lookup = asyncio.ensure_future(self._look_up(origin))
            self._lookups[origin] = lookup
            lookup.add_done_callback(lambda _: self._lookups.pop(origin, None))
        try:
            # Others may wait for the same lookup, so it outlives the one who began it.
            return await asyncio.shield(lookup)
        except OSError:
            if known is None:
                raise
            return known.addresses  # a resolver that is away must not take the vendor with it

    async def _look_up(self, origin: Origin) -> list[_Address]:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
        addresses = [(int(entry[0]), int(entry[1]), *entry[2:]) for entry in found]
        if len(self._known) >= _NAMES_MAX:
            self._known.clear()
        self._known[origin] = _Known(addresses, loop.time() + _FRESH_S)
        return addresses
