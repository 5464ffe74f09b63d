"""Any order of calls, faults and recoveries: Redis does what the model says, after every step."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis.asyncio import Redis

from ledger.admission import Cap, End, Held, Hold, Refused, Slot
from ledger.fcall import key_names
from ledger.functions import Epoch, Partition, Renewal, WalletState, install
from ledger.money import Nanos
from ledger.record import EndKind
from tests.ledger import model
from tests.scenarios.scale import LONG

Answer = TypeVar("Answer")

FAR_MS = 2**50
LIFETIME = 10**18  # paid in and spent long ago: more than a Lua number can count
WALLETS = ("one", "two")
UNKNOWN = "nobody's"
CAPS = (Cap("cap-a", Nanos(70), (0, FAR_MS)), Cap("cap-b", Nanos(150), (0, FAR_MS)))
SLOTS = (Slot("key", 2), Slot("project", 3))
CALL_IDS = tuple(bytes([number]) * 16 for number in range(6))

call_ids = st.sampled_from(CALL_IDS)
amounts = st.sampled_from([0, 1, 30, 60, 100, 2**50]).map(Nanos)
charges = st.sampled_from([0, 1, 20, 60, 200]).map(Nanos)
kinds = st.sampled_from(list(EndKind))
bytes_ = st.sampled_from([b"", b"\xff\x00record", b"ticket"])


@st.composite
def holds(draw: st.DrawFn) -> Hold:
    return Hold(
        call_id=draw(call_ids),
        partition=7,
        wallet=draw(st.sampled_from([*WALLETS, *WALLETS, UNKNOWN])),
        amount=draw(amounts),
        caps=draw(st.sampled_from([(), CAPS[:1], CAPS])),
        slots=draw(st.sampled_from([(), SLOTS[:1], SLOTS])),
        lease_ms=draw(st.sampled_from([60_000, 0])),
        ticket=draw(bytes_),
    )


@st.composite
def ends(draw: st.DrawFn) -> End:
    kind = draw(kinds)
    is_charged = kind in {EndKind.SETTLED, EndKind.LOST}
    return End(
        call_id=draw(call_ids),
        partition=7,
        wallet=draw(st.sampled_from(WALLETS)),
        kind=kind,
        charge=draw(charges) if is_charged else Nanos(0),
        record=draw(bytes_),
    )


class Machine(RuleBasedStateMachine):
    """One partition of the real server beside its model."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.client = Redis.from_url(url)
        self.partition = Partition(self.client, 7)
        self.model = model.Model()

    def both(self, real: Awaitable[Answer], modelled: Callable[[], Answer]) -> None:
        """The same answer, or the same refusal."""
        try:
            expected = modelled()
        except model.Fenced:
            assert self.runs(real) is None, "the fence let it in"
        else:
            assert self.runs(real) == expected

    def runs(self, real: Awaitable[Answer]) -> Answer | None:
        """The real answer; None if the fence refuses it."""

        async def run() -> Answer | None:
            try:
                return await real
            except Epoch:
                return None

        return self.runner.run(run())

    @initialize()
    def begin(self) -> None:
        async def empty() -> None:
            await self.client.flushall()
            await self.client.function_flush("SYNC")
            await install(self.client)

        self.runner.run(empty())
        self.recover(3, 100, 100)

    @rule(hold=holds())
    def hold(self, hold: Hold) -> None:
        async def real() -> object:
            try:
                return _timeless(await self.partition.hold(self.model.generation, hold))
            except ValueError:
                return None

        self.both(real(), partial(self.model.hold, hold))

    @rule(hold=holds())
    def extend(self, hold: Hold) -> None:
        async def real() -> object:
            return _timeless(await self.partition.extend(self.model.generation, hold))

        self.both(real(), partial(self.model.extend, hold))

    @rule(hold=holds())
    def rehold(self, hold: Hold) -> None:
        self.both(
            self.partition.rehold(self.model.generation, hold), partial(self.model.rehold, hold)
        )

    @rule(end=ends())
    def settle(self, end: End) -> None:
        async def real() -> object:
            ended = await self.partition.settle(self.model.generation, end)
            return ended._replace(stream_id="")

        self.both(real(), partial(self.model.settle, end))

    @rule(end=ends())
    def late(self, end: End) -> None:
        async def real() -> object:
            ended = await self.partition.late(self.model.generation, end)
            return ended._replace(stream_id="")

        self.both(real(), partial(self.model.late, end))

    @rule(hold=holds())
    def owe(self, hold: Hold) -> None:
        owed = hold._replace(call_id=self.owed(), slots=(), ticket=b"")
        self.both(self.partition.owe(self.model.generation, owed), partial(self.model.owe, owed))

    @rule(call_id=call_ids, charge=charges, wallet=st.sampled_from(WALLETS))
    def repay(self, call_id: bytes, charge: Nanos, wallet: str) -> None:
        """Mostly by an end of the wallet and the caps that owe."""
        there = self.model.owed.get(self.owed())
        caps = there.hold.caps if there else CAPS
        wallet = there.hold.wallet if there and charge != 1 else wallet
        end = End(call_id, 7, wallet, EndKind.SETTLED, charge, b"repaid", caps)

        async def real() -> object:
            ended = await self.partition.late(self.model.generation, end, owed=self.owed())
            return ended._replace(stream_id="")

        self.both(real(), partial(self.model.repay, end, self.owed()))

    @rule()
    def acquit(self) -> None:
        self.both(
            self.partition.acquit(self.model.generation, self.owed()),
            partial(self.model.acquit, self.owed()),
        )

    def owed(self) -> bytes:
        """The id of the one sum in this generation."""
        return f"{self.model.generation:16}".encode()

    @rule(call_id=call_ids, progress=st.sampled_from([-1, 0, 40]), record=bytes_)
    def renew(self, call_id: bytes, progress: int, record: bytes) -> None:
        renewal = Renewal(call_id, 60_000, progress, record)
        self.both(
            self.partition.renew(self.model.generation, [renewal]),
            lambda: [self.model.renew(call_id, progress=progress, record=record)],
        )

    @rule()
    def sweep(self) -> None:
        self.both(self.partition.sweep(self.model.generation, 100), self.model.sweep)

    @rule(ids=st.lists(call_ids, min_size=1, max_size=3, unique=True))
    def ack(self, ids: list[bytes]) -> None:
        self.both(self.partition.ack(self.model.generation, ids), partial(self.model.ack, ids))

    @rule(
        wallet=st.sampled_from([*WALLETS, model.window(CAPS[0])]),
        base=st.sampled_from([0, -50, 120, 2**51]),
        version=st.integers(1, 9),
    )
    def set_base(self, wallet: str, base: int, version: int) -> None:
        there = self.model.wallets.get(wallet)
        if there and there.spent >= LIFETIME:
            base += LIFETIME
        self.both(
            self.partition.set_base(
                self.model.generation, wallet, base=base, version=version, cause="grant", spent=5
            ),
            partial(self.model.set_base, wallet, base=base, version=version, spent=5),
        )

    @rule(step=st.sampled_from([0, 1, 3]))
    def freeze(self, step: int) -> None:
        generation = self.model.generation + step

        async def real() -> bool:
            await self.partition.freeze(generation)
            return True

        def modelled() -> bool:
            self.model.freeze(generation)
            return True

        self.both(real(), modelled)

    @rule(wallet=st.sampled_from(WALLETS), base=st.integers(-100, 300))
    def load(self, wallet: str, base: int) -> None:
        async def real() -> bool:
            await self.partition.load(
                self.model.generation, [WalletState(wallet, LIFETIME + base, LIFETIME, 2)]
            )
            return True

        def modelled() -> bool:
            self.model.load(wallet, model.Wallet(LIFETIME + base, LIFETIME, 2))
            return True

        self.both(real(), modelled)

    @rule()
    def activate(self) -> None:
        self.both(self.partition.activate(self.model.generation, 2), self.model.activate)

    @rule(step=st.integers(1, 3), one=st.integers(0, 200), two=st.integers(0, 200))
    def recover(self, step: int, one: int, two: int) -> None:
        self.freeze(step)
        generation = self.model.generation
        for wallet, base in zip(WALLETS, (one, two), strict=True):
            self.model.load(wallet, model.Wallet(base, 0, 1))
            self.runs(self.partition.load(generation, [WalletState(wallet, base, 0, 1)]))
        self.activate()

    @precondition(lambda self: self.model.state == "A")
    @rule()
    def flush_all(self) -> None:
        async def flush() -> None:
            await self.client.flushall()

        self.runner.run(flush())
        self.model.lose_everything()

    @precondition(lambda self: self.model.state != "")
    @rule(field=st.sampled_from(["seq", "gen"]))
    def restore_an_older_state(self, field: str) -> None:
        """Every call is refused while meta is not what this server wrote last."""
        meta = key_names(7, self.model.generation)[0]

        async def tamper() -> None:
            before = await self.client.hget(meta, field)
            await self.client.hincrby(meta, field, -1)
            hold = Hold(b"\xff" * 16, 7, "one", Nanos(1))
            try:
                await self.partition.hold(self.model.generation, hold)
            except Epoch:
                assert not (await self.partition.state()).sequence_matches
            else:
                raise AssertionError("the fence let it in")
            await self.client.hset(meta, field, before)

        self.runner.run(tamper())

    @invariant()
    def redis_is_as_the_model(self) -> None:
        if self.model.state:
            self.runner.run(self._compare())

    async def _compare(self) -> None:
        generation = self.model.generation
        image = await self.partition.scan(generation, count=100)
        for there in image.wallets:
            assert there.free + there.held + there.spent == there.base, there
        real = {w.wallet: (w.base, w.spent, w.held, w.free) for w in image.wallets}
        modelled = {
            name: (w.base, w.spent, self.model.held(name), self.model.free(name))
            for name, w in self.model.wallets.items()
        }
        assert real == modelled
        holds = await self.partition.open_holds(generation)
        opened = {there.call_id: (there.wallet, there.amount) for there in holds}
        every = self.model.open | self.model.owed
        assert opened == {c: (o.hold.wallet, o.amount) for c, o in every.items()}
        places = await self.client.hgetall(key_names(7, generation)[9])
        expected = {s.id.encode(): str(self.model.places(s.id)).encode() for s in SLOTS}
        assert places == {name: n for name, n in expected.items() if n != b"0"}
        await self._compare_log()

    async def _compare_log(self) -> None:
        entries = await self.partition.peek(self.model.generation, "0", 10_000)
        ended = [entry.fields for entry in entries if entry.fields[b"k"] != b"base"]
        assert len(entries) - len(ended) == self.model.bases
        # A sweep ends what is overdue by deadline, which the model does not keep.
        assert sorted(map(_logged, ended)) == sorted(
            (e.kind, e.moved, e.call_id, e.wallet, e.charge, e.record) for e in self.model.log
        )

    def teardown(self) -> None:
        self.runner.run(self.client.aclose())
        self.runner.close()


def _timeless(answer: Held | Refused) -> Held | Refused:
    """Without the time until the next window, which the model does not keep."""
    return answer._replace(retry_after_ms=0) if isinstance(answer, Refused) else answer


def _logged(fields: dict[bytes, bytes]) -> tuple[str, bool, bytes, str, int, bytes]:
    return (
        fields[b"k"].decode(),
        fields[b"m"] == b"1",
        fields[b"i"],
        fields[b"w"].decode(),
        int(fields[b"c"]),
        fields[b"r"],
    )


@pytest.mark.timeout(900 if LONG else 180)
def test_the_functions_do_what_the_model_says_in_any_order(redis_url: str) -> None:
    run_state_machine_as_test(  # the stub asks for a class, the docs for a factory
        cast(Any, lambda: Machine(redis_url)),
        settings=settings(
            max_examples=500 if LONG else 60,
            stateful_step_count=50 if LONG else 40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
