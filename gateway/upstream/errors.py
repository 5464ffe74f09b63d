"""The ways in which a call to a vendor fails, and what the caller must know to decide on a retry.

UpstreamError
  UpstreamRefused      the request could not be written as HTTP; nothing was sent
  UpstreamBusy         no connection became free in time; nothing was sent
  UpstreamUnreachable  no connection could be made; nothing was sent
  UpstreamTimeout      a step took longer than its deadline
  UpstreamCut          the connection ended before the answer did
  UpstreamGarbled      what came is not HTTP, or not in the encoding it claims
"""

from typing import Literal

Phase = Literal["pool", "dns", "connect", "tls", "send", "head", "body"]


class UpstreamError(Exception):
    """A request that got no whole answer. Every attribute is a fact about the wire."""

    timeout = False

    def __init__(
        self,
        message: str,
        *,
        phase: Phase,
        sent: bool,
        reused: bool = False,
        answered: bool = False,
    ) -> None:
        super().__init__(message)
        self.phase = phase
        self.sent = sent  # the vendor may have seen the request
        self.reused = reused  # the connection had carried an earlier request
        self.answered = answered  # some byte of an answer came


class UpstreamRefused(UpstreamError):
    """The request cannot be written without changing what it means."""

    def __init__(self, message: str) -> None:
        super().__init__(message, phase="send", sent=False)


class UpstreamBusy(UpstreamError):
    """Every connection to the origin is in use, and the wait for one was too long."""

    timeout = True

    def __init__(self, message: str) -> None:
        super().__init__(message, phase="pool", sent=False)


class UpstreamUnreachable(UpstreamError):
    """The name, the address or the certificate of the vendor failed us."""


class UpstreamTimeout(UpstreamError):
    """A deadline passed; `phase` says in which step."""

    timeout = True


class UpstreamCut(UpstreamError):
    """The connection ended in the middle."""


class UpstreamGarbled(UpstreamError):
    """The vendor's bytes cannot be read."""
