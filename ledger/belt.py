"""The owner of one connection to Redis, which carries the batches of the partitions at that server.

While one batch is under way, new work queues; the reply sends the next batch. So nothing waits when
idle, and under load the batches grow by themselves.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from hiredis import ReplyError

from ledger.admission import Hold
from ledger.fcall import OF_ENDS, Renewal, renewal_of
from ledger.lane import Lane
from ledger.step import Step
from ledger.wire import Answers, Wire, WireError, packed

HOLD_S = 0.3  # a client is told within this that the ledger is away
TICK_S = 0.02  # how exactly deadlines are kept
OPEN_S = 1.0  # for connecting and being let in
SILENT_S = 2.0  # a batch that takes longer is lost; the longest function takes a tenth of it
LOOK_EVERY_S = 0.5  # at every partition's generation: a call without traffic must be held again too
RENEW_S = 20.0  # a third of the usual lease, so two renewals may be lost or late
RENEW_SLICE = 100  # calls whose progress is worked out in one turn of the loop: some 2 ms
BACKOFF_S_MIN, BACKOFF_S_MAX = 0.01, 0.5
# Holds of the same batch wait for it as well, and HOLD_S is all they have.
REPLICA_MS = 200

_ASKED = frozenset({"tg_hold", "tg_extend"})
_WAIT = packed(("WAITAOF", 1, 1, REPLICA_MS))


def _nothing(*_: object) -> None:
    """Nobody listens."""


@dataclass(slots=True, kw_only=True)
class Manner:
    """What all belts of a process have in common."""

    renew_s: float = RENEW_S
    renewal: Callable[[Hold], Renewal] = renewal_of  # of an open call: lease, progress
    on_batch: Callable[[int, int], None] = _nothing
    say: Callable[[str, str], None] = _nothing  # what went wrong, and why
    answered: asyncio.Event = field(default_factory=asyncio.Event)  # set by every answer
    needs_replica: bool = False  # an end counts once it is on its server's and a replica's disk


class OpenWire(Protocol):
    """Opens a connection within a time, or raises `WireError`."""

    def __call__(self, *, timeout_s: float) -> Awaitable[Wire]:
        """A connection that has been let in."""
        ...


class Belt:
    """One connection, opened again and again by `open_wire`, and the lanes it serves."""

    def __init__(
        self,
        open_wire: OpenWire,
        manner: Manner,
        *,
        on_away: Callable[[], None] = _nothing,
    ) -> None:
        self._open_wire, self._manner, self._on_away = open_wire, manner, on_away
        self.lanes: set[Lane] = set()
        # Every lane in which something waits, or that wants to ask; others may be among them.
        self.busy: set[Lane] = set()
        self._wire: Wire | None = None
        self._flight: list[tuple[Lane, Step]] = []
        self._flight_since_s = 0.0
        self._is_scheduled = self._is_ticking = False
        self.is_awake = False  # a flush is scheduled or a batch under way, and deadlines are kept
        self._tick_at_s = 0.0
        # Of the belt and not of its connection: one that breaks often must not put renewals off.
        self._renew_at_s = 0.0
        self.is_connected = self._was_useful = False

    def take(self, lane: Lane) -> None:
        """Serve this lane from now on; nobody else does."""
        self.lanes.add(lane)
        self._renew_at_s = 0.0  # who served it before may have been about to
        lane.doubt()
        self.busy.add(lane)
        self.wake()

    def give(self, lane: Lane) -> None:
        """Serve it no longer. What is under way may have happened or not, as after any loss."""
        if any(one is lane for one, _ in self._flight):
            self._break()
            self._lose_flight()
        self.lanes.discard(lane)
        self.busy.discard(lane)

    def leave(self) -> None:
        """The server is not the right one any more: connect anew."""
        self._break()

    # The owner of the connection -----------------------------------------------------------------

    async def run(self) -> None:
        """Keep a connection for ever; cancelled to stop."""
        backoff_s = BACKOFF_S_MIN
        try:
            while True:
                try:
                    await self._carry(await self._open_wire(timeout_s=OPEN_S))
                except WireError as error:
                    self._manner.say("Redis is away", str(error))
                self._on_away()
                # A server that lets us in only to refuse us must not be hammered either.
                backoff_s = min(2 * backoff_s, BACKOFF_S_MAX)
                if self._was_useful:
                    backoff_s, self._was_useful = BACKOFF_S_MIN, False
                await asyncio.sleep(backoff_s * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
        finally:
            for lane in self.lanes:
                lane.abandon("the gateway is stopping")

    async def _carry(self, wire: Wire) -> None:
        """Use a connection until it is closed."""
        self._wire, self.is_connected = wire, True
        for lane in self.lanes:
            lane.doubt()
        self.busy.update(self.lanes)
        self._flush()
        loop = asyncio.get_running_loop()
        renew_s = self._manner.renew_s
        try:
            while not wire.closed.done():
                if loop.time() >= self._renew_at_s:
                    self._renew_at_s = loop.time() + renew_s
                    await self._renew_all()
                self.wake()
                await asyncio.wait({wire.closed}, timeout=min(LOOK_EVERY_S, renew_s))
                for lane in self.lanes:
                    lane.wants_state = True
                self.busy.update(self.lanes)
        finally:
            self._wire, self.is_connected = None, False
            wire.close()
            self._lose_flight()
            self.is_awake = False

    def _lose_flight(self) -> None:
        flight, self._flight = self._flight, []
        for lane, step in reversed(flight):
            lane.lost(step)
            self.busy.add(lane)

    async def _renew_all(self) -> None:
        """A slice at a time: the loop serves calls in between."""
        for lane in [*self.lanes]:
            lane.renew_owed()
            self.busy.add(lane)
            holds = [*lane.open.values()]
            for start in range(0, len(holds), RENEW_SLICE):
                if lane not in self.lanes:
                    break  # another belt has it meanwhile
                slice_ = [h for h in holds[start : start + RENEW_SLICE] if h.call_id in lane.open]
                lane.renew([self._manner.renewal(hold) for hold in slice_])
                self.busy.add(lane)
                self.wake()
                await asyncio.sleep(0)

    # Batches -------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Send what is queued when this turn of the loop is over, with what else it brings."""
        if not self._is_scheduled and not self._flight:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._scheduled)
        self._keep_time()

    def _keep_time(self) -> None:
        if not self._is_ticking:
            self._is_ticking = True
            self._tick_later()
        self.is_awake = True

    def _scheduled(self) -> None:
        self._is_scheduled = self.is_awake = False
        self._flush()

    def _flush(self) -> None:
        wire = self._wire
        if wire is None or self._flight or wire.closed.done():
            return
        now_s = asyncio.get_running_loop().time()
        waited_s, items, has_ends = 0.0, 0, False
        flight: list[tuple[Lane, Step]] = []
        busy, self.busy = self.busy, set()
        for lane in busy:
            waited_s = max(waited_s, lane.wait_s(now_s))
            for step in lane.steps(now_s):
                flight.append((lane, step))
                items += len(step.items)
                has_ends = has_ends or step.function in OF_ENDS
            if lane.is_restless:
                self.busy.add(lane)
        if not flight:
            return
        self._flight, self._flight_since_s = flight, now_s
        self._keep_time()
        commands = [step.command for _, step in flight]
        if has_ends and self._manner.needs_replica:
            commands.append(_WAIT)
        wire.send(b"".join(commands), len(commands), self._answered)
        if items:
            self._manner.on_batch(items, int(waited_s * 1e6))

    def _answered(self, answers: Answers) -> None:
        flight, self._flight, self.is_awake = self._flight, [], False
        now_s = asyncio.get_running_loop().time()
        must_break = False
        on_disks = answers.pop() if len(answers) > len(flight) else None
        is_safe = on_disks is None or self._is_on_disks(on_disks)
        for (lane, step), answer in zip(flight, answers, strict=True):
            if is_safe or step.function not in OF_ENDS or isinstance(answer, ReplyError):
                lane.answered(step, answer, now_s)
            else:
                lane.lost(step)  # sent again, until a replica has it
                if isinstance(on_disks, ReplyError):
                    lane.rest(now_s)  # which is said at once, where a missing replica takes a while
            self.busy.add(lane)
            must_break = must_break or lane.must_break
        self._was_useful = not must_break
        if must_break:
            self._break()
        if not self._manner.answered.is_set():
            self._manner.answered.set()
        self._flush()

    def _is_on_disks(self, answer: object) -> bool:
        """Whether WAITAOF says that what went before is on this server's disk and a replica's."""
        if isinstance(answer, list) and min(answer) >= 1:
            return True
        self._manner.say("no replica has the ends of calls", f"WAITAOF is answered {answer!r}")
        return False

    def _break(self) -> None:
        for lane in self.lanes:
            lane.must_break = False
        if self._wire:
            self._wire.close()

    def _tick(self) -> None:
        """Keep deadlines while anything waits, and notice a server that has fallen silent."""
        now_s = asyncio.get_running_loop().time()
        if now_s - self._tick_at_s > TICK_S:
            self._excuse(now_s - self._tick_at_s)
        silent_s = now_s - self._flight_since_s if self._flight else 0.0
        answers = self.is_connected and silent_s < HOLD_S
        for lane, step in self._flight:
            if step.function in _ASKED:
                for asked in step.items:
                    lane.has_expired(asked, now_s + TICK_S, is_answering=answers)
        for lane in self.busy:
            lane.expire(now_s + TICK_S, is_answering=answers)
        if self._wire and silent_s > SILENT_S:
            self._manner.say("Redis is silent", f"for {SILENT_S} s")
            self._break()
        self._flush()
        if self._flight or self._is_scheduled or any(lane.is_restless for lane in self.busy):
            self._tick_later()
        else:
            self._is_ticking = self.is_awake = False

    def _tick_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._tick_at_s = loop.time() + TICK_S
        loop.call_at(self._tick_at_s, self._tick)

    def _excuse(self, late_s: float) -> None:
        """This process was busy for so long itself, with large bodies perhaps, and not Redis.

        What it answered meanwhile is read before the next tick.
        """
        self._flight_since_s += late_s
        for _, step in self._flight:
            if step.function in _ASKED:
                for asked in step.items:
                    asked.deadline_s += late_s
        for lane in self.busy:
            lane.postpone(late_s)
