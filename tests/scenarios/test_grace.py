"""Valkey is stopped: who chose so goes on up to a sum, nobody else does; the books are exact."""

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, InternalServerError

from ledger.functions import Partition
from tests.scenarios.deployment import Deployment, Key
from tests.scenarios.invariants import assert_books, owed
from tests.vendor import Vendor

pytestmark = pytest.mark.scenario
WORKERS = 2
ASK: list[Any] = [{"role": "user", "content": "hello"}]
GRACE_USD = "0.10"
SHARE = 100_000_000 // WORKERS
OUTPUT = 1_000  # tokens at most: each call's worst case is some 15 millions, so three fit a share
FIT = 3 * WORKERS
UNTIL_S = 20.0
CREDIT = 10_000_000_000
WARMED = 20 * (10 * 3_000 + 5 * 15_000)  # what a key's first twenty calls cost


@pytest.fixture
async def tollgate(folder: Path, vendor_apart: Vendor) -> AsyncIterator[Deployment]:
    """A deployment of its own, because its Valkey is stopped."""
    await vendor_apart.forget()
    async with Deployment.started(
        folder, vendor_port=vendor_apart.port, workers=WORKERS
    ) as deployment:
        yield deployment


@asynccontextmanager
async def valkey_stopped(tollgate: Deployment) -> AsyncIterator[None]:
    """kill -9 of Valkey, and nobody starts it before this is over."""
    valkey = int((tollgate.data / "valkey.lock").read_text())
    os.kill(tollgate.pid, signal.SIGSTOP)
    try:
        os.kill(valkey, signal.SIGKILL)
        yield
    finally:
        os.kill(tollgate.pid, signal.SIGCONT)


def gauge(tollgate: Deployment, name: str) -> int:
    found = re.search(rf"^tollgate_{name} (\S+)$", tollgate.metrics(), re.MULTILINE)
    return int(float(found[1])) if found else 0


async def free_in_redis(tollgate: Deployment, key: Key) -> int:
    """What the wallet has free once the books have reached Redis, and nothing is held."""
    async with tollgate.stores() as stores:
        number = await stores.pool.fetchval(
            "SELECT partition FROM wallet WHERE id = $1::uuid", key.organization_id
        )
        partition = Partition(stores.redis, number)
        async with asyncio.timeout(UNTIL_S):
            while True:
                generation = (await partition.state()).generation
                (image,) = (await partition.snap(generation, [key.organization_id])).wallets
                if image.held == 0 and image.free == await tollgate.wallet(key.organization_id):
                    return image.free
                await asyncio.sleep(0.05)


class Callers:
    """Calls of one key, counted by how they were answered."""

    def __init__(self, client: AsyncOpenAI) -> None:
        self._client = client
        self.answered = self.refused = 0

    async def call(self, model: str) -> None:
        create = self._client.chat.completions.create
        try:
            await create(model=model, messages=ASK, max_tokens=OUTPUT)
        except InternalServerError as error:
            self.refused += error.status_code == 503 and "retry-after" in error.response.headers
        else:
            self.answered += 1

    async def race(self, model: str, count: int) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(self.call(model))


@asynccontextmanager
async def warmed(tollgate: Deployment, key: Key, model: str) -> AsyncIterator[Callers]:
    """Callers whose key both workers know."""
    async with tollgate.openai(key) as client:
        callers = Callers(client)
        await callers.race(model, 20)
        assert callers.answered == 20
        yield callers


async def test_while_valkey_is_stopped_only_grace_admits_and_all_is_exact_afterwards(
    tollgate: Deployment, vendor_apart: Vendor
) -> None:
    chosen, other = await tollgate.new_key(), await tollgate.new_key()
    tollgate.run("org", "grace", chosen.organization_id, GRACE_USD)
    short = await vendor_apart.script("short", input_tokens=10, output_tokens=5)
    held = await vendor_apart.script("held", input_tokens=10, output_tokens=700, hold_at=-1)
    async with (
        warmed(tollgate, chosen, short) as with_grace,
        warmed(tollgate, other, short) as without,
        valkey_stopped(tollgate),
    ):
        async with asyncio.TaskGroup() as group:
            group.create_task(without.race(short, 20))
            group.create_task(with_grace.race(held, 40))
            async with asyncio.timeout(UNTIL_S):
                while with_grace.refused < 40 - FIT:
                    await asyncio.sleep(0.02)
            waiting = len([e for e in await vendor_apart.log() if e.model == held])
            await vendor_apart.release()
        # Each charge is less than its worst case was, so there is room for some more.
        for _ in range(10):
            await with_grace.call(short)
        unbooked = gauge(tollgate, "grace_unbooked_nanousd")
        for _ in range(2):
            await without.call(short)

    assert waiting <= FIT, "more calls at once than the grace can pay"
    assert without.answered == 20, "a call without grace was admitted"
    assert without.refused == 22
    assert 0 < unbooked <= WORKERS * SHARE
    await tollgate.until_ready()
    seen = await vendor_apart.quiet()
    ours = [e for e in seen if e.model in (short, held)]
    calls = with_grace.answered + without.answered
    assert len(ours) == calls
    bills = owed(ours)
    await assert_books(tollgate, other, records=20, charge=WARMED)
    async with asyncio.timeout(UNTIL_S):
        while gauge(tollgate, "grace_unbooked_nanousd"):
            await asyncio.sleep(0.1)
    rows = await tollgate.records(chosen.organization_id, count=with_grace.answered)
    settled = [row for row in rows if row["kind"] == "settled"]
    assert len(settled) == with_grace.answered
    assert sum(row["charge"] for row in rows) == bills - WARMED
    assert await tollgate.wallet(chosen.organization_id) == CREDIT - (bills - WARMED)
    assert await free_in_redis(tollgate, chosen) == CREDIT - (bills - WARMED)
    assert tollgate.run("verify") == "No difference.\n"
    print(
        f"Valkey stopped: {with_grace.answered - 20} calls by a grace of ${GRACE_USD}, {waiting} at"
        f" once, {unbooked} of {WORKERS * SHARE} nano-USD used; {with_grace.refused} refused beyond"
        f" it, {without.refused} of 22 without one; afterwards {calls} calls,"
        f" {bills} nano-USD by the vendor's log and by the books, no difference"
    )
