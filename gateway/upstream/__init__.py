"""The upstream client: what the rest of the gateway may use of it."""

from gateway.upstream.answer import Answer
from gateway.upstream.client import Upstream
from gateway.upstream.connection import Deadlines
from gateway.upstream.errors import (
    Phase,
    UpstreamBusy,
    UpstreamCut,
    UpstreamError,
    UpstreamGarbled,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from gateway.upstream.head import HOP
from gateway.upstream.pool import Limits, Pool, Tallies

__all__ = [
    "HOP",
    "Answer",
    "Deadlines",
    "Limits",
    "Phase",
    "Pool",
    "Tallies",
    "Upstream",
    "UpstreamBusy",
    "UpstreamCut",
    "UpstreamError",
    "UpstreamGarbled",
    "UpstreamRefused",
    "UpstreamTimeout",
    "UpstreamUnreachable",
]
