"""A client that leaves is charged for what its vendor charges, and no vendor works for nobody."""

import asyncio
import base64
import time
from typing import Any

import orjson
import pytest

from tests.scenarios.caller import CHAT, RESPONSES, asks, caller, request
from tests.scenarios.deployment import Deployment, Key
from tests.scenarios.invariants import assert_books, assert_no_forgotten_sockets, owed
from tests.scenarios.scale import LONG
from tests.vendor import Entry, Vendor

pytestmark = pytest.mark.scenario
CALLS = 200
AT_ONCE = 50
WATCHED_S_MAX = 10.0
TEXT = " abc"  # four bytes: one token by every way of estimating
DELTA = {CHAT: b'"delta":{"content":" abc"', RESPONSES: b"event: response.output_text.delta"}
SHORT = {CHAT: "chat", RESPONSES: "responses"}


async def leave_after(
    tollgate: Deployment, key: Key, path: str, body: dict[str, Any], *, deltas: int
) -> float:
    """Call, read so many deltas, close the connection; when that was, on the monotonic clock."""
    async with caller(tollgate) as line:
        await line.send(request(path, key.secret, body))
        head = await line.head()
        assert head.status == 200
        seen = b""
        async for piece in line.pieces(head):
            seen += piece
            if seen.count(DELTA[path]) >= deltas:
                break
        line.leave()
        return time.monotonic()


async def leave_often(
    tollgate: Deployment, key: Key, path: str, model: str, *, calls: int = CALLS, deltas: int = 100
) -> dict[str, float]:
    """Many calls left in their middle: who called, and when it left."""
    left: dict[str, float] = {}
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(user: str) -> None:
        async with turn:
            body = asks(path, model, stream=True, user=user)
            left[user] = await leave_after(tollgate, key, path, body, deltas=deltas)

    async with asyncio.TaskGroup() as group:
        for number in range(calls):
            group.create_task(one(f"caller-{number}"))
    return left


def slowest_close_s(entries: list[Entry], left: dict[str, float]) -> float:
    """The longest time between a client's leaving and the vendor's seeing it."""
    waits = []
    for entry in entries:
        assert entry.left_s is not None, "the vendor was let finish"
        waits.append(entry.left_s - left[orjson.loads(entry.body)["user"]])
    return max(waits)


async def until_drained(tollgate: Deployment, count: int) -> None:
    """Wait until the gateway says that it reads on so many calls for clients that left."""
    async with asyncio.timeout(WATCHED_S_MAX):
        while f"tollgate_calls_draining {count}.0" not in await asyncio.to_thread(tollgate.metrics):
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
async def test_a_stream_left_in_its_middle_is_read_on_and_charged_to_the_nano(
    tollgate: Deployment, vendor_apart: Vendor, path: str
) -> None:
    key = await tollgate.new_key(credit_usd="1000")
    cadence_s = 0.02 if LONG else 0.002
    script = {"input_tokens": 100, "output_tokens": 500, "interval_s": cadence_s, "text": TEXT}
    model = await vendor_apart.script("left", **script)

    await leave_often(tollgate, key, path, model)

    records = await assert_books(tollgate, key, records=CALLS, charge=CALLS * 7_800_000)
    entries = await vendor_apart.quiet()
    assert {row["outcome"] for row in records} == {"client_disconnect"}
    assert {row["usage_source"] for row in records} == {"reported"}
    assert all(entry.completed for entry in entries)
    assert owed(entries) == CALLS * 7_800_000
    await assert_no_forgotten_sockets(vendor_apart.port, tollgate.ports["data"])
    print(f"A1 {SHORT[path]} drain: {CALLS} rows, {CALLS * 7_800_000:,} nano, 0 holds")


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
async def test_a_stream_left_where_that_cancels_is_closed_at_once_and_estimated(
    tollgate: Deployment, vendor_apart: Vendor, path: str
) -> None:
    key = await tollgate.new_key(credit_usd="1000")
    script = {"input_tokens": 100, "output_tokens": 500, "hold_at": 100, "text": TEXT}
    model = await vendor_apart.script("left", **script)

    left = await leave_often(tollgate, key, path, f"cancel/{model}")

    slowest_s = slowest_close_s(await vendor_apart.quiet(), left)
    records = await assert_books(tollgate, key, records=CALLS)
    assert slowest_s <= 1.0
    assert {row["outcome"] for row in records} == {"client_disconnect"}
    assert {row["usage_source"] for row in records} == {"estimated"}
    assert {row["output"] for row in records} == {100}
    assert {row["charge"] for row in records} == {records[0]["input"] * 3000 + 100 * 15000}
    await assert_no_forgotten_sockets(vendor_apart.port, tollgate.ports["data"])
    total = sum(row["charge"] for row in records)
    print(
        f"A1 {SHORT[path]} cancel: {CALLS} rows, output 100 estimated in each, {total:,} nano,"
        f" vendor closed within {slowest_s * 1000:.0f} ms, 0 holds"
    )


def seeded_stream(deltas: int) -> dict[str, Any]:
    """A script whose first chunk says that one token was generated, and no other says anything."""
    seed = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
    chunks = [{"id": "c", "choices": [{"index": 0, "delta": {"role": "assistant"}}], "usage": seed}]
    chunks += [{"id": "c", "choices": [{"index": 0, "delta": {"content": TEXT}}]}] * deltas
    events = [b"data: %b\n\n" % orjson.dumps(chunk) for chunk in chunks]
    whole = b"".join(events)
    rest = b"data: [DONE]\n\n"
    return {
        "raw": base64.b64encode(whole + rest).decode(),
        "content_type": "text/event-stream",
        "cuts": [len(whole)],
        "hold_at": 1,
    }


A2 = {
    "frozen at one": {"usage": "every", "usage_fields": {"completion_tokens": 1}, "hold_at": 806},
    "one in the first chunk": seeded_stream(806),
    "growing with the text": {"usage": "every", "hold_at": 806},
}


@pytest.mark.parametrize("how", A2)
async def test_a_cut_stream_costs_what_was_relayed_though_its_vendor_has_said_less(
    tollgate: Deployment, key: Key, vendor_apart: Vendor, how: str
) -> None:
    model = await vendor_apart.script("low", output_tokens=1000, text=TEXT, **A2[how])

    await leave_often(tollgate, key, CHAT, f"cancel/{model}", calls=1, deltas=806)

    (record,) = await assert_books(tollgate, key, records=1, charge=10 * 3000 + 806 * 15000)
    assert record["output"] == 806
    print(f"A2 {how}: 806 deltas relayed, output 806 ({record['usage_source']}), never 1")


async def left_waiting(
    tollgate: Deployment, key: Key, vendor: Vendor, model: str, *, calls: int
) -> dict[str, float]:
    """Calls without a stream whose clients leave while the vendor thinks; when each left."""
    path, left = CHAT, {}
    async with asyncio.TaskGroup() as group:
        go = asyncio.Event()

        async def one(user: str) -> None:
            async with caller(tollgate) as line:
                await line.send(request(path, key.secret, asks(path, model, user=user)))
                await go.wait()
                line.leave()
                left[user] = time.monotonic()

        for number in range(calls):
            group.create_task(one(f"caller-{number}"))
        await vendor.held(calls)
        go.set()
    return left


async def test_an_answer_nobody_waits_for_is_read_and_charged_in_full(
    tollgate: Deployment, vendor_apart: Vendor
) -> None:
    key = await tollgate.new_key(credit_usd="1000")
    model = await vendor_apart.script("slow", input_tokens=100, output_tokens=500, hold_at=-1)

    await left_waiting(tollgate, key, vendor_apart, model, calls=100)
    await until_drained(tollgate, 100)
    await vendor_apart.release()

    records = await assert_books(tollgate, key, records=100, charge=100 * 7_800_000)
    assert {row["outcome"] for row in records} == {"client_disconnect"}
    assert owed(await vendor_apart.quiet()) == 100 * 7_800_000
    await assert_no_forgotten_sockets(vendor_apart.port, tollgate.ports["data"])
    print("A11 drain: 100/100 charged in full, 780,000,000 nano, 1 attempt each")


async def test_an_answer_nobody_waits_for_is_cancelled_where_that_is_the_policy(
    tollgate: Deployment, vendor_apart: Vendor
) -> None:
    key = await tollgate.new_key(credit_usd="1000")
    model = await vendor_apart.script("slow", hold_at=-1)

    left = await left_waiting(tollgate, key, vendor_apart, f"cancel/{model}", calls=100)

    entries = await vendor_apart.quiet()
    records = await assert_books(tollgate, key, records=100)
    assert len(entries) == 100
    assert {(row["outcome"], row["attempts"]) for row in records} == {("client_disconnect", 1)}
    slowest_s = slowest_close_s(entries, left)
    assert slowest_s <= 1.0
    print(
        f"A11 cancel: 100/100 have a row, charged {sum(row['charge'] for row in records)} nano,"
        f" vendor closed within {slowest_s * 1000:.0f} ms, 1 attempt each"
    )


async def test_nobody_tries_again_for_a_client_that_has_left(
    tollgate: Deployment, vendor_apart: Vendor
) -> None:
    key = await tollgate.new_key(credit_usd="1000")
    model = await vendor_apart.script("failing", status=503, hold_at=-1)

    await left_waiting(tollgate, key, vendor_apart, model, calls=100)
    await until_drained(tollgate, 100)
    await vendor_apart.release()

    records = await assert_books(tollgate, key, records=100, charge=0)
    assert len(await vendor_apart.quiet()) == 100
    assert {(row["outcome"], row["attempts"]) for row in records} == {("client_disconnect", 1)}
    print("A11 failing vendor: 100/100 left, 100 requests on the wire, no second attempt, 0 nano")
