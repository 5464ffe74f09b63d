"""Calls that go on while Redis is away, up to their organization's grace, and no others."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from gateway.proxy.grace import FLAG
from ledger.money import Nanos
from ledger.record import Record
from tests.gateway.principals import PRINCIPAL
from tests.gateway.proxy.gatehouse import WALLET, Gatehouse, knows
from tests.gateway.tenancy import until
from tests.ledger.own_valkey import OwnValkey
from tests.vendor import Vendor

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 600}
EXACT = 100 * 3000 + 500 * 15000
GRACE = Nanos(60_000_000)  # of which each of two workers has a half: three of these calls
CREDIT = 10_000_000_000
CALLS_MAX = 3


@pytest.fixture
async def books(postgres_url: str) -> AsyncIterator[asyncpg.Pool]:
    """The books of one organization with $10."""
    async with asyncpg.create_pool(postgres_url, min_size=1, max_size=2) as pool:
        await pool.execute(
            "INSERT INTO organization (id, name, partition) VALUES ($1, 'Acme', 0)", WALLET
        )
        await pool.execute(
            "INSERT INTO wallet (id, organization_id, partition, base) VALUES ($1, $1, 0, $2)",
            WALLET,
            CREDIT,
        )
        yield pool


Opened = Callable[..., Any]


@pytest.fixture
def opened(valkey: OwnValkey, books: asyncpg.Pool, vendor: Vendor, tmp_path: Path) -> Opened:
    """A gateway on them whose one key has a grace."""

    @asynccontextmanager
    async def gate(grace: int = GRACE) -> AsyncIterator[Gatehouse]:
        principal = PRINCIPAL._replace(grace=Nanos(grace))
        async with Gatehouse.opened(
            valkey.url, vendor, tmp_path, find=knows(principal), credit=CREDIT, postgres=books
        ) as gatehouse:
            await until(lambda: _true(not gatehouse.parts.conveyor.inactive))
            yield gatehouse

    return gate


async def _true(fact: bool) -> bool:  # noqa: FBT001 - it is the one thing it is about
    return fact


async def charged(gate: Gatehouse) -> Record:
    """The one record with a charge; a hold that Redis made too late has one, too: released."""
    (record,) = [record for record in await gate.records() if record.charge]
    return record


async def statuses(*calls: Awaitable[tuple[int, dict[str, str], bytes]]) -> list[int]:
    """How calls made at once were answered, sorted."""
    return sorted([status for status, _, _ in await asyncio.gather(*calls)])


async def test_a_call_goes_on_and_is_settled_to_the_nano_when_redis_is_back(
    opened: Opened, valkey: OwnValkey, vendor: Vendor
) -> None:
    model = await vendor.script("a", input_tokens=100, output_tokens=500)
    async with opened() as gate:
        valkey.pause()
        status, headers, _ = await gate.post({**ASK, "model": model})
        assert (status, headers["x-tollgate-charge-nanos"]) == (200, str(EXACT))
        assert gate.parts.grace.allowances.used(WALLET) == EXACT
        valkey.resume()
        await gate.settled()
        record = await charged(gate)
        assert (record.charge, record.flags) == (EXACT, [FLAG])
        assert headers["x-request-id"].replace("-", "") == record.call_id.hex()


async def test_a_stream_counts_with_its_whole_bound_and_asks_for_no_more(
    opened: Opened, valkey: OwnValkey, vendor: Vendor
) -> None:
    model = await vendor.script("s", input_tokens=100, output_tokens=8, deltas=8, hold_at=4)
    long = {**ASK, "max_tokens": 1_900, "model": model, "stream": True}
    async with opened() as gate:
        valkey.pause()
        call = asyncio.ensure_future(gate.post(long))
        await vendor.held(1)
        assert gate.parts.grace.allowances.used(WALLET) >= 1_900 * 15_000
        await vendor.release()
        assert (await call)[0] == 200
        valkey.resume()
        record = await charged(gate)
        assert record.flags == [FLAG]


async def test_racing_calls_get_this_process_share_and_no_more(
    opened: Opened, valkey: OwnValkey, vendor: Vendor
) -> None:
    model = await vendor.script("h", hold_at=-1)
    async with opened() as gate:
        valkey.pause()
        asks = [asyncio.ensure_future(gate.post({**ASK, "model": model})) for _ in range(20)]
        await vendor.held(CALLS_MAX)
        done, going = await asyncio.wait(asks, timeout=1.0)
        assert (len(done), len(going)) == (20 - CALLS_MAX, CALLS_MAX)
        assert {answer.result()[0] for answer in done} == {503}
        assert gate.parts.grace.allowances.used(WALLET) <= GRACE // 2
        assert gate.metrics.grace_calls.series[()] == CALLS_MAX
        await vendor.release()
        assert await statuses(*going) == [200] * CALLS_MAX
        valkey.resume()
        await gate.settled()


async def test_who_has_no_grace_is_refused(
    opened: Opened, valkey: OwnValkey, vendor: Vendor
) -> None:
    async with opened(grace=0) as gate:
        valkey.pause()
        status, headers, body = await gate.post({**ASK, "model": "m"})
        assert (status, headers["retry-after"]) == (503, "1")
        assert b"ledger_unavailable" in body
        valkey.resume()
        await gate.settled()
        assert await vendor.log() == []


@pytest.mark.parametrize("base", [0, -5])
async def test_grace_is_no_credit_for_a_wallet_that_has_nothing(
    opened: Opened, valkey: OwnValkey, books: asyncpg.Pool, base: int
) -> None:
    await books.execute("UPDATE wallet SET base = $1", base)
    async with opened() as gate:
        valkey.pause()
        assert (await gate.post({**ASK, "model": "m"}))[0] == 503
        assert gate.metrics.grace_refused.series[()] == 1
        valkey.resume()
        await gate.settled()


async def test_a_process_that_never_saw_the_ledger_gives_no_grace(
    valkey: OwnValkey, opened: Opened
) -> None:
    async with opened() as gate:
        gate.parts.conveyor._lanes[0].generation = 0  # as of one that is started in the outage
        valkey.pause()
        assert (await gate.post({**ASK, "model": "m"}))[0] == 503
        valkey.resume()
        await gate.settled()


async def test_without_postgres_nobody_can_tell_and_nobody_gets_grace(
    valkey: OwnValkey, opened: Opened, books: asyncpg.Pool
) -> None:
    async with opened() as gate:
        await books.close()
        valkey.pause()
        assert (await gate.post({**ASK, "model": "m"}))[0] == 503
        valkey.resume()
        await gate.settled()


async def test_an_open_call_is_held_as_soon_as_redis_is_back(
    opened: Opened, valkey: OwnValkey, vendor: Vendor
) -> None:
    model = await vendor.script("h", hold_at=-1, input_tokens=100, output_tokens=500)
    async with opened() as gate:
        valkey.pause()
        call = asyncio.ensure_future(gate.post({**ASK, "model": model}))
        await vendor.held(1)
        valkey.resume()
        (live,) = gate.calls.live.values()

        async def is_held() -> bool:
            due: list[bytes] = await gate.redis.zrange("tg:{p00}:due", 0, -1)
            return due == [live.call_id]

        await until(is_held)
        await vendor.release()
        assert (await call)[0] == 200
        wallet = await gate.settled()
        assert (wallet["held"], wallet["spent"], wallet["free"]) == (0, EXACT, CREDIT - EXACT)


async def test_the_share_is_whole_again_once_postgres_has_the_charge(
    opened: Opened, valkey: OwnValkey, vendor: Vendor, books: asyncpg.Pool
) -> None:
    model = await vendor.script("a", input_tokens=100, output_tokens=500)
    async with opened() as gate:
        valkey.pause()
        answers = [await gate.post({**ASK, "model": model}) for _ in range(4)]
        assert [status for status, _, _ in answers] == [200] * 3 + [503]
        ids = [headers["x-request-id"] for status, headers, _ in answers if status == 200]
        assert gate.parts.grace.allowances.used(WALLET) == 3 * EXACT
        for call_id, charge in zip(ids, (EXACT, EXACT, EXACT - 1), strict=True):
            await record(books, call_id, charge)
        task = asyncio.ensure_future(gate.parts.grace.run())
        # The third is there with less than it cost: its correction is still to come.
        await until(lambda: _true(gate.parts.grace.allowances.used(WALLET) == EXACT))
        assert (await gate.post({**ASK, "model": model}))[0] == 200
        task.cancel()
        valkey.resume()
        await gate.settled()


async def record(books: asyncpg.Pool, call_id: str, charge: int) -> None:
    """What the flusher would write of a call."""
    await books.execute(
        "INSERT INTO usage_record VALUES ($1, $2, $2, $2, $2, $2, now(), now(), 'settled',"
        " 'success', 'o', 'p', 'm', 'm', 'm', '', '', 0, $3, $3, NULL, 'reported', 0, 0, 0, 0, 0,"
        " NULL, NULL, false, 0, 1)",
        call_id,
        WALLET,
        charge,
    )
