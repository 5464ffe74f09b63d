"""Asks other servers for JSON, wherever they say, but never one inside our own network.

What the operator named is asked as it is. Any other server must have a public address, which is
looked at as the connection is made: no name can lead elsewhere a moment later. Redirects are
refused, and nothing is read without end.
"""

import errno
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
)
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp
import msgspec

BODY_BYTES_MAX = 512 * 1024
TIMEOUT_S = 10.0
_OK = 200
_PORTS = {"http": 80, "https": 443}
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address
# Public by what every Python knows, and yet no server of anybody's: protocols' own, and a cloud's
# service for the machine itself.
_SPECIAL: tuple[IPv4Network | IPv6Network, ...] = (
    *map(IPv4Network, ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32")),
    *map(IPv6Network, ("64:ff9b:1::/48", "2001::/23")),
)


class NoAnswer(Exception):
    """It could not be asked, or answered nothing of use; the message says why, for a log."""


class Declined(NoAnswer):
    """It answered with an error of its own."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


class Origin(NamedTuple):
    """What the operator named: it is asked wherever it is."""

    scheme: str
    host: str
    port: int


def origin_of(url: str) -> Origin:
    """The origin of this URL; `NoAnswer` if it is none of HTTP."""
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS[parts.scheme]
    except (KeyError, ValueError) as error:
        raise NoAnswer("what it names is no URL") from error
    return Origin(parts.scheme, parts.hostname or "", port)


def is_public(address: str) -> bool:
    """Whether anybody on the internet can reach this address; False for what is none."""
    try:
        found: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if found in _NAT64:
            inner = IPv4Address(int(found) & 0xFFFFFFFF)
        found = inner or found
    if any(found in network for network in _SPECIAL):
        return False
    return found.is_global and not found.is_multicast and not found.is_reserved


class Outward:
    """Asks. `named` reaches any address, `found` public ones only."""

    def __init__(self, named: aiohttp.ClientSession, found: aiohttp.ClientSession) -> None:
        self._named, self._found = named, found

    async def get(
        self, url: str, *, known: Origin, headers: Mapping[str, str] | None = None
    ) -> Any:
        """The JSON at this URL. `known` is what the operator named. Raises `NoAnswer`."""
        return await self._ask("GET", url, known=known, headers=headers)

    async def post(
        self,
        url: str,
        form: Mapping[str, str],
        *,
        known: Origin,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """The JSON that answers this form. Raises `NoAnswer`."""
        return await self._ask("POST", url, known=known, headers=headers, form=form)

    async def _ask(
        self,
        method: str,
        url: str,
        *,
        known: Origin,
        headers: Mapping[str, str] | None,
        form: Mapping[str, str] | None = None,
    ) -> Any:
        origin = origin_of(url)
        if origin.scheme != "https" and origin != known:
            raise NoAnswer(f"{origin.host} would be asked without TLS")
        session = self._named if origin == known else self._found
        sent = {"Accept": "application/json", **(headers or {})}
        try:
            async with session.request(
                method, url, data=form, headers=sent, allow_redirects=False
            ) as answer:
                if answer.status != _OK:
                    raise Declined(answer.status)
                return msgspec.json.decode(await _body(answer))
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise NoAnswer(f"{origin.host}: {type(error).__name__}: {error}") from error


@asynccontextmanager
async def opened() -> AsyncIterator[Outward]:
    """Ready to ask, until the block is left."""
    async with _session(None) as named, _session(public_socket) as found:
        yield Outward(named, found)


def _session(factory: aiohttp.SocketFactoryType | None) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=20, socket_factory=factory),
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,  # a proxy would be the one who looks names up
    )


def public_socket(where: aiohttp.AddrInfoType) -> socket.socket:
    """A socket for a connection to this address; `PermissionError` if it is no public one."""
    family, kind, protocol, _, address = where
    if not is_public(str(address[0])):
        raise PermissionError(errno.EACCES, f"{address[0]} is no public address")
    return socket.socket(family, kind, protocol)


async def _body(answer: aiohttp.ClientResponse) -> bytes:
    data = b""
    async for chunk in answer.content.iter_chunked(65_536):
        data += chunk
        if len(data) > BODY_BYTES_MAX:
            raise NoAnswer(f"more than {BODY_BYTES_MAX} bytes")
    return data
