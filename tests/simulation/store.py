"""Redis and its wire, as the conveyor meets them: one partition, one server, every kind of fault.

What the functions do is `tests.ledger.model`, which is compared with the real ones on the real
server (`tests/ledger/test_functions_model.py`); here it is given their words, a fence and a net.
"""

import asyncio
import copy
import random
from collections.abc import Callable
from typing import Any

import hiredis
import msgspec

from ledger.admission import End, Held, Hold, Refused
from ledger.money import Nanos
from ledger.record import EndKind
from ledger.wire import WireError
from tests.ledger.model import Entry, Fenced, Model

_unpacked = msgspec.msgpack.decode
_FIRST_ARGUMENT = 15  # verb, function, count, eleven keys, generation
_ITEM = 3  # arguments each


class Store:
    """The server: its data, its memory of who wrote it last, and the streams of old generations."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.model = Model()
        self.is_fenced = True  # the data is not what this process wrote last
        self.streams: dict[int, list[Entry]] = {}
        self.places: dict[bytes, str] = {}  # call id -> where this generation's stream has its end
        self.deadlines: dict[bytes, float] = {}
        self.signed: set[bytes] = set()
        self.on_admitted: Callable[[Hold], None] = lambda _: None

    def freeze(self, generation: int) -> None:
        """A new generation: its stream is empty, the older ones stay."""
        self.model.freeze(generation)
        self.streams[generation] = self.model.log
        self.model.log = self.streams[generation] = []
        self.places, self.signed, self.is_fenced = {}, set(), False

    def flush(self) -> None:
        """FLUSHALL."""
        self.model.lose_everything()
        self.model.log = []
        self.streams, self.places, self.deadlines = {}, {}, {}
        self.is_fenced = True

    def copied(self) -> "Store":
        """What a replica has, that is promoted later."""
        other = Store(self._clock)
        other.model, other.streams, other.places, other.deadlines = copy.deepcopy(
            (self.model, self.streams, self.places, self.deadlines)
        )
        return other

    def become(self, other: "Store") -> None:
        """Fail over to a replica."""
        self.model, self.streams = other.model, other.streams
        self.places, self.deadlines = other.places, other.deadlines
        self.signed, self.is_fenced = set(), True

    def sweep(self) -> None:
        """End what is overdue."""
        for call_id, there in (*self.model.open.items(), *self.model.owed.items()):
            there.is_overdue = self.deadlines.get(call_id, 0.0) < self._clock()
        before = len(self.model.log)
        self.model.sweep()
        self._placed(before)

    def answer(self, words: list[bytes]) -> Any:
        """What a command answers."""
        if words[0] == b"PING":
            return b"PONG"
        function = words[1].decode()
        model = self.model
        if function == "tg_state":
            matches = 0 if self.is_fenced else 1
            now_ms = int(self._clock() * 1000)
            told = str(model.generation).encode() if model.state else b"0"
            return [told, b"0", model.state.encode(), b"0", b"", matches, now_ms]
        first = _FIRST_ARGUMENT + (function == "tg_sign")
        generation = int(words[first - 1])
        where = f"{model.generation if model.state else 0} {model.state or '-'}"
        if self.is_fenced or generation != model.generation:
            return hiredis.ReplyError(f"EPOCH {where}")
        arguments = words[first:]
        if function == "tg_sign":
            self.signed.add(arguments[0])
            return 1
        return self._obey(function, arguments, where)

    def _obey(self, function: str, arguments: list[bytes], where: str) -> Any:
        before = len(self.model.log)
        try:
            if function == "tg_acquit":
                return sum(self.model.acquit(owed) for owed in arguments)
            return [
                self._item(function, arguments[at : at + _ITEM])
                for at in range(0, len(arguments), _ITEM)
            ]
        except Fenced:
            return hiredis.ReplyError(f"STATE {where}")
        finally:
            self._placed(before)

    def _placed(self, before: int) -> None:
        for number in range(before, len(self.model.log)):
            self.places[self.model.log[number].call_id] = f"{number + 1}-0"

    def _item(self, function: str, words: list[bytes]) -> Any:
        call_id, packed, record = words
        if function == "tg_renew":
            lease_ms, charge = _unpacked(packed)
            is_owed = call_id in self.model.owed
            done = is_owed or self.model.renew(call_id, progress=charge, record=record)
            self._lease(call_id, lease_ms)
            return int(done)
        if function in ("tg_settle", "tg_late"):
            return self._end(function, call_id, _unpacked(packed), record)
        if function == "tg_owe":
            partition, wallet, amount, *_, lease_ms, _ = _unpacked(packed)
            owed = Hold(call_id, partition, wallet, Nanos(amount), lease_ms=lease_ms)
            done = self.model.owe(owed)
            self._lease(call_id, lease_ms)
            return int(done)
        partition, wallet, amount, *_, lease_ms = _unpacked(packed)
        hold = Hold(call_id, partition, wallet, Nanos(amount), lease_ms=lease_ms, ticket=record)
        is_new = function == "tg_hold" and call_id not in self.model.open
        answer: Held | Refused | bool | None = {
            "tg_hold": self.model.hold,
            "tg_extend": self.model.extend,
            "tg_rehold": self.model.rehold,
        }[function](hold)
        if answer:
            self._lease(call_id, lease_ms)
        if isinstance(answer, Held):
            if is_new:
                self.on_admitted(hold)
            return [1, answer.free]
        if isinstance(answer, Refused):
            code, scope = answer.code.encode(), answer.scope.encode()
            return [0, code, scope, answer.free, answer.held, 0]
        return [-1, b"ended"] if answer is None else int(answer)

    def _end(self, function: str, call_id: bytes, told: list[Any], record: bytes) -> bytes:
        partition, wallet, kind, charge, _, _, *keeper = told
        end = End(call_id, partition, wallet, EndKind(kind), Nanos(charge), record)
        before = len(self.model.log)
        if function == "tg_settle":
            outcome = self.model.settle(end)
        elif any(keeper):
            outcome = self.model.repay(end, keeper[0].encode())
        else:
            outcome = self.model.late(end)
        self._placed(before)
        letter = outcome.outcome[0].upper().encode()
        return letter + (self.places[call_id].encode() if letter in b"SLD" else b"")

    def _lease(self, call_id: bytes, lease_ms: int) -> None:
        there = self.model.open.get(call_id) or self.model.owed.get(call_id)
        if there is not None:
            self.deadlines[call_id] = self._clock() + lease_ms / 1000
            there.is_overdue = False


class Net:
    """How badly the network does; all shares are of batches."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.trouble = 0.0
        self.faults = 0

    def strikes(self) -> bool:
        """Whether something goes wrong now."""
        hit = self.chance.random() < self.trouble
        self.faults += hit
        return hit

    def delay_s(self) -> float:
        """Of one way."""
        return self.chance.choice((0.0001, 0.001, 0.01, 0.1)) * self.chance.random()


class SimulatedWire:
    """A connection to the store, as `ledger.wire.Wire` is one to a server."""

    def __init__(self, store: Store, net: Net) -> None:
        self._store, self._net = store, net
        self._loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self._request: Callable[[], None] | None = None  # under way to the server
        self._arrival: asyncio.TimerHandle | None = None

    def send(self, commands: bytes, count: int, done: Callable[[list[Any]], None]) -> None:
        """They get there, and are answered, unless something goes wrong."""
        if self.closed.done():
            return
        net = self._net
        fault = net.chance.choice(("request", "reply", "silence", "slow")) if net.strikes() else ""
        if fault == "request":
            self._loop.call_later(net.delay_s(), self.close)
            return
        late_s = net.chance.uniform(0.3, 3.0) if fault == "slow" else 0.0
        self._request = lambda: self._arrived(commands, count, fault, done)
        self._arrival = self._loop.call_later(net.delay_s() + late_s, self._request)

    def _arrived(
        self, commands: bytes, count: int, fault: str, done: Callable[[list[Any]], None]
    ) -> None:
        self._request = None
        reader = hiredis.Reader()
        reader.feed(commands)
        answers = [self._store.answer(reader.gets()) for _ in range(count)]
        if fault == "reply":
            self._loop.call_later(self._net.delay_s(), self.close)
        elif fault != "silence":
            self._loop.call_later(self._net.delay_s(), self._answered, answers, done)

    def _answered(self, answers: list[Any], done: Callable[[list[Any]], None]) -> None:
        if not self.closed.done():
            done(answers)

    def close(self) -> None:
        """The end of it. What was sent is in the server's hands, or lost: never obeyed later."""
        if self.closed.done():
            return
        self.closed.set_result(None)
        if self._request is not None and self._arrival is not None:
            self._arrival.cancel()
            if self._net.chance.random() < 0.5:
                self._request()


class SimulatedAddress:
    """Where the store is, as `ledger.wire.Address` says it of a server."""

    def __init__(self, store: Store, net: Net) -> None:
        self._store, self._net = store, net

    async def open(self, *, timeout_s: float) -> SimulatedWire:
        """A connection; `WireError` where the network says so."""
        del timeout_s
        await asyncio.sleep(self._net.delay_s())
        if self._net.strikes():
            raise WireError("the network is away")
        return SimulatedWire(self._store, self._net)
