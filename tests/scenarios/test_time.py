"""Slow clients, slow vendors and prices that change meanwhile, where leases are short."""

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from openai import APIStatusError

from ledger.pricing import PriceSheet
from ledger.usage import Usage
from providers.adapter import Operation
from providers.openai.calls import read_call
from tests.scenarios.caller import CHAT, RESPONSES, asks, post
from tests.scenarios.deployment import Deployment, Key
from tests.scenarios.invariants import assert_books, assert_nothing_recorded, open_holds, owed
from tests.scenarios.scale import LONG
from tests.scenarios.sdk import KINDS, Kind, sdk_at
from tests.scenarios.vendors import many_names
from tests.vendor import Vendor

pytestmark = pytest.mark.scenario
TEXT = " abc"  # four bytes: one token by every way of estimating
LEASE_S, IDLE_S, BODY_S, CONNECT_S = 2.0, 0.5, 0.5, 0.5
STREAMS, SWAPS, SWAP_S = 200, 10, 0.5


@pytest.fixture(scope="module")
def silent_port() -> Iterator[int]:
    """A port that answers no connection: its queue is full, and nobody takes from it."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        # The queue is one longer than told; the third finds no place.
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(address)
        yield address[1]


@pytest.fixture(scope="module")
def brisk(
    tmp_path_factory: pytest.TempPathFactory, vendor_apart: Vendor, silent_port: int
) -> Iterator[Deployment]:
    """A deployment whose holds and patience are short."""
    folder = tmp_path_factory.mktemp("brisk", numbered=True)
    names = many_names(vendor_apart.port)
    names["providers"]["dead"]["base_url"] = f"http://127.0.0.1:{silent_port}/v1"
    names["providers"]["dead"]["timeouts"] = {"connect_s": CONNECT_S}
    changes = {
        **names,
        "ledger": {"hold_lease_s": LEASE_S, "hold_renew_s": LEASE_S / 4},
        "limits": {"body_timeout_s": BODY_S},
    }
    yield from Deployment.kept(folder, vendor_port=vendor_apart.port, workers=2, changes=changes)


@pytest.fixture
async def tollgate(brisk: Deployment, vendor_apart: Vendor) -> Deployment:
    """The brisk deployment, with nothing in the vendor's log."""
    await vendor_apart.forget()
    return brisk


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
async def test_a_vendor_that_stalls_is_left_after_the_idle_timeout_and_paid_for_what_came(
    tollgate: Deployment, key: Key, vendor_apart: Vendor, path: str
) -> None:
    script = {"output_tokens": 500, "text": TEXT, "stall_after": 10}
    model = await vendor_apart.script("stalls", **script)

    answer = await post(tollgate, key, path, asks(path, f"hasty/{model}", stream=True))

    (entry,) = await vendor_apart.quiet()
    assert entry.left_s is not None
    assert entry.first_s is not None
    waited_s = entry.left_s - entry.first_s
    assert IDLE_S <= waited_s <= IDLE_S + 1
    assert b"upstream_timeout" in answer.body
    (record,) = await assert_books(tollgate, key, records=1)
    assert (record["outcome"], record["output"]) == ("timeout", 10)
    assert record["charge"] == record["input"] * 3000 + 10 * 15000
    print(
        f"D5 {path[4:]} stall: left after {waited_s:.2f} s (idle {IDLE_S} s), output 10,"
        f" {record['charge']:,} nano, hold released"
    )


async def test_a_slow_stream_is_not_cut_and_its_hold_outlives_many_leases(
    tollgate: Deployment, key: Key, vendor_apart: Vendor
) -> None:
    deltas, cadence_s = (200 if LONG else 20), 0.3
    script = {"output_tokens": deltas, "text": TEXT, "interval_s": cadence_s}
    model = await vendor_apart.script("slow", **script)
    body = asks(CHAT, f"hasty/{model}", stream=True, max_tokens=deltas)
    began_s = time.monotonic()

    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(post(tollgate, key, CHAT, body), name="slow") for _ in range(20)]
        while time.monotonic() - began_s < deltas * cadence_s - 1:
            held = len(await open_holds(tollgate, key))
            assert held == 20 or time.monotonic() - began_s < 1, f"{held} of 20 are held"
            await asyncio.sleep(0.2)

    took_s = time.monotonic() - began_s
    assert all(task.result().body.endswith(b"data: [DONE]\n\n") for task in asked)
    entries = await vendor_apart.quiet()
    records = await assert_books(tollgate, key, records=20, charge=owed(entries))
    assert {(row["kind"], row["outcome"]) for row in records} == {("settled", "success")}
    print(
        f"D5 slow: 20 streams of {took_s:.1f} s, a chunk each {cadence_s} s (idle {IDLE_S} s,"
        f" lease {LEASE_S:.0f} s), none cut, 20 settled exactly"
    )


async def test_a_vendor_that_answers_no_connection_is_given_up_and_free(
    tollgate: Deployment, key: Key
) -> None:
    answer = await post(tollgate, key, CHAT, asks(CHAT, "dead/gpt"))

    assert (answer.status, answer.error["code"]) == (504, "upstream_timeout")
    (record,) = await assert_books(tollgate, key, records=1, charge=0)
    assert record["kind"] == "released"
    print(f"A10 connect timeout: 504, 0 nano, hold released, {record['attempts']} attempts")


@asynccontextmanager
async def without_last_byte(port: int) -> AsyncIterator[str]:
    """The URL of a relay to the gateway that never sends the last byte of a request."""

    writers: list[asyncio.StreamWriter] = []
    relays: list[asyncio.Task[Any]] = []

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        relays.append(task)
        theirs, ours = await asyncio.open_connection("127.0.0.1", port)
        writers.extend((writer, ours))
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        ours.write(head + (await reader.readexactly(length))[:-1])
        while answer := await theirs.read(65_536):
            writer.write(answer)

    async with await asyncio.start_server(relay, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        for each in writers:
            each.transport.abort()
        await asyncio.gather(*relays)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_body_that_does_not_arrive_in_time_raises_408(
    tollgate: Deployment, key: Key, kind: Kind
) -> None:
    ask: list[Any] = [{"role": "user", "content": "hello"}]
    async with (
        without_last_byte(tollgate.ports["data"]) as url,
        sdk_at(url, key.secret, kind) as client,
    ):
        with pytest.raises(APIStatusError) as caught:
            await client.call(
                lambda c: c.chat.completions.create(model="gpt-4o-mini", messages=ask)
            )

    assert (caught.value.status_code, caught.value.code) == (408, "request_timeout")
    await assert_nothing_recorded(tollgate, key)


def priced_at(factor: int) -> dict[str, str]:
    """P1's input and output, so many times."""
    return {"input": str(3 * factor), "output": str(15 * factor)}


async def swap_prices(tollgate: Deployment) -> None:
    """Put ever new prices of the vendor into use, one after the other."""
    others = [each for each in tollgate.config["prices"] if each["provider"] != "vendor"]
    for factor in range(2, SWAPS + 2):
        price = {"provider": "vendor", "model": "*", "usd_per_million": priced_at(factor)}
        tollgate.config["prices"] = [*others, price]
        tollgate.write_config()
        tollgate.tell(signal.SIGHUP)
        await asyncio.sleep(SWAP_S)


async def test_a_price_that_changes_meanwhile_is_not_the_price_of_calls_under_way(
    tollgate: Deployment, vendor_apart: Vendor
) -> None:
    key = await tollgate.new_key(credit_usd="1000")
    seconds = 5.0 if LONG else 2.0
    script = {"input_tokens": 100, "output_tokens": 20, "interval_s": seconds / 20, "text": TEXT}
    model = await vendor_apart.script("lasting", **script)
    body = asks(CHAT, model, stream=True, max_tokens=20)
    bound = read_call(Operation.CHAT, orjson.dumps(body)).input_bound

    async with asyncio.TaskGroup() as group:
        group.create_task(swap_prices(tollgate), name="swaps")
        for _ in range(STREAMS):
            group.create_task(post(tollgate, key, CHAT, body), name="stream")
            await asyncio.sleep(SWAPS * SWAP_S / STREAMS)

    records = await assert_books(tollgate, key, records=STREAMS)
    sheets = await sheets_of(tollgate)
    used = Counter(record["price_version"] for record in records)
    spans = 0
    for record in records:
        sheet, made_at = sheets[record["price_version"]]
        price = sheet.price("vendor", model, record["admitted_at"].timestamp())
        assert price is not None
        assert record["charge"] == price.charge(Usage({"input": 100, "output": 20})) > 0
        worst = price.worst_case(input_tokens=bound, output_tokens=20, tier=None)
        assert record["held"] == worst, "held by one price, charged by another"
        assert made_at <= record["admitted_at"]
        spans += any(
            record["admitted_at"] < other <= record["arrived_at"] for _, other in sheets.values()
        )
    assert len(used) >= SWAPS // 2
    assert spans >= STREAMS // 2
    print(
        f"A14 swaps: {STREAMS} streams of {seconds:.0f} s, {len(used)} price versions, {spans}"
        " streams saw prices change, each charged by the version of its hold, 0 free"
    )


async def sheets_of(tollgate: Deployment) -> dict[str, tuple[PriceSheet, Any]]:
    """Every sheet that was in use, and since when."""
    connection = await tollgate.postgres()
    try:
        rows = await connection.fetch("SELECT version, sheet, created_at FROM price_sheet")
    finally:
        await connection.close()
    return {row["version"]: (PriceSheet.load(row["sheet"]), row["created_at"]) for row in rows}


_OFFLINE = """
import sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        raise OSError(f"there is no network: {event}")
sys.addaudithook(refuse)
from ledger.price_compiler import compile_sheet
from ledger.pricing import PriceSheet
sheet = PriceSheet.load(compile_sheet({"openai": "openai", "groq": "groq"}, ()))
price = sheet.price("openai", "gpt-4o-mini", 1_790_000_000.0)
print(price.worst_case(input_tokens=1_000_000, output_tokens=0, tier=None))
"""


def test_prices_are_there_without_any_network() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _OFFLINE], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
    print(f"A14 offline: gpt-4o-mini at {int(done.stdout):,} nano per million input tokens")
