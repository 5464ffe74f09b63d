"""One call through all its phases: it is charged exactly, once, whatever happens on the way."""

import asyncio
import gc
from pathlib import Path
from uuid import UUID

import orjson

from gateway.proxy.live import LiveCall
from ledger.record import Outcome
from ledger.usage import Usage
from providers.adapter import Call, Meter, Target
from providers.custom import QUIRKS
from providers.openai.body_meter import BodyMeter
from providers.openai.dialect import OpenAI
from tests.gateway.principals import PRINCIPAL
from tests.gateway.proxy.gatehouse import CREDIT, Gatehouse, OpenGate, events, knows, request
from tests.ledger.own_valkey import OwnValkey
from tests.vendor import Vendor

ASK = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 600}
EXACT = 100 * 3000 + 500 * 15000
FIND_S = 1.0


async def test_an_answer_passes_unchanged_and_is_charged_exactly(
    gate: Gatehouse, vendor: Vendor
) -> None:
    model = await vendor.script("a", input_tokens=100, output_tokens=500)

    status, headers, body = await gate.post({**ASK, "model": model})

    assert status == 200
    assert orjson.loads(body)["usage"]["completion_tokens"] == 500
    assert headers["x-tollgate-charge-nanos"] == str(EXACT)
    assert headers["x-tollgate-balance-nanos"] == str(CREDIT - EXACT)
    wallet = await gate.settled()
    assert (wallet["free"], wallet["held"], wallet["spent"]) == (CREDIT - EXACT, 0, EXACT)
    (record,) = await gate.records()
    assert (record.outcome, record.charge, record.status) == (Outcome.SUCCESS, EXACT, 200)


async def test_a_stream_passes_and_is_charged_exactly(gate: Gatehouse, vendor: Vendor) -> None:
    model = await vendor.script("s", input_tokens=100, output_tokens=500, deltas=5)

    status, headers, body = await gate.post({**ASK, "model": model, "stream": True})

    assert (status, headers["content-type"].partition(";")[0]) == (200, "text/event-stream")
    assert headers["x-accel-buffering"] == "no"
    assert body.endswith(b"data: [DONE]\n\n")
    assert all(event.get("usage") is None for event in events(body))
    assert (await gate.settled())["spent"] == EXACT


async def test_the_end_is_in_the_journal_before_the_client_has_its_last_byte(
    gate: Gatehouse, vendor: Vendor
) -> None:
    model = await vendor.script("s", deltas=3)
    line = await gate.line()
    line.writer.write(request({**ASK, "model": model, "stream": True}))
    await line.reader.readuntil(b"data: [DONE]\n\n")

    assert gate.parts.journal.open_count == 0


async def test_a_worker_that_stops_ends_its_calls_with_what_they_have_consumed(
    gate: Gatehouse, vendor: Vendor
) -> None:
    model = await vendor.script("s", input_tokens=100, deltas=8, output_tokens=8, hold_at=4)
    stays, leaves = await gate.line(), await gate.line()
    for line in (stays, leaves):
        line.writer.write(request({**ASK, "model": model, "stream": True}))
    await vendor.held(2)
    await stays.reader.readuntil(b"data: ")
    leaves.writer.transport.abort()
    while not gate.calls.draining:
        await asyncio.sleep(0.01)

    gate.calls.under_way.cut()

    records = await gate.records()
    outcomes = {record.outcome for record in records}
    assert outcomes == {Outcome.FAILED, Outcome.CLIENT_DISCONNECT}
    assert all(record.charge > 0 for record in records)


class Forgetful(BodyMeter):
    """A meter with a bug: it cannot say what was consumed."""

    def usage(self) -> Usage:
        raise ZeroDivisionError


class Choking(BodyMeter):
    """A meter that fails while it reads."""

    def feed(self, received: bytes) -> bytes:
        raise ZeroDivisionError(received)


class Buggy(OpenAI):
    """An adapter with such meters."""

    def __init__(self, made: type[BodyMeter]) -> None:
        self._made = made

    def meter(self, call: Call, target: Target, *, streamed: bool, bound: int) -> Meter:
        assert not streamed
        return self._made(call, QUIRKS[target.quirks], bound)


async def test_a_bug_in_a_meter_costs_an_estimate_and_keeps_no_hold(open_gate: OpenGate) -> None:
    async with open_gate(adapter=Buggy(Forgetful)) as gate:
        await gate.post({**ASK, "model": "m"})
        wallet = await gate.settled()
        (record,) = await gate.records()

        assert (record.kind, record.usage_source) == ("lost", "estimated")
        assert (wallet["held"], wallet["spent"]) == (0, record.charge)
        assert record.charge > 0
        assert gate.metrics.unmetered.series[("meter_failed",)] == 1


async def test_a_bug_ends_the_call_and_names_it_to_the_client(open_gate: OpenGate) -> None:
    async with open_gate(adapter=Buggy(Choking)) as gate:
        status, headers, body = await gate.post({**ASK, "model": "m"})
        wallet = await gate.settled()
        (record,) = await gate.records()

        error = orjson.loads(body)["error"]
        assert (status, error["code"]) == (500, "internal_error")
        assert headers["x-request-id"] == str(UUID(bytes=record.call_id))
        assert record.outcome == Outcome.FAILED
        assert wallet["held"] == 0
        assert gate.metrics.unmetered.series[("internal_error",)] == 1


async def test_a_call_that_is_over_leaves_nothing_for_the_garbage_collector(
    gate: Gatehouse, vendor: Vendor
) -> None:
    model = await vendor.script("a")
    gc.collect()  # what other tests left is not this call's
    gc.disable()
    try:
        await gate.post({**ASK, "model": model})
        await gate.settled()
        left = [each for each in gc.get_objects() if isinstance(each, LiveCall)]
    finally:
        gc.enable()

    assert left == []


async def test_a_client_that_leaves_is_charged_what_the_vendor_charges(
    gate: Gatehouse, vendor: Vendor
) -> None:
    model = await vendor.script(
        "d", input_tokens=100, output_tokens=500, deltas=500, interval_s=0.001
    )
    line = await gate.line()
    line.writer.write(request({**ASK, "model": model, "stream": True}))
    await line.reader.readuntil(b" token")
    line.writer.transport.abort()

    (record,) = await gate.records()
    assert (record.charge, record.outcome) == (EXACT, Outcome.CLIENT_DISCONNECT)
    assert record.usage_source == "reported"


async def test_where_the_policy_says_so_the_vendor_is_left_at_once(
    open_gate: OpenGate, vendor: Vendor
) -> None:
    model = await vendor.script(
        "d", input_tokens=5, output_tokens=5000, deltas=5000, interval_s=0.01
    )
    async with open_gate() as gate:
        provider = gate.calls.terms.config.providers["vendor"]
        object.__setattr__(provider, "on_disconnect", "cancel")
        line = await gate.line()
        line.writer.write(request({**ASK, "model": model, "stream": True}))
        await line.reader.readuntil(b" token")
        line.writer.transport.abort()

        (record,) = await gate.records()

    (entry,) = await vendor.quiet()
    assert entry.left_s is not None
    assert (record.outcome, record.usage_source) == (Outcome.CLIENT_DISCONNECT, "estimated")
    assert record.charge >= 15000


async def test_a_vendor_that_fails_before_it_answers_costs_nothing(
    gate: Gatehouse, vendor: Vendor
) -> None:
    model = await vendor.script("e", status=500, error={"message": "broken"})

    status, _, body = await gate.post({**ASK, "model": model})

    assert status == 502
    assert orjson.loads(body)["error"]["message"] == "broken"
    (record,) = await gate.records()
    assert (record.charge, record.outcome) == (0, Outcome.UPSTREAM_ERROR)
    assert (await gate.settled())["held"] == 0


async def test_a_call_that_the_wallet_cannot_pay_is_refused_with_what_it_could(
    open_gate: OpenGate, vendor: Vendor
) -> None:
    async with open_gate(credit=1_000_000) as gate:
        status, headers, body = await gate.post({**ASK, "model": "m"})

    error = orjson.loads(body)["error"]
    assert (status, error["code"]) == (402, "insufficient_credit")
    assert error["affordable_nanos"] == 1_000_000
    assert error["needed_nanos"] > 9_000_000
    assert headers["x-should-retry"] == "false"
    assert await vendor.log() == []


async def test_credit_that_only_other_calls_hold_is_worth_another_try(
    open_gate: OpenGate, vendor: Vendor
) -> None:
    model = await vendor.script("h", hold_at=-1)
    async with open_gate(credit=10_000_000) as gate:
        first = await gate.line()
        first.writer.write(request({**ASK, "model": model}))
        await vendor.held(1)

        status, headers, body = await gate.post({**ASK, "model": model})
        await vendor.release()

        assert (status, orjson.loads(body)["error"]["code"]) == (429, "credit_held")
        assert int(headers["retry-after"]) >= 1


async def test_redis_has_its_whole_time_for_a_hold_however_long_postgres_took_for_the_key(
    valkey: OwnValkey, vendor: Vendor, tmp_path: Path
) -> None:
    find = knows(PRINCIPAL, after_s=FIND_S)
    changes = {"ledger": {"admission_timeout_s": FIND_S}}
    opened = Gatehouse.opened(valkey.url, vendor, tmp_path, find=find, changes=changes)
    async with opened as gate, asyncio.timeout(10):
        line = await gate.line()
        head, end, body = request({**ASK, "model": "m"}).partition(b"\r\n\r\n")
        line.writer.write(head + end)
        while not gate.parts.authenticator.found["postgres"]:
            await asyncio.sleep(0.01)

        valkey.pause()
        line.writer.write(body)
        await asyncio.sleep(FIND_S / 10)  # much longer than a hold may take at the least
        valkey.resume()

        assert (await line.ask(b""))[0] == 200


async def test_bodies_have_a_limit_together_and_one_that_is_over_makes_room(
    open_gate: OpenGate, vendor: Vendor
) -> None:
    model = await vendor.script("h", hold_at=-1)
    sizes = {"body_bytes_max": 100_000, "body_bytes_in_all": 250_000, "body_timeout_s": 5}
    limits = {**sizes, "timeouts": {"connect_s": 2, "first_byte_s": 5, "idle_s": 5}}
    call = request({**ASK, "model": "m", "user": "x" * 98_000})
    async with open_gate(changes={"limits": limits}) as gate, asyncio.timeout(8):
        unfinished = [await gate.line() for _ in range(2)]
        for line in unfinished:
            line.writer.write(call[:-1])
        while gate.calls.bodies.size < 2 * 98_000:
            await asyncio.sleep(0.01)
        kept = await gate.line()
        kept.writer.write(request({**ASK, "model": model, "user": "x" * 40_000}))
        await vendor.held(1)

        for size in (len(call) - 1, len(call)):  # one more that is unfinished, and a whole one
            one_more = await gate.line()
            status, headers, body = await one_more.ask(call[:size])
            assert (status, headers["retry-after"]) == (503, "1")
            assert orjson.loads(body)["error"]["code"] == "too_many_bodies"
        assert gate.metrics.refusals.series == {("too_many_bodies",): 2}

        unfinished[0].writer.transport.abort()
        while gate.calls.bodies.size > 150_000:
            await asyncio.sleep(0.01)
        assert (await gate.post({**ASK, "model": "m", "user": "x" * 90_000}))[0] == 200
        assert (await unfinished[1].ask(call[-1:]))[0] == 200
        await vendor.release()
        assert (await kept.ask(b""))[0] == 200
        await gate.settled()
        assert gate.calls.bodies.size == 0


async def test_a_gateway_that_is_pointed_at_itself_says_so(gate: Gatehouse) -> None:
    status, _, body = await gate.post({**ASK, "model": "m"}, "x-tollgate-hop: 1")

    assert (status, orjson.loads(body)["error"]["code"]) == (508, "loop_detected")


async def test_calls_with_state_at_the_vendor_are_refused_by_name(gate: Gatehouse) -> None:
    body = {"model": "m", "input": "x", "previous_response_id": "resp_1"}

    status, _, answer = await gate.post(body, path="/v1/responses")

    error = orjson.loads(answer)["error"]
    assert (status, error["param"]) == (400, "previous_response_id")


async def test_a_free_model_passes_without_credit(open_gate: OpenGate) -> None:
    async with open_gate(credit=0) as gate:
        assert (await gate.post({**ASK, "model": "free"}))[0] == 200
        assert (await gate.post({**ASK, "model": "other"}))[0] == 402
        assert (await gate.post({**ASK, "model": "unpriced"}))[0] == 404


async def test_calls_on_one_connection_do_not_wait_for_the_books(gate: Gatehouse) -> None:
    line = await gate.line()
    for _ in range(50):
        assert (await line.ask(request({**ASK, "model": "m"})))[0] == 200

    records = await gate.records()
    assert len({record.call_id for record in records}) == 50
    assert sum(record.charge for record in records) == (await gate.settled())["spent"]


async def test_a_worker_that_stops_ends_the_calls_it_cuts(gate: Gatehouse, vendor: Vendor) -> None:
    model = await vendor.script("h", hold_at=-1)
    line = await gate.line()
    line.writer.write(request({**ASK, "model": model}))
    await vendor.held(1)

    for connection in gate.door.server.connections:
        await connection.shutdown(0.01)

    (record,) = await gate.records()
    assert (record.kind, record.charge) == ("released", 0)
    await vendor.release()
