"""One partition's traffic: what waits to be sent, what it becomes on the wire, what answers mean.

A lane decides and never waits; `ledger.conveyor` does the I/O. Three things always hold. Work on
money leaves a queue only when it is answered for good: a step that was refused or lost goes back to
the front. A hold that somebody stopped waiting for is released as soon as it is known or suspected
to be there. And nothing is sent in a generation that Redis has not confirmed.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from hiredis import ReplyError

from ledger.admission import End, Held, Hold, released
from ledger.arrears import Arrears, Owing, call_ids
from ledger.fcall import (
    ELSEWHERE,
    KEY_COUNT,
    LOGGED,
    NOT_SERVING,
    NOTHING_RAN,
    OF_ENDS,
    Epoch,
    PartitionState,
    Renewal,
    Word,
    end_arguments,
    highest_place,
    hold_arguments,
    key_names,
    refusal,
    renewal_arguments,
    state_answer,
)
from ledger.rollcall import Signature
from ledger.step import Asked, Phase, Settled, Step, Tell
from ledger.waiting import Waiting
from ledger.wire import packed

ITEMS_MAX = 128  # per step: a function runs about 15 us an item, and Redis does nothing else then
LEASE_MS = 60_000
RENEWALS_MAX = 65_536  # in an outage; the oldest go first, the next round renews again
ASK_EVERY_S = 0.02  # while work waits for a generation
TELL_EVERY_S = 1.0  # that a partition needs a recovery, should the first word of it be lost
PAUSE_S = 0.1  # after a refusal that has nothing to do with us: out of memory, disk full


class Lane(Waiting):
    """The queues of one partition. `gateway` signs at roll calls; "" does not. `lease_ms`: how long
    what it owes stays held without it.
    """

    def __init__(
        self, number: int, tell: Tell, gateway: str = "", *, lease_ms: int = LEASE_MS
    ) -> None:
        super().__init__()
        self.number, self.generation = number, 0
        self.open: dict[bytes, Hold] = {}  # admitted and not ended
        self.unanswered = 0  # ends that no stream is known to have
        self.lapsed = 0  # open calls whose hold was gone when it was to be renewed
        self.broken = 0  # ends that Redis found flawed: a bug of ours
        self.must_break = False  # the server is no primary, or not ready: connect anew
        self.wants_state = False  # ask with the next batch how the partition is
        self._tell = tell
        self._signature = Signature(number, gateway)
        self._arrears = Arrears(number, gateway, lease_ms)
        self._ends: deque[End] = deque()
        self._lates: deque[End] = deque()
        self._reholds: deque[Hold] = deque()
        self._renewals: deque[Renewal] = deque(maxlen=RENEWALS_MAX)
        self._unseen: set[bytes] = set()  # released unasked: if unknown, they never were
        self._ask_at_s = self._tell_at_s = self._resume_at_s = 0.0
        self._prefixes: dict[str, tuple[Word, ...]] = {}

    # What comes in -------------------------------------------------------------------------------

    def end(self, end: End) -> None:
        """Queue an end; it is kept until a stream has it."""
        self.open.pop(end.call_id, None)
        self.unanswered += 1
        self._ends.append(end)

    def release_unseen(self, hold: Hold) -> None:
        """End a hold that nobody saw admitted, if it was. Its ticket is the record."""
        self._unseen.add(hold.call_id)
        self.end(released(hold))

    def rehold(self, hold: Hold) -> None:
        """Hold for a call that is under way, whatever is free."""
        self.open[hold.call_id] = hold
        self._reholds.append(hold)

    def renew(self, renewals: Iterable[Renewal]) -> None:
        """Queue new leases."""
        self._renewals.extend(renewals)

    def renew_owed(self) -> None:
        """Queue new leases of what ended calls owe."""
        self.renew(self._arrears.renewals())

    def look(self) -> None:
        """Something is new: ask at once how the partition is."""
        self.wants_state, self._ask_at_s = True, 0.0

    def owing(self, generation: int) -> Owing | None:
        """To be added to by whoever keeps ends that this generation's stream does not have."""
        if generation != self.generation:
            return None
        return self._arrears.owing([*self._ends, *self._lates])

    def owed(self, owing: Owing) -> None:
        """What they owe is known: hold it, and sign. The ends are handed over one by one."""
        if owing.generation == self.generation:
            self._signature.told(self._arrears.owe(owing))
            for end in (*self._ends, *self._lates):
                self._arrears.keep(end)

    def late(self, generation: int, end: End) -> None:
        """Queue an end that this generation's stream does not have."""
        if generation == self.generation and self._arrears.keep(end):
            self.unanswered += 1
            self._lates.append(end)

    def all_late(self, generation: int) -> None:
        """All of them were handed over."""
        if generation == self.generation:
            self._arrears.all_there()

    def doubt(self) -> None:
        """The connection is new: whatever was known may be old."""
        self.phase, self._resume_at_s = Phase.UNKNOWN, 0.0
        self.look()

    def rest(self, now_s: float) -> None:
        """Send nothing for a moment."""
        self._resume_at_s = now_s + PAUSE_S

    @property
    def is_active(self) -> bool:
        """Whether calls are admitted."""
        return self.phase is Phase.ACTIVE

    @property
    def is_restless(self) -> bool:
        """Whether anything is queued or to be asked."""
        return bool(
            self._holds
            or self._ends
            or self._lates
            or self._extensions
            or self._reholds
            or self._arrears.sums
            or self._renewals
            or self.wants_state
            or self.phase is not Phase.ACTIVE
        )

    def expire(self, now_s: float, *, is_answering: bool) -> None:
        """Answer those who have waited long enough, and forget those who left."""
        for asked in self.overdue(now_s, is_answering=is_answering):
            self._forget(asked)

    def _forget(self, asked: Asked) -> None:
        """Nobody waits for it and it is in no queue: if it may be held, let it go."""
        if asked.is_in_doubt:
            asked.is_in_doubt = False
            self.release_unseen(asked.hold)

    # What goes out -------------------------------------------------------------------------------

    def steps(self, now_s: float) -> list[Step]:
        """The next steps of this lane; their items are out of the queues until answered."""
        made: list[Step] = []
        asks = self.wants_state or self.phase is not Phase.ACTIVE
        if asks and now_s >= self._ask_at_s:
            self.wants_state, self._ask_at_s = False, now_s + ASK_EVERY_S
            made.append(self._step("tg_state", [], []))
        if self.phase is Phase.UNKNOWN or now_s < self._resume_at_s:
            return made
        if self._reholds:
            # A call whose end was answered meanwhile must not be held again: nobody would end that.
            live = self.open.keys() | call_ids(self._ends, self._lates)
            self._reholds = deque(hold for hold in self._reholds if hold.call_id in live)
        self._take(made, "tg_rehold", self._reholds, hold_arguments)
        self._take(made, "tg_owe", self._arrears.sums, self._arrears.owe_arguments)
        if self.phase is Phase.RECOVERING:
            if words := self._signature.words():
                made.append(Step("tg_sign", [], self.generation, packed(words)))
            return made
        self._take(made, "tg_renew", self._renewals, renewal_arguments)
        # Before holds: what ends give back may be what a hold needs.
        self._take(made, "tg_settle", self._ends, end_arguments)
        self._take(made, "tg_late", self._lates, self._arrears.late_arguments)
        if self._arrears.held and (words := self._arrears.acquittal()):
            made.append(Step("tg_acquit", [], self.generation, packed(words)))
        if self._extensions:
            self._take_asked(made, "tg_extend", self._extensions)
        if self._holds:
            self._take_asked(made, "tg_hold", self._holds)
        return made

    def _take(
        self,
        made: list[Step],
        function: str,
        queue: deque[Any],
        arguments: Callable[..., list[bytes]],
    ) -> None:
        if queue:
            items = [queue.popleft() for _ in range(min(len(queue), ITEMS_MAX))]
            made.append(self._step(function, items, arguments(*items)))

    def _take_asked(self, made: list[Step], function: str, queue: deque[Asked]) -> None:
        items: list[Asked] = []
        while queue and len(items) < ITEMS_MAX:
            asked = queue.popleft()
            if asked.future.done():
                self._forget(asked)
            else:
                items.append(asked)
        if items:
            words = hold_arguments(*[asked.hold for asked in items])
            made.append(self._step(function, items, words))

    def _step(self, function: str, items: list[Any], words: list[bytes]) -> Step:
        command = packed((*self._prefix(function), *words))
        return Step(function, items, self.generation, command)

    def _prefix(self, function: str) -> tuple[Word, ...]:
        """The words before the items; the same for a whole generation."""
        if function not in self._prefixes:
            verb = "FCALL_RO" if function == "tg_state" else "FCALL"
            keys = key_names(self.number, self.generation)
            self._prefixes[function] = (verb, function, KEY_COUNT, *keys, self.generation)
        return self._prefixes[function]

    # What came of it -----------------------------------------------------------------------------

    def answered(self, step: Step, answer: Any, now_s: float) -> None:
        """Take the answer to one of this lane's steps."""
        if isinstance(answer, ReplyError):
            self._refused(step, str(answer), now_s)
        elif step.function == "tg_hold":
            self._holds_answered(step, answer)
        elif step.function in OF_ENDS:
            self._ends_answered(step, answer)
        elif step.function == "tg_extend":
            self._extensions_answered(step, answer)
        elif step.function == "tg_state":
            self._state_answered(state_answer(answer), now_s)
        elif step.function == "tg_renew":
            self.lapsed += sum(1 for renewed in answer if renewed == 0)
        elif step.function in {"tg_rehold", "tg_owe"}:
            self._signature.paid(hold.call_id for hold in step.items)
        elif step.function == "tg_sign":
            self._signature.give()
        elif step.function == "tg_acquit":
            self._arrears.acquitted()

    def lost(self, step: Step) -> None:
        """The connection broke before the answer: it may or may not have happened."""
        if step.function == "tg_hold":
            for asked in step.items:
                asked.is_in_doubt = True
        self._put_back(step)

    def _put_back(self, step: Step) -> None:
        """Every step may be repeated: its items go to the front of their queue again."""
        if step.function == "tg_owe" and step.generation != self.generation:
            return  # sums of an older generation are void
        queues: dict[str, deque[Any]] = {
            "tg_hold": self._holds,
            "tg_extend": self._extensions,
            "tg_settle": self._ends,
            "tg_late": self._lates,
            "tg_rehold": self._reholds,
            "tg_owe": self._arrears.sums,
            "tg_renew": self._renewals,
        }
        if step.function in queues:
            queues[step.function].extendleft(reversed(step.items))

    def _holds_answered(self, step: Step, answers: list[list[Any]]) -> None:
        generation = step.generation
        for asked, answer in zip(step.items, answers, strict=True):
            future, hold = asked.future, asked.hold
            if future.done():
                if answer[0] == 1:
                    self.release_unseen(hold)
                continue
            if answer[0] == 1:
                self.open[hold.call_id] = hold
                future.set_result(Held(generation, answer[1], tuple(answer[2:])))
            else:
                asked.answer(answer, generation)

    def _extensions_answered(self, step: Step, answers: list[list[Any]]) -> None:
        for asked, answer in zip(step.items, answers, strict=True):
            if answer[0] == 1 and asked.hold.call_id in self.open:
                self.open[asked.hold.call_id] = asked.hold
            if not asked.future.done():
                asked.answer(answer, step.generation)

    def _ends_answered(self, step: Step, answers: list[bytes]) -> None:
        ends: list[End] = []
        places: list[bytes] = []
        unseen = self._unseen
        for end, answer in zip(step.items, answers, strict=True):
            outcome = answer[:1]
            if outcome in LOGGED:
                self.unanswered -= 1
                if end.call_id in unseen:
                    unseen.discard(end.call_id)
                else:
                    ends.append(end)
                    places.append(answer)
            elif outcome == b"O":
                self._ends.append(end)
            elif outcome == b"U" and end.call_id not in unseen:
                self._lates.append(end)
            else:
                self._unanswerable(end, answer)
        if ends:
            if self._arrears.held:
                self._arrears.told(ends)
            self._tell.settled(Settled(ends, self.number, step.generation, highest_place(places)))

    def _unanswerable(self, end: End, answer: bytes) -> None:
        """An unseen hold that never was, or an end that Redis cannot read: a bug, and loud."""
        self.unanswered -= 1
        self._unseen.discard(end.call_id)
        self._arrears.told([end])
        if answer != b"U":
            self.broken += 1
            self._tell.trouble("end refused", f"{end.call_id.hex()}: {answer!r}")

    def _state_answered(self, state: PartitionState, now_s: float) -> None:
        if not state.sequence_matches:
            self._needs_recovery(now_s)
            return
        if state.generation != self.generation:
            self.generation, self._prefixes = state.generation, {}
            self._reholds = deque(self.open.values())
            self._renewals.clear()
            self._arrears.begin(state.generation, self.open)
            self._signature.begin(state.generation, self.open)
            self._tell.generation(self.number, state.generation)
        if state.is_active() and self.phase is not Phase.ACTIVE:
            self.renew_owed()  # the recovery may have taken most of their leases
        self.phase = Phase.ACTIVE if state.is_active() else Phase.RECOVERING

    def _needs_recovery(self, now_s: float) -> None:
        self.phase = Phase.UNKNOWN
        if now_s >= self._tell_at_s:
            self._tell_at_s = now_s + TELL_EVERY_S
            self._tell.epoch(self.number)

    def _refused(self, step: Step, message: str, now_s: float) -> None:
        """The server answered with an error."""
        if step.function in _NEWER and "not found" in message:  # the library is older than we are
            self._signature.give()
            self._arrears.begin(step.generation, ())
            step = step._replace(items=[])
        refused = refusal(message, self.number)
        if isinstance(refused, Epoch):
            self._put_back(step)
            self.phase, self.wants_state = Phase.UNKNOWN, True
            if refused.state != "R":
                self._needs_recovery(now_s)
            return
        code = message.partition(" ")[0]
        if code in ELSEWHERE:
            self._put_back(step)
            self.phase, self.wants_state = Phase.UNKNOWN, True
            self._tell.moved(self.number)
            return
        self.rest(now_s)
        self.must_break = code in NOT_SERVING
        self._tell.trouble("ledger step refused", f"{step.function}: {message}")
        if step.function not in {"tg_hold", "tg_extend"}:
            self._put_back(step)
            return
        for asked in step.items:
            if step.function == "tg_hold" and code not in NOTHING_RAN:
                self.release_unseen(asked.hold)
            asked.fail(f"Redis refuses: {code}")


_NEWER = frozenset({"tg_sign", "tg_owe", "tg_acquit"})
