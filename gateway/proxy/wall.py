"""What stands before a handler: its sockets, who may connect, and what no head may say.

aiohttp's parser (llhttp, strict) refuses most of what two servers could read in two ways; what it
lets pass is named here. `tests/smuggled.py` is the list of both.
"""

import asyncio
import re
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import IPv6Address
from typing import NamedTuple, Self

from aiohttp.http_parser import RawRequestMessage
from aiohttp.http_writer import HttpVersion10, HttpVersion11

from gateway import errors
from gateway.settings import Limits

# A registered name as DNS, Docker and Kubernetes give them, or an address; then a port.
_HOST = re.compile(
    r"(?:[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,252})|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?\Z"
)
_QUOTED = re.compile(r"""[:\s]*b?['"]""")  # where the parser begins to repeat what it was sent
_TURNED_AWAY_S = 1.0  # how long a connection that is one too many may take to say its request
_TURNED_AWAY_MAX = 1_000  # of them at once; more are closed unheard
_AT_ONCE = struct.pack("ii", 1, 0)  # linger, for no time: close with a reset
_TAKEN_BYTES_MIN = 64 * 1024
"""What a client that is behind must take in `stall_s_max`; a modem of 1995 does."""
_NEIGHBOURS = 64  # bits: who has one IPv6 address has all that begin with the same half

OVERHEAD_FREE = 64 * 1024
OVERHEAD_PER_BYTE = 8
"""What chunks may take besides the bytes of a body: six for each where a client sends one by one.
Extensions and trailers, which say nothing to us, are all that needs more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wall:
    """What the guard allows before a request reaches a handler, and after it was answered."""

    header_timeout_s: float
    headers_max: int
    header_bytes_max: int
    keep_alive_s: float
    connections_max: int
    connections_per_address_max: int
    stall_s_max: float

    @classmethod
    def of(cls, limits: Limits, *, stall_s_max: float) -> Self:
        """The wall that these limits ask for."""
        return cls(
            header_timeout_s=limits.header_timeout_s,
            headers_max=limits.headers_max,
            header_bytes_max=limits.header_bytes_max,
            keep_alive_s=limits.keep_alive_s,
            connections_max=limits.connections_max,
            connections_per_address_max=limits.connections_per_address_max,
            stall_s_max=stall_s_max,
        )


class Flaw(NamedTuple):
    """Why a request that could be parsed is not read any further."""

    status: int
    message: str


def flaw_of(message: RawRequestMessage) -> Flaw | None:
    """What is wrong with a head; None: it says one thing to everybody."""
    version, header = message.version, message.headers.get
    host, is_old = header("host"), version == HttpVersion10
    if version != HttpVersion11 and not is_old:
        return Flaw(400, "send HTTP/1.1")
    if message.chunked and (is_old or header("transfer-encoding", "").lower() != "chunked"):
        # Of 1.0 servers, some read the chunks and others the whole connection.
        return Flaw(400, "the only Transfer-Encoding is chunked, with HTTP/1.1")
    if (host is not None or not is_old) and not _HOST.match(host or ""):
        return Flaw(400, "the Host header is not a host")
    if message.method == "CONNECT" or not message.path.startswith("/"):
        return Flaw(400, "the request target must be a path")
    if header("expect", "100-continue").lower() != "100-continue":
        return Flaw(417, "the only Expect is 100-continue")
    return None


def answer_of(status: int, message: str | None) -> tuple[bytes, bytes]:
    """Header lines and body for a request that is no HTTP, or that hit a bug of ours.

    What the client sent is not repeated: a key may stand where it does not belong.
    """
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        error: errors.GatewayError = errors.Internal(
            "The gateway failed; nothing was charged.", code="internal_error"
        )
    else:
        said = (message or "unreadable").splitlines()[0].replace("'Host'", "Host")  # that is ours
        reason = _QUOTED.split(said, maxsplit=1)[0]
        error = errors.BadRequest(f"This is not a valid HTTP request: {reason}", code="bad_http")
    return b"Content-Type: application/json\r\n", errors.body(error)


class Addresses:
    """How many connections each address has open. IPv6 neighbours count as one."""

    __slots__ = ("_open",)

    def __init__(self) -> None:
        self._open: dict[str, int] = {}

    def enter(self, address: str) -> int:
        """Count one more; how many there are now."""
        place = _place(address)
        count = self._open[place] = self._open.get(place, 0) + 1
        return count

    def leave(self, address: str) -> None:
        """Count one less."""
        place = _place(address)
        left = self._open[place] - 1
        if left:
            self._open[place] = left
        else:
            del self._open[place]


def _place(address: str) -> str:
    if ":" not in address:
        return address
    number = IPv6Address(address.partition("%")[0])
    if number.ipv4_mapped is not None:
        return str(number.ipv4_mapped)
    return f"{int(number) >> _NEIGHBOURS:x}::"


class TurnedAway(asyncio.Protocol):
    """A connection too many: its first bytes are answered, so that its client knows when to return.

    A plain close would do as well for us, but proxies take it for a server that is broken.
    """

    def __init__(self, answer: bytes, transport: asyncio.Transport, ended: Callable[[], None]):
        self._answer, self._transport, self._ended = answer, transport, ended
        loop = asyncio.get_running_loop()
        self._end = loop.call_later(_TURNED_AWAY_S, transport.abort)

    def data_received(self, _data: bytes) -> None:
        """Answer once; what follows is dropped."""
        if self._answer and not self._transport.is_closing():
            self._transport.write(self._answer)
            self._transport.write_eof()
            self._answer = b""

    def connection_lost(self, _exc: BaseException | None) -> None:
        """Forget it."""
        self._end.cancel()
        self._ended()


TellTurnedAway = Callable[[errors.GatewayError, str], None]
"""Hears of each connection that is turned away: what it is told, and by which limit of `Wall`."""


class Turnstile:
    """Counts connections and turns away those beyond the limits."""

    def __init__(self, wall: Wall, tell: TellTurnedAway) -> None:
        self.wall, self._tell = wall, tell
        self._addresses = Addresses()
        self._waiting = 0  # turned away, and not closed yet

    def admits(self, transport: asyncio.Transport, address: str, *, is_open: int) -> bool:
        """Whether there may be one more; then `left` must follow. Else it is turned away here."""
        wall = self.wall
        if is_open >= wall.connections_max:
            limit = "connections_max"
            error: errors.GatewayError = errors.Unavailable(
                "The gateway has as many connections as it can take.", code="too_many_connections"
            )
        elif self._addresses.enter(address) > wall.connections_per_address_max:
            self._addresses.leave(address)
            limit = "connections_per_address_max"
            error = errors.TooMany(
                "Your address has as many connections as one may have.",
                code="too_many_connections",
                retry_after_ms=1_000,
                scope="connections",
            )
        else:
            return True
        self._tell(error, limit)
        self._turn_away(transport, error)
        return False

    def left(self, address: str) -> None:
        """A connection that was admitted is lost."""
        self._addresses.leave(address)

    def _turn_away(self, transport: asyncio.Transport, error: errors.GatewayError) -> None:
        if self._waiting >= _TURNED_AWAY_MAX:
            transport.abort()
            return
        self._waiting += 1
        transport.set_protocol(TurnedAway(_rendered(error), transport, self._one_less))

    def _one_less(self) -> None:
        self._waiting -= 1


def bind(host: str, port: int, *, stall_s_max: float) -> socket.socket:
    """A listening socket that several workers can share a port with.

    Answers of some megabytes are in the system's buffers whole, where we see no client that takes
    nothing of them: the system itself cuts one after `stall_s_max`. Accepted sockets inherit that.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(stall_s_max * 1_000))
    listener.setblocking(False)
    listener.bind((host, port))
    return listener


class Stall:
    """Watches one client that takes less than it is sent: it must take some of it in time."""

    __slots__ = ("_loop", "_s_max", "_watching")

    def __init__(self, loop: asyncio.AbstractEventLoop, s_max: float) -> None:
        self._loop, self._s_max = loop, s_max
        self._watching: asyncio.TimerHandle | None = None

    def watch(self, transport: asyncio.Transport) -> None:
        """From now on, until `end`."""
        size = transport.get_write_buffer_size()
        self._watching = self._loop.call_later(self._s_max, self._see_taken, transport, size)

    def _see_taken(self, transport: asyncio.Transport, before: int) -> None:
        """Cut a client that leaves untaken what it was sent; `before`: how much it was."""
        size = transport.get_write_buffer_size()
        if size and before - size < _TAKEN_BYTES_MIN:
            _reset(transport)
        elif size:
            self.watch(transport)

    def see_closed(self, transport: asyncio.Transport) -> None:
        """A transport closes when all is sent; one whose client takes nothing never would."""
        if self._watching is None and transport.get_write_buffer_size():
            self._watching = self._loop.call_later(self._s_max, _reset, transport)

    def end(self) -> None:
        """It has taken most of it, or is gone."""
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None


def _reset(transport: asyncio.Transport) -> None:
    """Cut a client that does not take what it was sent, and drop that in the system's buffers, too.

    Closed otherwise, the system would keep megabytes for it while it takes a byte now and then.
    """
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    transport.abort()


def _rendered(error: errors.GatewayError) -> bytes:
    body = errors.body(error)
    phrase = HTTPStatus(error.status).phrase.encode()
    return (
        b"HTTP/1.1 %d %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
        b"Retry-After: 1\r\nConnection: close\r\n\r\n%b" % (error.status, phrase, len(body), body)
    )
