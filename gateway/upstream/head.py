"""Write the head of a request; what could change its meaning on the way is refused."""

import re

from gateway.upstream.errors import UpstreamRefused
from providers.adapter import UpstreamRequest

_METHOD = re.compile(r"[A-Z]{1,16}")
_PATH = re.compile(r"/[\x21-\x7e]*")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")

HOP = "x-tollgate-hop"
"""Marks what a gateway sends, so that one that is pointed at itself answers and does not loop."""

# Ours alone to say: who is called, how the body is framed, how the connection goes on.
_RESERVED = frozenset(
    {
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "keep-alive",
        "te",
        "trailer",
        "upgrade",
        "expect",
        "accept-encoding",
        "proxy-authorization",
        "proxy-connection",
        HOP,
    }
)


def head(request: UpstreamRequest, authority: str) -> bytes:
    """The head but for what depends on the body: `length_line` ends it.

    Raises `UpstreamRefused`, which never tells a header's value: it may be a key.
    """
    if not _METHOD.fullmatch(request.method):
        raise UpstreamRefused("the method is not a plain word")
    if not _PATH.fullmatch(request.path):
        raise UpstreamRefused("the path holds a character that no URL may hold")
    lines = [f"{request.method} {request.path} HTTP/1.1", f"Host: {authority}"]
    for name, value in request.headers:
        if not _NAME.fullmatch(name):
            raise UpstreamRefused("a header name holds a character that no name may hold")
        if name.lower() in _RESERVED:
            raise UpstreamRefused(f"the header {name} is not the caller's to set")
        if not _VALUE.fullmatch(value):
            raise UpstreamRefused(f"the header {name} holds a character that no value may hold")
        lines.append(f"{name}: {value}")
    lines.append(f"{HOP}: 1\r\nAccept-Encoding: identity\r\nConnection: keep-alive\r\n")
    return "\r\n".join(lines).encode("latin-1")


def length_line(method: str, body_bytes: int) -> bytes:
    """The rest of the head; a request that can have no body says nothing about one."""
    if not body_bytes and method in ("GET", "HEAD", "DELETE"):
        return b"\r\n"
    return b"Content-Length: %d\r\n\r\n" % body_bytes


def authority(scheme: str, host: str, port: int) -> str:
    """The Host header of an origin."""
    name = f"[{host}]" if ":" in host else host
    return name if port == (443 if scheme == "https" else 80) else f"{name}:{port}"
