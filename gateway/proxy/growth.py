"""The hold of a stream, raised as the stream grows.

A stream starts with a hold for what streams like it usually generate (`typical.py`). When 70 % of
that has come, twice as much is asked for, up to the call's worst case; the stream goes on meanwhile
and waits for the answer only if the hold is used up first. Refused, it ends there for `length`.
Unanswered, it goes on, and asks again when that much has come: Redis being away ends no answer.

A stream is fed to its meter in steps that cannot generate more than what is held: a token is worth
at least 4 bytes to a meter, or an event of its own, and no event is shorter. So what comes in one
read, and the vendor's word of its end in it, is never seen before it is paid for.
"""

import asyncio
from functools import partial

from gateway.proxy.admit import affordable_output, worst_case
from gateway.proxy.live import NO_END, HoldSpent, LiveCall
from gateway.proxy.typical import Typical
from ledger.admission import Held, Hold, Refused
from ledger.conveyor import Conveyor
from ledger.money import Nanos
from ledger.record import Outcome
from providers.adapter import Meter
from providers.reasoning import grows_unseen, reasons

STEP_TOKENS_MIN = 64
"""Nothing smaller is asked for: a stream must not wait for Redis at every token."""

UNANSWERED = "extend_unanswered"
"""The flag of a stream that went on although Redis did not say that it may."""

_BYTES_PER_TOKEN_MIN = 4
_MONEY = frozenset({"wallet", "cap"})


class StreamHold:
    """The `Growth` of one stream.

    What is held pays for `covered` tokens of output, unless Redis did not answer; `allowed` is that
    in nano-USD.
    """

    __slots__ = ("_asked", "_bound", "_conveyor", "_was_refused", "allowed", "covered")

    def __init__(self, conveyor: Conveyor, *, covered: int, bound: int, allowed: Nanos) -> None:
        assert 0 < covered < bound
        self._conveyor = conveyor
        self.covered, self._bound, self.allowed = covered, bound, allowed
        self._asked: asyncio.Future[Held | Refused] | None = None
        self._was_refused = False

    async def feed(self, live: LiveCall, received: bytes, before: bytes = b"") -> tuple[bytes, int]:
        """See `Growth`."""
        meter = live.meter
        assert meter is not None
        shown, start = before, 0
        mark = b"\n\n" if b"\n\n" in received else b"\n\r\n"
        while start < len(received):
            # At least one event, or what was begun of one would be left in the client's stream.
            room = self._room(live, meter)
            end = received.rfind(mark, start, start + room) if room < NO_END else -1
            if end < 0 and room < NO_END:
                end = received.find(mark, start)
            end = len(received) if end < 0 else end + len(mark)
            shown += meter.feed(received[start:end])
            start = end
            if self._is_spent(meter) and not await self._more(live, meter):
                raise HoldSpent(shown)
        room = self._room(live, meter)
        return shown, NO_END if room == NO_END else live.received + room

    def _room(self, live: LiveCall, meter: Meter) -> int:
        """How many bytes cannot use up the hold; asks for more where that is time."""
        if self.covered >= self._bound or meter.finished:
            return NO_END
        tokens = meter.generated()
        if tokens * 10 >= self.covered * 7 and self._asked is None and not self._was_refused:
            self._ask(live, min(2 * self.covered, self._bound))
        return max(0, (self.covered - tokens - 1) * _BYTES_PER_TOKEN_MIN)

    def _is_spent(self, meter: Meter) -> bool:
        return (
            self.covered < self._bound and not meter.finished and meter.generated() >= self.covered
        )

    async def _more(self, live: LiveCall, meter: Meter) -> bool:
        """Wait for what is asked for; False: there is no more, and the stream must end."""
        if self._asked is None:
            # Refused a while ago; another call may have given something back.
            total = 2 * max(self.covered, meter.generated())
            self._ask(live, min(total, self._bound))
        while self._asked is not None:
            await asyncio.wait({self._asked})
        return not self._is_spent(meter)

    def _ask(self, live: LiveCall, tokens: int, *, is_less: bool = False) -> None:
        """`is_less`: it is what a refusal of more left."""
        hold = live.hold._replace(amount=worst_case(live, tokens))
        deadline_s = live.terms.config.ledger.admission_timeout_s
        self._asked = self._conveyor.extend(hold, deadline_s=deadline_s)
        told = partial(self._answered, live, hold, tokens, is_less=is_less)
        self._asked.add_done_callback(told)

    def _answered(
        self,
        live: LiveCall,
        hold: Hold,
        tokens: int,
        asked: "asyncio.Future[Held | Refused]",
        *,
        is_less: bool,
    ) -> None:
        self._asked = None
        if asked.cancelled():
            return
        answer = None if asked.exception() is not None else asked.result()
        if live.is_ended:
            return  # it was settled with what it had; the answer came too late to matter
        if isinstance(answer, Held):
            self._was_refused = False
            self._reaches(hold, tokens)
            live.hold, live.record.held = hold, hold.amount
        elif answer is not None and answer.code in _MONEY:
            self._refused(live, answer, tokens // 2 if is_less else tokens - 1)
        else:
            # Nobody knows, or the hold was swept or awaits its recovery: not the client's fault.
            self._reaches(hold, tokens)
            _flag(live, UNANSWERED)

    def _reaches(self, hold: Hold, tokens: int) -> None:
        self.covered, self.allowed = tokens, hold.amount

    def _refused(self, live: LiveCall, refused: Refused, most: int) -> None:
        """There is less than was asked for: ask for that at once, or later.

        What is left is counted from what Redis holds. That is less than `allowed` after it did not
        answer: then even what was let through meanwhile is still to be held for. And `most` falls,
        so that refusals cannot chase each other for ever.
        """
        self._was_refused = True
        held = self._conveyor.held(live.call_id, live.hold.partition)
        left = affordable_output(live, held + max(0, refused.free), most=most)
        owes = held < self.allowed and worst_case(live, left) > held
        if owes or left >= self.covered + STEP_TOKENS_MIN:
            self._ask(live, left, is_less=True)


class StreamHolds:
    """The holds of this process's streams, and how large they are at first."""

    def __init__(self, conveyor: Conveyor) -> None:
        self._conveyor = conveyor
        self._typical = Typical()

    def begin(self, live: LiveCall, bound: int) -> int:
        """The output to hold for a stream at first: its bound, or less if it has a `Growth`."""
        call, model, target = live.call, live.route.model, live.candidates[0].target.model
        if grows_unseen(call) or (reasons(target) if model.reasoning is None else model.reasoning):
            return bound
        first = live.terms.config.limits.stream_output_tokens
        typical = self._typical.output(live.principal.organization_id, target, otherwise=first)
        if typical is None or typical >= bound:
            return bound
        worst_case(live, bound)  # that no account could pay it is said at once
        allowed = worst_case(live, typical)
        live.growth = StreamHold(self._conveyor, covered=typical, bound=bound, allowed=allowed)
        return typical

    def learn(self, live: LiveCall) -> None:
        """Remember how long a stream was, if it came to its own end."""
        record = live.record
        if record.outcome == Outcome.SUCCESS:
            model = live.candidates[0].target.model
            reasoning = 0 if live.route.model.reasoning is False else record.reasoning
            self._typical.note(record.organization_id, model, record.usage, reasoning=reasoning)


def _flag(live: LiveCall, name: str) -> None:
    if name not in live.record.flags:
        live.record.flags.append(name)
