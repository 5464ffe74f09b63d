"""The hot path to Redis: holds and ends of many calls, in shared round trips (`ledger.belt`).

Nothing that is cancelled, lost or answered too late can leak money: a hold that nobody saw admitted
is released, and an end is kept until a stream has it.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

from ledger.admission import End, Held, Hold, Refused
from ledger.arrears import Owing
from ledger.belt import HOLD_S, RENEW_S, Manner
from ledger.fcall import Renewal
from ledger.junction import Junction
from ledger.lane import LEASE_MS, Lane
from ledger.money import ZERO, Nanos
from ledger.outage import REDIS
from ledger.step import Asked, Settled, Tell, pause_before

log = logging.getLogger(__name__)


def _nothing(*_: object) -> None:
    """Nobody listens."""


class Conveyor:
    """Holds, ends and leases of one process, for every partition.

    `on_epoch(partition)`: it needs a recovery. `on_settled(settled)`: a stream has these ends.
    `on_generation(partition, generation)`: the partition is in a new one, so ends that only an
    older one had are to be told again. `on_batch(steps, wait_us)`: a batch goes out, and how
    long the oldest of its holds has waited. All are called from the event loop.
    Every `renew_s` the leases of all open calls are renewed, and of what ended ones owe (`lease_s`
    long; a call's hold says its own). `gateway`, unique to the process, is
    signed with at roll calls (`ledger.rollcall`) once all that is here was told; "": never.
    `needs_replica`: an end is told as settled once a replica has it on its disk, too.
    """

    def __init__(  # noqa: PLR0913 - who listens, and some ways in which processes differ
        self,
        url: str,
        *,
        partitions: int,
        renew_s: float = RENEW_S,
        lease_s: float = LEASE_MS / 1_000,
        gateway: str = "",
        needs_replica: bool = False,
        on_epoch: Callable[[int], None] = _nothing,
        on_settled: Callable[[Settled], None] = _nothing,
        on_generation: Callable[[int, int], None] = _nothing,
        on_batch: Callable[[int, int], None] = _nothing,
    ) -> None:
        self._manner = Manner(
            renew_s=renew_s, on_batch=on_batch, say=self._say, needs_replica=needs_replica
        )
        tell = Tell(
            _later(on_epoch), _later(on_generation), _later(on_settled), self._say, self._moved
        )
        lease_ms = int(lease_s * 1_000)
        self._lanes = tuple(
            Lane(number, tell, gateway, lease_ms=lease_ms) for number in range(partitions)
        )
        self._junction = Junction(url, self._lanes, self._manner)
        self._belts = self._junction.belt_of  # by partition

    @property
    def needs_replica(self) -> bool:
        """Whether ends are told as settled once a replica has them on its disk."""
        return self._manner.needs_replica

    @property
    def renewal(self) -> Callable[[Hold], Renewal]:
        """What is told of an open call when its lease is renewed."""
        return self._manner.renewal

    @renewal.setter
    def renewal(self, renewal: Callable[[Hold], Renewal]) -> None:
        self._manner.renewal = renewal

    # What callers do -----------------------------------------------------------------------------

    async def hold(self, hold: Hold, *, deadline_s: float = HOLD_S) -> Held | Refused:
        """Admit a call or refuse it; `LedgerUnavailable` if nobody answers in time.

        Money or slots that only other calls hold are asked for a second time after a short pause.
        A caller that is cancelled holds nothing.
        """
        partition, belts = hold.partition, self._belts  # one of which may be another's by then
        loop, lane = asyncio.get_running_loop(), self._lanes[partition]
        born_s, is_first = loop.time(), True
        until_s = born_s + deadline_s
        while True:
            future: asyncio.Future[Held | Refused] = loop.create_future()
            lane.ask(Asked(hold, future, born_s, until_s))
            belt = belts[partition]
            belt.busy.add(lane)
            if not belt.is_awake:
                belt.wake()
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
            self._wake(lane)

    def extend(self, hold: Hold, *, deadline_s: float = HOLD_S) -> "asyncio.Future[Held | Refused]":
        """Raise an open hold to the total `hold.amount`; may be repeated, and need not be awaited.

        Fails with `LedgerUnavailable` if nobody answers in time: then it may be raised or not.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Held | Refused] = loop.create_future()
        now_s, lane = loop.time(), self._lanes[hold.partition]
        lane.ask_more(Asked(hold, future, now_s, now_s + deadline_s))
        self._wake(lane)
        return future

    def settle(self, end: End) -> None:
        """End a call. It is kept and sent again until a stream has it, whatever happens."""
        lane = self._lanes[end.partition]
        lane.end(end)
        belt = self._belts[end.partition]
        belt.busy.add(lane)
        if not belt.is_awake:
            belt.wake()

    def rehold(self, hold: Hold) -> None:
        """Hold for a call that goes on although nobody admitted it, once Redis can be told."""
        lane = self._lanes[hold.partition]
        lane.rehold(hold)
        self._wake(lane)

    def renew(self, partition: int, renewals: Iterable[Renewal]) -> None:
        """Tell new leases. Those of open calls are renewed without being asked."""
        lane = self._lanes[partition]
        lane.renew(renewals)
        self._wake(lane)

    def look(self, partition: int) -> None:
        """Ask at once in which generation the partition is: a recovery calls its roll."""
        if partition < len(self._lanes):
            lane = self._lanes[partition]
            lane.look()
            self._wake(lane)

    def owing(self, partition: int, generation: int) -> Owing | None:
        """The answer to `on_generation` begins: to be added to is every end which that one must be
        told. None: it is over.
        """
        return self._lanes[partition].owing(generation)

    def owed(self, owing: Owing) -> None:
        """All were added. What they charge counts now; each is to be told by `late`."""
        lane = self._lanes[owing.partition]
        lane.owed(owing)
        self._wake(lane)

    def late(self, end: End, generation: int) -> None:
        """Tell an end again; nothing, if the partition is in another generation than this."""
        lane = self._lanes[end.partition]
        lane.late(generation, end)
        self._wake(lane)

    def all_late(self, partition: int, generation: int) -> None:
        """Every end that was added to `owing` was handed over."""
        lane = self._lanes[partition]
        lane.all_late(generation)
        self._wake(lane)

    async def room(self, unanswered_max: int) -> None:
        """Return when fewer ends than this are unanswered; at once if it is so."""
        while self.unanswered_count >= unanswered_max:
            self._manner.answered.clear()
            await self._manner.answered.wait()

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
        """Whether Redis has let us in; of a Cluster, any node that has a partition."""
        return self._junction.is_connected

    @property
    def admits(self) -> bool:
        """Whether calls are admitted: in all partitions or, on a Cluster, in any."""
        active = len(self._lanes) - len(self.inactive)
        return active > 0 if self._junction.is_spread else active == len(self._lanes)

    @property
    def inactive(self) -> tuple[int, ...]:
        """The partitions that admit nothing at the moment."""
        return tuple(lane.number for lane in self._lanes if not lane.is_active)

    async def drain(self, timeout_s: float) -> int:
        """Wait until every end is answered; how many still are not when the time is up."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.room(1)
        except TimeoutError:
            pass
        return self.unanswered_count

    def _wake(self, lane: Lane) -> None:
        belt = self._belts[lane.number]
        belt.busy.add(lane)
        belt.wake()

    async def run(self) -> None:
        """Keep the connections for ever; cancelled to stop."""
        await self._junction.run()

    def _moved(self, partition: int) -> None:  # noqa: ARG002 - whichever, all are looked up
        self._junction.moved()

    def _say(self, event: str, reason: str) -> None:
        cause = REDIS if event in _AWAY else event
        log.warning(event, extra={"cause": cause, "reason": reason})


_AWAY = frozenset({"Redis is away", "Redis is silent", "the Cluster is away"})


def _later(listener: Callable[..., None]) -> Callable[..., None]:
    """Tell it outside the handling of answers: a listener that fails breaks nothing there."""

    def tell(*told: Any) -> None:
        asyncio.get_running_loop().call_soon(listener, *told)

    return tell
