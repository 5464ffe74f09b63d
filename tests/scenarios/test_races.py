"""However many calls race on however many workers, exactly so many are admitted as limits allow."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.scenarios.caller import CHAT, Answer, Caller, caller, post
from tests.scenarios.deployment import Deployment, Key
from tests.scenarios.invariants import assert_books
from tests.scenarios.scale import LONG
from tests.vendor import Vendor

pytestmark = pytest.mark.scenario
ROUNDS = 100 if LONG else 10
# P1 without cache writes: input that may cost more would make the worst case worse.
PRICE = {
    "provider": "vendor",
    "model": "*",
    "usd_per_million": {"input": "3", "output": "15", "cache_read": "0.30"},
}
CHARGE = 100 * 3_000 + 10 * 15_000  # what it comes to: 450,000
BODY_BYTES = 133  # three quarters of a token a byte: 100 tokens at most


def asked(model: str) -> bytes:
    """A call whose input is bound by exactly 100 tokens, and its answer by 60."""
    ask: dict[str, Any] = {
        "model": model,
        "max_tokens": 60,
        "messages": [{"role": "user", "content": ""}],
    }
    ask["messages"][0]["content"] = "x" * (BODY_BYTES - len(orjson.dumps(ask)))
    body = orjson.dumps(ask)
    assert len(body) == BODY_BYTES
    return body


@asynccontextmanager
async def callers(tollgate: Deployment, count: int) -> AsyncIterator[list[Caller]]:
    """So many connections; the kernel spreads them over the workers."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(caller(tollgate)) for _ in range(count)]


async def race(
    tollgate: Deployment, key: Key, body: bytes, *, count: int, vendor: Vendor, admitted: int
) -> list[Answer]:
    """All answers to calls made at once, while the vendor answers none before the rest is refused.

    Exactly `admitted` of them must reach it.
    """
    async with callers(tollgate, count) as lines, asyncio.TaskGroup() as group:
        tasks = [group.create_task(line.post(CHAT, key.secret, body)) for line in lines]
        await vendor.held(admitted)
        async with asyncio.timeout(30):
            while sum(task.done() for task in tasks) < count - admitted:
                await asyncio.sleep(0.005)
        state = await vendor.state()
        assert (state.held, state.open) == (admitted, admitted)
        await vendor.release()
    return [task.result() for task in tasks]


async def test_racing_calls_never_overspend_a_wallet(folder: Path, vendor_apart: Vendor) -> None:
    port, prices = vendor_apart.port, {"prices": [PRICE]}
    started = Deployment.started(folder, vendor_port=port, workers=3, changes=prices)
    async with started as tollgate:
        held = asked(
            await vendor_apart.script("b1h", output_tokens=10, input_tokens=100, hold_at=-1)
        )
        free = asked(await vendor_apart.script("b1f", output_tokens=10, input_tokens=100))
        codes: Counter[str] = Counter()
        began_s = time.monotonic()
        for _ in range(ROUNDS):
            await vendor_apart.forget()
            key = await tollgate.new_key(credit_usd="0.01")
            answers = await race(tollgate, key, held, count=50, vendor=vendor_apart, admitted=8)
            assert sorted(a.status for a in answers if a.status == 200) == [200] * 8
            codes.update(answer.error["code"] for answer in answers if answer.status != 200)
            await assert_books(tollgate, key, records=8, charge=8 * CHARGE)
            assert await tollgate.wallet(key.organization_id) == 6_400_000
            assert (await post(tollgate, key, CHAT, free)).status == 200
            await assert_books(tollgate, key, records=9, charge=9 * CHARGE)
        took_s = time.monotonic() - began_s
    assert set(codes) <= {"credit_held", "insufficient_credit"}
    assert codes.total() == 42 * ROUNDS
    print(
        f"B1: {ROUNDS} rounds of 50 calls on 3 workers: 8 reached the vendor and 42 were refused"
        f" {dict(codes)} in each, wallet 6,400,000, next admitted; {took_s:.1f} s"
    )


async def admitted(tollgate: Deployment, vendor: Vendor) -> dict[str, int]:
    """How many of many calls at once pass each limit."""
    held = asked(await vendor.script("b8h", output_tokens=10, input_tokens=100, hold_at=-1))
    free = asked(await vendor.script("b8f", output_tokens=10, input_tokens=100))
    found = {}
    for limit, key, admits in (
        (
            "balance",
            await tollgate.new_key(credit_usd="0.01"),
            7,
        ),  # 1,275,000 each: a cache write costs more
        ("concurrency", await tollgate.new_key(concurrency=7), 7),
    ):
        await vendor.forget()
        answers = await race(tollgate, key, held, count=40, vendor=vendor, admitted=admits)
        found[limit] = sum(answer.status == 200 for answer in answers)
        await assert_books(tollgate, key, records=found[limit], charge=found[limit] * CHARGE)
    key = await tollgate.new_key(rpm=50)
    began_s = time.monotonic()
    async with callers(tollgate, 80) as lines, asyncio.TaskGroup() as group:
        tasks = [group.create_task(line.post(CHAT, key.secret, free)) for line in lines]
    passed = sum(task.result().status == 200 for task in tasks)
    # The bucket refills while the calls are on their way.
    refilled = int((time.monotonic() - began_s) * 50 / 60) + 1
    assert 50 <= passed <= 50 + refilled
    await assert_books(tollgate, key, records=passed, charge=passed * CHARGE)
    return {**found, "requests per minute": min(passed, 50)}


async def test_a_limit_is_the_same_however_many_workers_there_are(
    folder: Path, fleet: Deployment, vendor_apart: Vendor
) -> None:
    async with Deployment.started(folder, vendor_port=vendor_apart.port) as alone:
        by_one = await admitted(alone, vendor_apart)
    by_four = await admitted(fleet, vendor_apart)
    assert by_four == by_one
    print(f"B8: 1 worker admits {by_one}, 4 workers {by_four}")
