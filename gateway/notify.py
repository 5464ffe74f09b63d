"""Messages to programs at URLs that somebody outside chose: to the public internet, nowhere else.

Addresses are looked at as connections are made (`gateway.outward`), so no name can lead elsewhere a
moment later. Redirects are not followed, answers are not read beyond their head, and the whole has
one deadline.
"""

import errno
import socket
from collections.abc import Mapping
from ipaddress import ip_address

import aiohttp
from yarl import URL

from gateway.outward import is_public, public_socket

URL_CHARACTERS_MAX = 2_000
_TIMEOUT_S = 10.0


class Unanswered(Exception):
    """Nothing was answered; its text says why, and nothing of addresses inside."""


def flaw_of(text: str, *, allows_private: bool) -> str:
    """Why this URL must not be asked, as far as that can be seen without a look-up; "": it may."""
    try:
        url = URL(text)
        host, port = url.host, url.port
    except ValueError:
        return "it is no URL"
    if len(text) > URL_CHARACTERS_MAX or not text.isprintable() or not host or port is None:
        return "it is no URL of a server"
    if url.scheme != "https" and not (allows_private and url.scheme == "http"):
        return "it does not begin with https://"
    if url.user is not None or url.password is not None:
        return "it has a user name or a password in it"
    literal = _literal(host)
    if literal and not allows_private and not is_public(literal):
        return "it is not on the public internet"
    return ""


class Notifier:
    """Sends there. `allows_private`: to addresses that are not public, too, and without TLS."""

    def __init__(self, *, allows_private: bool) -> None:
        self._allows_private = allows_private

    async def post(self, text: str, body: bytes, headers: Mapping[str, str]) -> int:
        """The status that is answered; raises `Unanswered`."""
        flaw = flaw_of(text, allows_private=self._allows_private)
        if flaw:
            raise Unanswered(flaw)
        connector = aiohttp.TCPConnector(
            socket_factory=None if self._allows_private else public_socket,
            use_dns_cache=False,
            force_close=True,
        )
        try:
            async with (
                aiohttp.ClientSession(
                    connector=connector,
                    timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S),
                    cookie_jar=aiohttp.DummyCookieJar(),
                    auto_decompress=False,
                    trust_env=False,  # a proxy would be the one who looks names up
                ) as http,
                http.post(URL(text), data=body, headers=headers, allow_redirects=False) as answer,
            ):
                return answer.status
        except TimeoutError as error:
            raise Unanswered(f"no answer within {_TIMEOUT_S:.0f} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Unanswered(_reason(error)) from error


def _literal(host: str) -> str:
    """The address that a host is, in any of the forms that the system takes for one; "": a name."""
    try:
        return str(ip_address(host))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(host))  # "127.1", "0x7f000001", "2130706433"
    except (OSError, ValueError):
        return ""


def _reason(error: Exception) -> str:
    """What may be told of a failure to somebody outside: not where our names lead."""
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its name cannot be resolved"
    if isinstance(error, aiohttp.ClientSSLError):
        return "its certificate is not accepted"
    if isinstance(error, aiohttp.ClientConnectorError):
        if error.os_error.errno == errno.EACCES:
            return "its name leads to an address that is not public"
        return "it cannot be connected to"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "it closed the connection without an answer"
    return "its answer is not HTTP, or broke off"
