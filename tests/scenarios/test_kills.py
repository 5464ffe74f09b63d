"""kill -9 of any process under load: every admitted call has one record, and the books agree."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from openai import APIConnectionError, APIStatusError, AsyncOpenAI

from tests.scenarios.deployment import Deployment, Key
from tests.scenarios.invariants import owed, priced
from tests.scenarios.scale import LONG
from tests.vendor import Entry, Vendor

pytestmark = pytest.mark.scenario
STREAMS = 500 if LONG else 200
LEASE_S = 60  # of a hold that nobody renews
ASK: list[Any] = [{"role": "user", "content": "hello"}]


@pytest.fixture
async def tollgate(folder: Path, vendor_apart: Vendor) -> AsyncIterator[Deployment]:
    """A deployment of its own, because it is hurt."""
    await vendor_apart.forget()
    async with Deployment.started(folder, vendor_port=vendor_apart.port) as deployment:
        yield deployment


class Load:
    """Callers that go on whatever happens, and remember which calls were answered in full."""

    def __init__(self, client: AsyncOpenAI, model: str) -> None:
        self._client, self._model = client, model
        self.answered: set[str] = set()
        self.failed = 0
        self._stop = asyncio.Event()

    async def run(self, callers: int) -> None:
        """Call until `stop`."""
        async with asyncio.TaskGroup() as group:
            for number in range(callers):
                group.create_task(self._caller(is_stream=number % 2 == 0))

    def stop(self) -> None:
        """Let every caller end its call and no more."""
        self._stop.set()

    async def until(self, count: int) -> None:
        """Wait for so many more answers."""
        wanted = len(self.answered) + count
        async with asyncio.timeout(30):
            while len(self.answered) < wanted:
                await asyncio.sleep(0.01)

    async def _caller(self, *, is_stream: bool) -> None:
        create = self._client.chat.completions.with_raw_response.create
        while not self._stop.is_set():
            try:
                raw = await create(model=self._model, messages=ASK, max_tokens=50, stream=is_stream)
                answer: Any = raw.parse()
                if is_stream:
                    reasons = [c.choices[0].finish_reason async for c in answer if c.choices]
                    assert reasons[-1] == "stop"
            except (APIConnectionError, APIStatusError):
                self.failed += 1
                await asyncio.sleep(0.02)
            else:
                self.answered.add(raw.headers["x-request-id"])


async def assert_all_recorded(
    deployment: Deployment, key: Key, vendor: Vendor, answered: set[str]
) -> int:
    """Every call the vendor saw has one record of what it billed, no hold is left, and `verify`
    finds nothing.
    """
    entries = await vendor.quiet()
    seen = len(entries)
    rows = await deployment.records(key.organization_id, count=seen, within_s=90)
    ids = {str(row["call_id"]) for row in rows}
    assert len(ids) == len(rows)
    assert answered <= ids, f"{len(answered - ids)} answered calls have no record"
    async with deployment.redis() as redis, asyncio.timeout(90):
        while await open_holds(redis):
            await asyncio.sleep(0.1)
    rows = await deployment.records(key.organization_id, count=seen)
    _assert_charges(rows, entries, answered)
    charged = sum(row["charge"] for row in rows)
    assert await deployment.wallet(key.organization_id) == 10_000_000_000 - charged
    assert "No difference." in deployment.run("verify")
    return len(rows)


def _assert_charges(rows: list[Any], entries: list[Entry], answered: set[str]) -> None:
    """What is settled was billed, what was answered is settled, and a lost call has its bound."""
    settled = Counter(row["charge"] for row in rows if row["kind"] == "settled")
    strange = settled - Counter(owed([entry]) for entry in entries)
    assert not strange, f"settled, and not billed: {strange}"
    others = [row for row in rows if row["kind"] != "settled"]
    assert not any(str(row["call_id"]) in answered for row in others), "answered, and not settled"
    worst = max(
        priced(entry.body_bytes, msgspec.json.decode(entry.body)["max_tokens"]) for entry in entries
    )
    for row in others:
        most = worst if row["kind"] == "lost" else 0
        assert row["charge"] <= most, f"{row} may cost {most} at most"


async def open_holds(redis: Any) -> int:
    """How many holds are open in all partitions."""
    counts = [await redis.zcard(f"tg:{{p{number:02d}}}:due") for number in range(16)]
    return sum(counts)


async def kill(pid: int) -> None:
    """kill -9, and wait until it is really dead."""
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.005)


async def test_a_worker_killed_with_live_streams_leaves_one_record_for_each(
    tollgate: Deployment, vendor_apart: Vendor
) -> None:
    key = await tollgate.new_key()
    model = await vendor_apart.script("slow", deltas=400, output_tokens=400, interval_s=0.1)
    client = tollgate.openai(key)
    streams = [
        await client.chat.completions.create(
            model=model, messages=ASK, stream=True, max_tokens=400, extra_body={"n": 1}
        )
        for _ in range(STREAMS)
    ]
    for stream in streams:
        await anext(aiter(stream))

    await kill(tollgate.pids("worker")[0])

    killed_s = asyncio.get_running_loop().time()
    async with tollgate.redis() as redis, asyncio.timeout(LEASE_S + 5):
        while await open_holds(redis):
            await asyncio.sleep(0.1)
    freed_s = asyncio.get_running_loop().time() - killed_s
    count = await assert_all_recorded(tollgate, key, vendor_apart, set())
    rows = await tollgate.records(key.organization_id, count=STREAMS)
    kinds = sorted({row["kind"] for row in rows})
    assert count == STREAMS
    await client.close()
    print(
        f"B2: kill -9 of a worker with {STREAMS} live streams: its holds are gone after"
        f" {freed_s:.1f} s, {count} records, {kinds}, no difference"
    )


async def test_a_flusher_killed_in_mid_batch_loses_and_doubles_nothing(
    tollgate: Deployment, vendor_apart: Vendor
) -> None:
    key = await tollgate.new_key()
    async with tollgate.openai(key) as client, asyncio.TaskGroup() as group:
        load = Load(client, await vendor_apart.script("fast"))
        group.create_task(load.run(16))
        for _ in range(5):
            await load.until(100)
            await kill(await running(tollgate, "control"))
        await load.until(200)
        load.stop()

    count = await assert_all_recorded(tollgate, key, vendor_apart, load.answered)
    print(f"kill -9 of the flusher x5: {count} records, {load.failed} failed, no difference")


async def test_valkey_killed_under_load_loses_and_doubles_nothing(
    tollgate: Deployment, vendor_apart: Vendor
) -> None:
    key = await tollgate.new_key()
    async with tollgate.openai(key) as client, asyncio.TaskGroup() as group:
        load = Load(client, await vendor_apart.script("fast"))
        group.create_task(load.run(16))
        for _ in range(3):
            await load.until(100)
            await kill(await valkey_pid(tollgate))
        await load.until(200)
        load.stop()

    count = await assert_all_recorded(tollgate, key, vendor_apart, load.answered)
    print(f"kill -9 of Valkey x3: {count} records, {load.failed} failed, no difference")


async def running(deployment: Deployment, role: str) -> int:
    """The process in this role, once the supervisor has started it."""
    async with asyncio.timeout(15):
        while not (pids := deployment.pids(role)):
            await asyncio.sleep(0.01)
    return pids[0]


async def valkey_pid(deployment: Deployment) -> int:
    """The process of the deployment's own Valkey."""
    async with deployment.redis() as redis, asyncio.timeout(10):
        info: dict[str, Any] = await redis.info("server")
    return int(info["process_id"])
