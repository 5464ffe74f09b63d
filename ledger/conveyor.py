"""The hot path to Redis: holds and ends of many calls, shared round trips, one connection.

While one batch is under way, new work queues; the reply sends the next batch. So nothing waits when
idle, and under load the batches grow by themselves. Nothing that is cancelled, lost or answered too
late can leak money: a hold that nobody saw admitted is released, and an end is kept until a stream
has it.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from typing import Any

from ledger.admission import End, Held, Hold, Refused
from ledger.fcall import Renewal, renewal_of
from ledger.lane import Lane
from ledger.money import ZERO, Nanos
from ledger.outage import REDIS
from ledger.step import Asked, Settled, Step, Tell, pause_before
from ledger.wire import Address, Answers, Wire, WireError

log = logging.getLogger(__name__)

HOLD_S = 0.3  # a client is told within this that the ledger is away
TICK_S = 0.02  # how exactly deadlines are kept
OPEN_S = 1.0  # for connecting and being let in
SILENT_S = 2.0  # a batch that takes longer is lost; the longest function takes a tenth of it
LOOK_EVERY_S = 0.5  # at every partition's generation: a call without traffic must be held again too
RENEW_S = 20.0  # a third of the usual lease, so two renewals may be lost
RENEW_SLICE = 100  # calls whose progress is worked out in one turn of the loop: some 2 ms
BACKOFF_S_MIN, BACKOFF_S_MAX = 0.01, 0.5


def _nothing(*_: object) -> None:
    """Nobody listens."""


class Conveyor:
    """Holds, ends and leases of one process, for every partition.

    `on_epoch(partition)`: it needs a recovery. `on_settled(settled)`: a stream has these ends.
    `on_generation(partition, generation)`: the partition is in a new one, so ends that only an
    older one had are to be `told`. `on_batch(steps, wait_us)`: a batch goes out, and how
    long the oldest of its holds has waited. All are called from the event loop.
    Every `renew_s` the leases of all open calls are renewed. `gateway`, unique to the process, is
    signed with at roll calls (`ledger.rollcall`) once all that is here was told; "": never.
    """

    def __init__(
        self,
        url: str,
        *,
        partitions: int,
        renew_s: float = RENEW_S,
        gateway: str = "",
        on_epoch: Callable[[int], None] = _nothing,
        on_settled: Callable[[Settled], None] = _nothing,
        on_generation: Callable[[int, int], None] = _nothing,
        on_batch: Callable[[int, int], None] = _nothing,
    ) -> None:
        self._address, self._renew_s = Address(url), renew_s
        self._on_batch = on_batch
        self.renewal: Callable[[Hold], Renewal] = renewal_of  # of an open call: lease, progress
        tell = Tell(_later(on_epoch), _later(on_generation), _later(on_settled), self._say)
        self._lanes = tuple(Lane(number, tell, gateway) for number in range(partitions))
        # Every lane in which something waits, or that wants to ask; others may be among them.
        self._busy: set[Lane] = set()
        self._wire: Wire | None = None
        self._flight: list[tuple[Lane, Step]] = []
        self._flight_since_s = 0.0
        self._is_scheduled = self._is_ticking = False
        self._is_awake = False  # a flush is scheduled or a batch under way, and deadlines are kept
        self._tick_at_s = 0.0
        self._drained = asyncio.Event()
        self._drained.set()
        self._is_connected = self._was_useful = False

    # What callers do -----------------------------------------------------------------------------

    async def hold(self, hold: Hold, *, deadline_s: float = HOLD_S) -> Held | Refused:
        """Admit a call or refuse it; `LedgerUnavailable` if nobody answers in time.

        Money or slots that only other calls hold are asked for a second time after a short pause.
        A caller that is cancelled holds nothing.
        """
        loop, lane = asyncio.get_running_loop(), self._lanes[hold.partition]
        born_s, is_first = loop.time(), True
        until_s = born_s + deadline_s
        while True:
            future: asyncio.Future[Held | Refused] = loop.create_future()
            lane.ask(Asked(hold, future, born_s, until_s))
            self._busy.add(lane)
            if not self._is_awake:
                self._wake()
            try:
                answer = await future
            except asyncio.CancelledError:
                self._let_go(lane, hold, future)
                raise
            if (
                isinstance(answer, Held)
                or not is_first
                or not (pause_s := pause_before(answer, hold))
            ):
                return answer
            await asyncio.sleep(pause_s)
            born_s, is_first = born_s + pause_s, False

    def _let_go(self, lane: Lane, hold: Hold, future: asyncio.Future[Held | Refused]) -> None:
        """Answered already, but the caller never saw it; all else the lane notices by itself."""
        if not future.done() or future.cancelled() or future.exception():
            return
        if isinstance(future.result(), Held):
            lane.release_unseen(hold)
            self._busy.add(lane)
            self._wake()

    def extend(self, hold: Hold, *, deadline_s: float = HOLD_S) -> "asyncio.Future[Held | Refused]":
        """Raise an open hold to the total `hold.amount`; may be repeated, and need not be awaited.

        Fails with `LedgerUnavailable` if nobody answers in time: then it may be raised or not.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Held | Refused] = loop.create_future()
        now_s, lane = loop.time(), self._lanes[hold.partition]
        lane.ask_more(Asked(hold, future, now_s, now_s + deadline_s))
        self._busy.add(lane)
        self._wake()
        return future

    def settle(self, end: End) -> None:
        """End a call. It is kept and sent again until a stream has it, whatever happens."""
        lane = self._lanes[end.partition]
        lane.end(end)
        self._busy.add(lane)
        if not self._is_awake:
            self._wake()

    def rehold(self, hold: Hold) -> None:
        """Hold for a call that goes on although nobody admitted it, once Redis can be told."""
        self._lanes[hold.partition].rehold(hold)
        self._busy.add(self._lanes[hold.partition])
        self._wake()

    def renew(self, partition: int, renewals: Iterable[Renewal]) -> None:
        """Tell new leases. Those of open calls are renewed without being asked."""
        lane = self._lanes[partition]
        lane.renew(renewals)
        self._busy.add(lane)
        self._wake()

    def look(self, partition: int) -> None:
        """Ask at once in which generation the partition is: a recovery calls its roll."""
        if partition < len(self._lanes):
            lane = self._lanes[partition]
            lane.look()
            self._busy.add(lane)
            self._wake()

    def told(self, partition: int, generation: int, ends: Iterable[End]) -> None:
        """The answer to `on_generation`, when it is known: all ends which that one must be told."""
        lane = self._lanes[partition]
        lane.told(generation, ends)
        self._busy.add(lane)
        self._wake()

    def generation(self, partition: int) -> int:
        """The generation the partition was last seen in; 0 before it was seen."""
        return self._lanes[partition].generation

    def held(self, call_id: bytes, partition: int) -> Nanos:
        """What Redis has said that it holds for a call admitted here; 0 once that has ended."""
        hold = self._lanes[partition].open.get(call_id)
        return ZERO if hold is None else hold.amount

    @property
    def open_count(self) -> int:
        """Calls admitted here that have not ended."""
        return sum(len(lane.open) for lane in self._lanes)

    @property
    def unanswered_count(self) -> int:
        """Ends that no stream is known to have."""
        return sum(lane.unanswered for lane in self._lanes)

    @property
    def lapsed_count(self) -> int:
        """Open calls so far whose hold had been swept when it was to be renewed."""
        return sum(lane.lapsed for lane in self._lanes)

    @property
    def broken_count(self) -> int:
        """Ends so far that Redis could not read: a bug of ours, and left to the journal."""
        return sum(lane.broken for lane in self._lanes)

    @property
    def is_connected(self) -> bool:
        """Whether Redis has let us in."""
        return self._is_connected

    @property
    def inactive(self) -> tuple[int, ...]:
        """The partitions that admit nothing at the moment."""
        return tuple(lane.number for lane in self._lanes if not lane.is_active)

    async def drain(self, timeout_s: float) -> int:
        """Wait until every end is answered; how many still are not when the time is up."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.unanswered_count:
                    self._drained.clear()
                    await self._drained.wait()
        except TimeoutError:
            pass
        return self.unanswered_count

    # The owner of the connection -----------------------------------------------------------------

    async def run(self) -> None:
        """Keep a connection for ever; cancelled to stop."""
        backoff_s = BACKOFF_S_MIN
        try:
            while True:
                try:
                    await self._carry(await self._address.open(timeout_s=OPEN_S))
                except WireError as error:
                    self._say("Redis is away", str(error))
                # A server that lets us in only to refuse us must not be hammered either.
                backoff_s = min(2 * backoff_s, BACKOFF_S_MAX)
                if self._was_useful:
                    backoff_s, self._was_useful = BACKOFF_S_MIN, False
                await asyncio.sleep(backoff_s * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
        finally:
            for lane in self._lanes:
                lane.abandon("the gateway is stopping")

    async def _carry(self, wire: Wire) -> None:
        """Use a connection until it is closed."""
        self._wire, self._is_connected = wire, True
        for lane in self._lanes:
            lane.doubt()
        self._busy.update(self._lanes)
        self._flush()
        loop = asyncio.get_running_loop()
        renew_at_s = loop.time() + self._renew_s
        try:
            while not wire.closed.done():
                await asyncio.wait({wire.closed}, timeout=min(LOOK_EVERY_S, self._renew_s))
                for lane in self._lanes:
                    lane.wants_state = True
                self._busy.update(self._lanes)
                if loop.time() >= renew_at_s:
                    renew_at_s += self._renew_s
                    await self._renew_all()
                self._wake()
        finally:
            self._wire, self._is_connected = None, False
            wire.close()
            flight, self._flight = self._flight, []
            for lane, step in reversed(flight):
                lane.lost(step)
                self._busy.add(lane)
            self._is_awake = False

    async def _renew_all(self) -> None:
        """A slice at a time: the loop serves calls in between."""
        for lane in self._lanes:
            holds = [*lane.open.values()]
            for start in range(0, len(holds), RENEW_SLICE):
                slice_ = [h for h in holds[start : start + RENEW_SLICE] if h.call_id in lane.open]
                self.renew(lane.number, [self.renewal(hold) for hold in slice_])
                await asyncio.sleep(0)

    # Batches -------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Send what is queued when this turn of the loop is over, with what else it brings."""
        if not self._is_scheduled and not self._flight:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._scheduled)
        self._keep_time()

    def _keep_time(self) -> None:
        if not self._is_ticking:
            self._is_ticking = True
            self._tick_later()
        self._is_awake = True

    def _scheduled(self) -> None:
        self._is_scheduled = self._is_awake = False
        self._flush()

    def _flush(self) -> None:
        wire = self._wire
        if wire is None or self._flight or wire.closed.done():
            return
        now_s = asyncio.get_running_loop().time()
        waited_s, items = 0.0, 0
        flight: list[tuple[Lane, Step]] = []
        busy, self._busy = self._busy, set()
        for lane in busy:
            waited_s = max(waited_s, lane.wait_s(now_s))
            for step in lane.steps(now_s):
                flight.append((lane, step))
                items += len(step.items)
            if lane.is_restless:
                self._busy.add(lane)
        if not flight:
            return
        self._flight, self._flight_since_s = flight, now_s
        self._keep_time()
        wire.send(b"".join([step.command for _, step in flight]), len(flight), self._answered)
        if items:
            self._on_batch(items, int(waited_s * 1e6))

    def _answered(self, answers: Answers) -> None:
        flight, self._flight, self._is_awake = self._flight, [], False
        now_s = asyncio.get_running_loop().time()
        must_break = False
        for (lane, step), answer in zip(flight, answers, strict=True):
            lane.answered(step, answer, now_s)
            self._busy.add(lane)
            must_break = must_break or lane.must_break
        self._was_useful = not must_break
        if must_break:
            self._break()
        if not self._drained.is_set() and not self.unanswered_count:
            self._drained.set()
        self._flush()

    def _break(self) -> None:
        for lane in self._lanes:
            lane.must_break = False
        if self._wire:
            self._wire.close()

    def _tick(self) -> None:
        """Keep deadlines while anything waits, and notice a server that has fallen silent."""
        now_s = asyncio.get_running_loop().time()
        if now_s - self._tick_at_s > TICK_S:
            self._excuse(now_s - self._tick_at_s)
        silent_s = now_s - self._flight_since_s if self._flight else 0.0
        answers = self._is_connected and silent_s < HOLD_S
        for lane, step in self._flight:
            if step.function in _ASKED:
                for asked in step.items:
                    lane.has_expired(asked, now_s + TICK_S, is_answering=answers)
        for lane in self._busy:
            lane.expire(now_s + TICK_S, is_answering=answers)
        if self._wire and silent_s > SILENT_S:
            self._say("Redis is silent", f"for {SILENT_S} s")
            self._break()
        self._flush()
        if self._flight or self._is_scheduled or any(lane.is_restless for lane in self._busy):
            self._tick_later()
        else:
            self._is_ticking = self._is_awake = False

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
        for lane in self._busy:
            lane.postpone(late_s)

    def _say(self, event: str, reason: str) -> None:
        log.warning(event, extra={"cause": REDIS, "reason": reason})


_ASKED = frozenset({"tg_hold", "tg_extend"})


def _later(listener: Callable[..., None]) -> Callable[..., None]:
    """Tell it outside the handling of answers: a listener that fails breaks nothing there."""

    def tell(*told: Any) -> None:
        asyncio.get_running_loop().call_soon(listener, *told)

    return tell
