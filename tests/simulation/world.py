"""Gateways, a server, its books and a caretaker, in a time of their own, under faults.

Real: conveyor, lanes, journal, journals and adoption of a gateway; parsing and judging of entries.
Stood in for: the server (by the model that is compared with it), the network, the tables, and the
caretaker, which flushes, sweeps and recovers by the steps of the design.
"""

import asyncio
import os
import random
from contextlib import suppress
from pathlib import Path
from typing import cast

from redis.asyncio import Redis

from gateway.journals import Journals
from ledger.admission import End, Hold, LedgerUnavailable, Refused
from ledger.appender import System
from ledger.belt import OpenWire
from ledger.commit import Position
from ledger.conveyor import Conveyor
from ledger.drain import proof_lines
from ledger.frames import OpenCall
from ledger.journal import Journal
from ledger.money import Nanos
from ledger.pricing import PriceSheet
from ledger.record import EndKind, Outcome, Record, encode
from tests.ledger.model import Fenced, Wallet
from tests.simulation.books import Books
from tests.simulation.claims import Claim, Claims
from tests.simulation.store import Net, SimulatedAddress, Store

WALLET = "0190a5b4-0000-7000-8000-000000000001"
GRANTED = (600, 2_000)  # of which the first is too little for most
ROLL_CALL_S = 1.5
LEASE_MS = 12_000
CALM = 0.05  # of batches in trouble: no lease can be missed
HEALED_S_MAX = 100.0  # what a process that was killed owed is held for 60 s


class Overtaken(Exception):
    """The data changed under the caretaker's hands: it begins again."""


class _NoPrices:
    """Nothing has a price: a lost call costs nothing."""

    def price(self, *_: object) -> None:
        return None


class _NoClient:
    """Nobody to ask how far Postgres is: the news of it decides."""

    async def execute_command(self, *_: object) -> None:
        raise ConnectionError


class Gateway:
    """One process, from its start to its death."""

    def __init__(self, world: "World", name: str) -> None:
        self._world, self.name = world, name
        clock = asyncio.get_running_loop().time
        system = System(sync=lambda _: None, clock=clock)
        self.journal = Journal.create(world.folder, worker=name, system=system)
        sheet = cast(PriceSheet, _NoPrices())
        self.journals = Journals(
            self.journal,
            world.folder,
            prices=lambda: sheet,
            unanswered_max=world.chance.choice((1, 3, 20_000)),
        )
        self.conveyor = Conveyor(
            "unix:///nowhere",
            partitions=1,
            renew_s=1.0,
            gateway=name,
            on_epoch=lambda _: world.notice.set(),
            on_settled=self.journals.on_settled,
            on_generation=self.journals.on_generation,
        )
        self._address = SimulatedAddress(world.store, world.net)
        (self._belt,) = set(self.conveyor._belts)
        self._belt._open_wire = cast(OpenWire, self._address.open)
        self.journals.attach(self.conveyor)
        self.calls: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Everything that goes on in it; cancelled: it was killed."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.conveyor.run())
                group.create_task(self.journals.adopt_orphans())
                group.create_task(self.journals.retell(cast(Redis, _NoClient())))
                group.create_task(self.journals.hand_over())
                group.create_task(self.journal.sync_loop())
        finally:
            self._die()

    def kill(self) -> None:
        """Nothing more leaves it from now on: no word to the server, none to its journal."""
        wire = self._belt._wire
        if wire is not None:
            wire.close()
        for call in self.calls:
            call.cancel()

    def _die(self) -> None:
        """What the system does for a process that is gone: its locks and handles are free."""
        self.journals.release()
        self.journal._folder.release()
        os.close(self.journal._appender._handle)

    async def call(self, call_id: bytes) -> None:
        """One call, by the order of steps that the proxy keeps."""
        world, chance = self._world, self._world.chance
        amount = chance.randrange(1, 200)
        ticket = encode(_record(call_id))
        hold = Hold(call_id, 0, WALLET, Nanos(amount), lease_ms=LEASE_MS, ticket=ticket)
        world.claims.begin(call_id, Claim(self.name, amount, self._held_now))
        try:
            async with asyncio.timeout(chance.choice((None, None, None, 0.01, 0.1))):
                answer = await self.conveyor.hold(hold)
        except (LedgerUnavailable, TimeoutError):
            return
        if isinstance(answer, Refused):
            world.refused += 1
            return
        self.journal.dispatched(OpenCall(call_id, 0, WALLET, amount, (), ticket))
        world.dispatched.add(call_id)
        await asyncio.sleep(chance.choice((0.01, 0.3, 3.0)) * chance.random())
        if chance.random() < 0.1:
            more = self.conveyor.extend(hold._replace(amount=Nanos(amount * 2)))
            with suppress(LedgerUnavailable):
                await more
        kind = chance.choice((EndKind.SETTLED, EndKind.SETTLED, EndKind.RELEASED))
        charge = 0 if kind is EndKind.RELEASED else chance.randrange(amount * 5 // 4)
        record = encode(_record(call_id, kind=kind, charge=charge))
        end = End(call_id, 0, WALLET, kind, Nanos(charge), record)
        self.journal.finished(end)
        self.conveyor.settle(end)
        world.answered[call_id] = (kind, charge)
        world.claims.end(call_id, charge)

    def _held_now(self, call_id: bytes) -> int | None:
        there = self.conveyor._lanes[0].open.get(call_id)
        return None if there is None else there.amount


class World:
    """One seed."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.chance = random.Random(seed)  # noqa: S311 - a simulation that can be repeated
        self.folder = folder
        self._loop = asyncio.get_running_loop()
        self.net = Net(self.chance)
        self.store, self.books = Store(self._loop.time), Books(WALLET, self.chance.choice(GRANTED))
        self.notice = asyncio.Event()
        self.live: dict[str, tuple[Gateway, asyncio.Task[None]]] = {}
        self.dispatched: set[bytes] = set()
        self.answered: dict[bytes, tuple[EndKind, int]] = {}
        self.refused = self.kills = self.losses = self.recoveries = 0
        self._made, self.net_trouble = 0, 0.0
        self._replica = self.store.copied()
        self.claims = Claims(self.store, self.books)

    async def run(self) -> None:
        """Faults for a while; then none, and everything must come right."""
        async with asyncio.TaskGroup() as group:
            caretaker = group.create_task(self._caretaker())
            for _ in range(self.chance.randrange(1, 4)):
                self._start(group)
            await asyncio.sleep(1.0)
            self.net.trouble = self.net_trouble = self.chance.choice((0.0, CALM, 0.3))
            for _ in range(self.chance.randrange(10, 60)):
                self._call(group)
                await asyncio.sleep(self.chance.choice((0.0, 0.02, 0.2)) * self.chance.random())
                if self.chance.random() < 0.12:
                    caretaker = await self._strike(group, caretaker)
            self.net.trouble = 0.0
            if not self.live:
                self._start(group)
            await self._healed()
            caretaker.cancel()
            for gateway, task in self.live.values():
                gateway.kill()
                task.cancel()

    # What happens ------------------------------------------------------------------------------

    def _start(self, group: asyncio.TaskGroup) -> None:
        self._made += 1
        gateway = Gateway(self, f"w{self._made:03d}")
        self.live[gateway.name] = gateway, group.create_task(gateway.run())

    def _call(self, group: asyncio.TaskGroup) -> None:
        if not self.live:
            return
        gateway, _ = self.chance.choice(list(self.live.values()))
        made = bytearray(self.chance.randbytes(16))
        made[:6] = (1_790_000_000_000 + len(self.dispatched)).to_bytes(6, "big")
        made[6], made[8] = 0x70 | made[6] & 0x0F, 0x80 | made[8] & 0x3F
        task = group.create_task(gateway.call(bytes(made)))
        gateway.calls.add(task)
        task.add_done_callback(gateway.calls.discard)

    async def _strike(
        self, group: asyncio.TaskGroup, caretaker: asyncio.Task[None]
    ) -> asyncio.Task[None]:
        """One fault."""
        match self.chance.choice(("kill", "kill", "start", "caretaker", "flush", "stale", "copy")):
            case "kill" if self.live:
                gateway, task = self.live.pop(self.chance.choice(list(self.live)))
                gateway.kill()
                task.cancel()
                self.claims.die(gateway.name)
                self.kills += 1
            case "start" if len(self.live) < 3:
                self._start(group)
            case "caretaker":
                caretaker.cancel()
                return group.create_task(self._caretaker())
            case "flush":
                self.store.flush()
                self.losses += 1
            case "stale":
                self.store.become(self._replica.copied())
                self.losses += 1
            case "copy":
                self._replica = self.store.copied()
            case _:  # nobody to kill, or enough of them
                pass
        return caretaker

    async def _healed(self) -> None:
        """Wait until everything has come right; `AssertionError` says what has not."""
        until_s = self._loop.time() + HEALED_S_MAX
        while (wrong := self._wrong()) and self._loop.time() < until_s:
            await asyncio.sleep(0.25)
        assert not wrong, wrong

    def _wrong(self) -> str:
        return self._wrong_records() or self._wrong_money() or self._wrong_gateways()

    def _wrong_records(self) -> str:
        known = self.books.known
        for call_id, (kind, charge) in self.answered.items():
            there = known.get(call_id)
            if there is None or (there.kind, there.charge) != (kind, charge):
                return f"{call_id.hex()} ended as {kind}, {charge}; the record is {there}"
        for call_id in self.dispatched - self.answered.keys():
            there = known.get(call_id)
            if there is None or there.kind != "lost":
                return f"{call_id.hex()} was lost; the record is {there}"
        never = [there for call_id, there in known.items() if call_id not in self.dispatched]
        if any(there.charge for there in never):
            return f"never sent, and costs something: {never}"
        # Only what a process took with it, or data that were lost, may be left to the sweeper.
        is_calm = not (self.kills or self.losses) and self.net_trouble <= CALM
        if is_calm and any(there.kind == "expired" for there in known.values()):
            return "a hold was forgotten until it was swept"
        return ""

    def _wrong_money(self) -> str:
        books, model = self.books, self.store.model
        if self.claims.wrong:
            return self.claims.wrong
        if self.store.is_fenced or model.state != "A" or model.open:
            return f"Redis is {model.state!r}, {len(model.open)} holds are open"
        if model.free(WALLET) != books.base - books.spent:
            return f"{model.free(WALLET)} are free, posted are {books.base - books.spent}"
        return ""

    def _wrong_gateways(self) -> str:
        for name, (gateway, _) in self.live.items():
            left = gateway.conveyor.unanswered_count, gateway.journals.unproven_count
            if left != (0, 0) or gateway.conveyor.open_count:
                return f"{name} has {left} ends unanswered, unproven"
        return ""

    # The caretaker -----------------------------------------------------------------------------

    async def _caretaker(self) -> None:
        """Flush and sweep for ever; recover where that is needed."""
        swept_s = 0.0
        while True:
            await self._pause()
            try:
                if not self._is_healthy(self.books.generation, "A"):
                    await self._recover()
                await self._flush()
                if self._loop.time() - swept_s > 1:
                    swept_s = self._loop.time()
                    self.store.sweep()
            except (Overtaken, Fenced):
                pass
            with suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await self.notice.wait()
            self.notice.clear()

    async def _flush(self) -> None:
        generation = self.books.generation
        await self._drain(generation)
        self._must_be(generation, "A")
        there = self.store.model.wallets.get(WALLET)
        if there is None or there.version < self.books.version:
            self.store.model.set_base(
                WALLET, base=self.books.base, version=self.books.version, spent=self.books.spent
            )

    async def _drain(self, generation: int) -> None:
        """Bring what follows the position into the books; then say so."""
        stream = self.store.streams.get(generation, [])
        at = self.books.position[1] if self.books.position[0] == generation else 0
        entries = stream[at:]
        await self._pause()
        if entries:
            self.books.commit(generation, entries)
            await self._pause()
            if self._is_healthy(self.books.generation, "AR"):
                self.store.model.ack([entry.call_id for entry in entries])
        where = Position(self.books.position[0], f"{self.books.position[1]}-0")
        for gateway, _ in self.live.values():
            if where.generation and not self.net.strikes():
                gateway.journals._prove(proof_lines({0: where}).encode())

    async def _recover(self) -> None:
        """By the steps of the design; whoever overtakes it makes it begin again."""
        books, store = self.books, self.store
        generation = books.generation = max(books.generation, store.model.generation) + 1
        await self._pause()
        for older in sorted(store.streams):
            if older >= books.position[0]:
                await self._drain(older)
        store.freeze(generation)
        for older in sorted(store.streams):
            if books.position[0] <= older < generation:
                await self._drain(older)
        for gateway, _ in self.live.values():
            gateway.conveyor.look(0)
        until_s = self._loop.time() + ROLL_CALL_S
        names = {name.encode() for name in self.live}
        while not names <= store.signed and self._loop.time() < until_s:
            await asyncio.sleep(0.01)
        self._must_be(generation, "R")
        books.position = (generation, 0)
        await self._drain(generation)
        self._must_be(generation, "R")
        store.model.load(WALLET, Wallet(books.base, books.spent, books.version))
        await self._pause()
        self._must_be(generation, "R")
        store.model.activate()
        self.recoveries += 1
        for name, (gateway, _) in self.live.items():
            open_there = gateway.conveyor._lanes[0].open.keys()
            if name.encode() in store.signed:
                held = store.model.open.keys() | store.model.ended.keys()
                assert open_there <= held, "a gateway signed, and its calls are not held"

    async def _pause(self) -> None:
        """Anything may happen here, and a caretaker that is killed dies here."""
        await asyncio.sleep(self.chance.choice((0.0, 0.001, 0.05)))

    def _is_healthy(self, generation: int, states: str) -> bool:
        model = self.store.model
        if self.store.is_fenced or model.generation != generation:
            return False
        return bool(model.state) and model.state in states

    def _must_be(self, generation: int, states: str) -> None:
        if not self._is_healthy(generation, states):
            raise Overtaken


def _record(call_id: bytes, *, kind: EndKind = EndKind.LOST, charge: int = 0) -> Record:
    return Record(
        call_id=call_id,
        organization_id=WALLET,
        project_id=WALLET,
        key_id=WALLET,
        member_id="",
        admitted_us=int.from_bytes(call_id[:6], "big") * 1000,
        operation="chat/completions",
        provider="vendor",
        model_requested="m",
        model_target="m",
        price_version="",
        held=200,
        kind=kind,
        outcome=Outcome.SUCCESS,
        charge=charge,
        list_price=charge,
        usage={"input": 10},
        usage_source="reported",
    )
