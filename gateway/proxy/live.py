"""One call on its way through the gateway: what is known of it, from its first byte to its end."""

import asyncio
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from gateway.principal import Principal
from gateway.proxy.exchange import Exchange
from gateway.settings import Config, Provider, Route
from gateway.upstream import Answer
from ledger.admission import Held, Hold
from ledger.money import Nanos
from ledger.pricing import Price, PriceSheet
from ledger.record import Record
from providers.adapter import Call, Meter, Target


class Terms(NamedTuple):
    """What a call is judged by. A call keeps the terms it started with, whatever is reloaded."""

    config: Config
    prices: PriceSheet


class Candidate(NamedTuple):
    """A target that may serve the call, and what that would cost. `price` None: it has none."""

    target: Target
    provider: Provider
    price: Price | None


NO_END = sys.maxsize
"""So many bytes never come."""


class Growth(Protocol):
    """How far the hold of a stream reaches that holds less than its worst case."""

    allowed: Nanos  # the most that an estimate is charged when the stream is ended early

    async def feed(
        self, live: "LiveCall", received: bytes, before: bytes = b""
    ) -> tuple[bytes, int]:
        """Feed the meter as far as the hold reaches, and ask for more in time.

        Returns `before` and what the client shall see now, and the count of received bytes up to
        which the meter may be fed without asking here. Raises `HoldSpent`.
        """


class HoldSpent(Exception):
    """What is held is used up and there is no more; `shown` has come and is paid for."""

    def __init__(self, shown: bytes) -> None:
        super().__init__("the hold is used up")
        self.shown = shown


class LiveCall:
    """The state of one call. Made by the intake, filled by each phase, ended exactly once."""

    __slots__ = (
        "admitted_s",
        "answer",
        "asked_s",
        "attempts",
        "began_s",
        "body_bytes",
        "call",
        "call_id",
        "candidate",
        "candidates",
        "clamped",
        "client_gone",
        "clock",
        "code",
        "drain_end",
        "ended_s",
        "exchange",
        "failures",
        "first_byte_s",
        "growth",
        "held",
        "hold",
        "id_text",
        "input_bound",
        "is_ended",
        "is_unjournaled",
        "leave",
        "meter",
        "principal",
        "received",
        "record",
        "route",
        "sent_s",
        "status",
        "task",
        "terms",
        "upstream_done_s",
    )

    def __init__(
        self,
        exchange: Exchange,
        terms: Terms,
        *,
        call_id: bytes,
        id_text: str,
        clock: Callable[[], float],
    ) -> None:
        self.exchange, self.terms, self.clock = exchange, terms, clock
        self.call_id, self.id_text = call_id, id_text
        # Monotonic seconds, 0 until it happens: the request is whole; the hold is asked for; it is
        # given; the vendor is asked; its first event comes; its last byte came; the call is ended.
        self.began_s = clock()
        self.asked_s = self.admitted_s = self.sent_s = self.first_byte_s = 0.0
        self.upstream_done_s = self.ended_s = 0.0
        self.task: asyncio.Task[Any]  # that serves it
        self.principal: Principal
        self.body_bytes = 0  # of its body that are here, as `Bodies` counts them
        self.call: Call
        self.route: Route
        self.candidates: list[Candidate]
        self.candidate: Candidate
        self.input_bound = self.clamped = 0  # `clamped`: the limit of the output we set; 0: none
        self.hold: Hold
        self.held: Held
        self.growth: Growth | None = None  # of a stream that holds less than its worst case
        self.record: Record
        self.answer: Answer | None = None
        self.meter: Meter | None = None
        self.attempts = 0
        self.status = 0
        self.code = ""  # of the error it was answered with; "": of none
        self.received = 0  # bytes read since a stream began, as its `feed_to` counts
        self.failures: list[tuple[str, str]] = []  # attempts that failed: provider, phase
        self.client_gone = False
        # When reading on for a client that has left is given up; None: nobody reads on.
        self.drain_end: asyncio.TimerHandle | None = None
        self.is_ended = False
        self.is_unjournaled = False  # the journal could not take its end
        self.leave: Callable[[], None]  # what happens when the client has left

    def failed(self, phase: str) -> None:
        """Note that the attempt under way came to nothing, and where."""
        self.failures.append((self.candidate.target.provider, phase))
