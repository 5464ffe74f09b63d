"""Budgets whose counter is lost, old, too small or trusted too much: nobody spends beyond them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from gateway.principal import Period
from ledger.admission import Held, Hold
from ledger.book import Organization
from ledger.drain import Drain
from ledger.flusher import Flusher
from ledger.money import Nanos
from ledger.record import encode
from tests.ledger.deployment import Deployment as Stores
from tests.ledger.deployment import deployed, new_call_id, record_of
from tests.ledger.gateways import Gateway
from tests.scenarios.caller import CHAT, asks, caller
from tests.scenarios.deployment import P1, Deployment
from tests.scenarios.invariants import assert_books
from tests.scenarios.scale import LONG
from tests.vendor import Vendor

pytestmark = pytest.mark.scenario
GATEWAYS = 6
RACING = 200
AMOUNT = 1_000
"""What each of the racing calls holds."""


@asynccontextmanager
async def gateways(
    stores: Stores, redis_url: str, folder: Path, *, count: int = GATEWAYS
) -> AsyncIterator[list[Gateway]]:
    """So many live gateways, and recoveries whenever one of them asks."""
    async with asyncio.TaskGroup() as group, AsyncExitStack() as stack:
        task = group.create_task(stores.recovery.run(), name="recovery")
        notice = stores.recovery.request
        yield [
            await stack.enter_async_context(Gateway.alive(redis_url, folder, on_epoch=notice))
            for _ in range(count)
        ]
        task.cancel()


async def race(alive: list[Gateway], acme: Organization, *, count: int) -> int:
    """So many calls at once over all gateways; how many are admitted."""

    def asked() -> Hold:
        call_id = new_call_id()
        ticket = encode(record_of(acme, call_id, charge=0))
        return Hold(call_id, acme.partition, acme.id, Nanos(AMOUNT), ticket=ticket)

    tries = [alive[i % len(alive)].conveyor.hold(asked(), deadline_s=10.0) for i in range(count)]
    answers = await asyncio.gather(*tries)
    return sum(isinstance(answer, Held) for answer in answers)


async def test_a_lost_counter_is_seeded_once_however_many_gateways_miss_it(
    postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    unflushed, spent, admits = 1_000, 100, 37
    async with deployed(postgres_url, redis_url) as stores:
        acme = await stores.active(credit=spent + unflushed * 3 + admits * AMOUNT)
        await stores.call(acme, spent)
        await stores.flush(acme)
        for _ in range(unflushed):
            await stores.call(acme, 3)
        async with gateways(stores, redis_url, tmp_path) as alive:
            tag = f"tg:{{p{acme.partition:02d}}}:"
            for key in ("free", "base", "spent", "held", "ver", "meta"):
                await stores.redis.delete(tag + key)
            admitted = await race(alive, acme, count=RACING)
            assert admitted == admits
            assert await stores.free(acme) == 0
        await stores.flush(acme)
        assert await stores.differences() == []
    print(
        f"B3: the counter lost with {unflushed} charges unflushed, {RACING} calls race over"
        f" {GATEWAYS} gateways: {admitted} admitted of {admits} affordable, seeded once"
    )


async def test_an_old_snapshot_opens_no_budget_again(
    postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    async with deployed(postgres_url, redis_url) as stores:
        acme = await stores.active(credit=20 * AMOUNT)
        async with gateways(stores, redis_url, tmp_path, count=2) as alive:
            for _ in range(10):
                await spend(stores, acme, alive[0])
            keys = await stores.redis.keys("tg:{p*")
            older = {key: await stores.redis.dump(key) or b"" for key in keys}
            for _ in range(10):
                await spend(stores, acme, alive[1])
            assert await race(alive, acme, count=100) == 0
            await stores.redis.flushall()
            for key, value in older.items():
                await stores.redis.restore(key, 0, value)
            admitted = await race(alive, acme, count=100)
            assert admitted == 0, "of a wallet that is spent"
            assert await stores.free(acme) == 0
            for gateway in alive:
                assert await gateway.conveyor.drain(10.0) == 0
        await stores.flush(acme)
        assert await stores.balance(acme) == 0
        assert await stores.differences() == []
    print(f"B4: data of half the spend put back: {admitted} of 100 admitted, 0 overspent")


async def spend(stores: Stores, acme: Organization, gateway: Gateway) -> None:
    """A call from its hold to its end."""
    call_id = new_call_id()
    ticket = encode(record_of(acme, call_id, charge=0))
    hold = Hold(call_id, acme.partition, acme.id, Nanos(AMOUNT), ticket=ticket)
    assert isinstance(await gateway.conveyor.hold(hold, deadline_s=10.0), Held)
    gateway.dispatched(hold)
    gateway.ended(stores.end(acme, call_id, AMOUNT))
    assert await gateway.conveyor.drain(10.0) == 0


@pytest.mark.timeout(600)
async def test_two_flushers_forced_together_and_killed_anywhere_charge_once(
    postgres_url: str, redis_url: str
) -> None:
    rounds, each = (200 if LONG else 6), 5
    async with deployed(postgres_url, redis_url) as stores:
        acme = await stores.active()
        points = ("read", "begun", "written", "committed", "acknowledged")
        for number in range(rounds * len(points)):
            for _ in range(each):
                await stores.call(acme, 3)
            await cut_flush(stores, acme, points[number % len(points)])
            if number % 10 == 0:
                await asyncio.gather(*(one_batch(stores, acme) for _ in range(2)))
        await stores.flush(acme)
        charged = rounds * len(points) * each
        assert await stores.count("usage_record") == charged
        assert await stores.balance(acme) == 1_000_000 - 3 * charged
        assert await stores.differences() == []
    print(
        f"C2: a flusher cut at each of {len(points)} points x {rounds}, two at once every tenth"
        f" time: {charged} calls, {charged} records, 0 charged twice, 0 never"
    )


async def one_batch(stores: Stores, acme: Organization) -> int:
    """What one of two flushers does."""
    flusher = Flusher(
        stores.url,
        stores.redis,
        partitions=[acme.partition],
        clock=lambda: 0.0,
        on_epoch=lambda _: None,
    )
    return await flusher.flush_once(acme.partition)


async def cut_flush(stores: Stores, acme: Organization, point: str) -> None:
    """A batch whose flusher is gone at this point: its connection is, with all it had not done."""
    partition, after = stores.partition(acme), await stores.watermark(acme)
    async with stores.connected() as connection:
        if point == "read":
            await partition.peek(after.generation, after.stream_id, 100)
            return
        transaction = connection.transaction()
        if point in {"begun", "written"}:
            await transaction.start()
            await connection.execute(
                "SELECT FROM part WHERE number = $1 FOR UPDATE", acme.partition
            )
        if point == "begun":
            connection.terminate()
            return
        step = await Drain(connection).step(partition, after)
        assert step.committed
        if point == "written":
            connection.terminate()  # the outer transaction never commits
        elif point == "acknowledged":
            ids = step.committed[0].call_ids
            await partition.ack(await stores.generation(acme), ids[: len(ids) // 2])


async def test_a_worst_case_knows_the_price_of_a_long_prompt(
    folder: Path, vendor_apart: Vendor
) -> None:
    await vendor_apart.forget()
    doubled = {unit: str(2 * float(usd)) for unit, usd in P1.items()}
    price = {
        "provider": "vendor",
        "model": "*",
        "usd_per_million": P1,
        "tiers": [{"above_input_tokens": 200_000, "usd_per_million": doubled}],
    }
    started = Deployment.started(folder, vendor_port=vendor_apart.port, changes={"prices": [price]})
    async with started as tollgate, caller(tollgate) as line:
        key = await tollgate.new_key(credit_usd="1.50")  # 300,000 tokens at the lower price: $1.13
        prompt = [{"role": "user", "content": "x" * 400_000}]
        long = asks(CHAT, "m", max_tokens=10, messages=prompt)
        refused = await line.post(CHAT, key.secret, long)
        assert (refused.status, refused.error["code"]) == (402, "insufficient_credit")
        assert await vendor_apart.quiet() == []
        await assert_books(tollgate, key, records=0, charge=0)

        # A vendor that bills more than could be foreseen is paid; nobody else may spend after it.
        model = await vendor_apart.script("more", input_tokens=600_000, output_tokens=10)
        before = await line.post(CHAT, key.secret, asks(CHAT, model, max_tokens=10))
        after = await line.post(CHAT, key.secret, asks(CHAT, model, max_tokens=10))
        assert (before.status, after.status) == (200, 402)
        (record,) = await assert_books(tollgate, key, records=1)
        below = await tollgate.wallet(key.organization_id)
        assert below == 1_500_000_000 - record["charge"] < 0
        assert record["charge"] == 2 * (600_000 * 3_000 + 10 * 15_000)
        counted = 'tollgate_settles_over_hold_total{provider="vendor"} 1'
        async with asyncio.timeout(10):
            while counted not in tollgate.metrics():
                await asyncio.sleep(0.1)
    print(
        "B7: 300,000 tokens that $1.50 pays at the base price only: 402, 0 at the vendor; a charge"
        f" above the hold is taken in full ({below:,} nano left), the next is 402, counted once"
    )


async def test_a_rich_account_does_not_open_a_small_key(
    tollgate: Deployment, vendor_apart: Vendor
) -> None:
    held = await vendor_apart.script("b9", input_tokens=1, output_tokens=6_000, hold_at=-1)
    key = await tollgate.new_key(
        credit_usd="10000", budget=Nanos(1_000_000_000), period=Period.ONCE
    )
    body = asks(CHAT, held, max_tokens=6_600)  # $0.099 and a little input: ten of them are $1
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        lines = [await stack.enter_async_context(caller(tollgate)) for _ in range(100)]
        tasks = [group.create_task(line.post(CHAT, key.secret, body)) for line in lines]
        await vendor_apart.held(10)
        async with asyncio.timeout(60):
            while sum(task.done() for task in tasks) < 90:
                await asyncio.sleep(0.01)
        assert (await vendor_apart.state()).held == 10
        await vendor_apart.release()
    statuses = sorted(task.result().status for task in tasks)
    assert statuses[:10] == [200] * 10
    assert set(statuses[10:]) <= {402, 429}
    await assert_books(tollgate, key, records=10)
    print("B9: $10,000 and a key with a cap of $1, 100 calls of $0.10 at once: 10 admitted")
