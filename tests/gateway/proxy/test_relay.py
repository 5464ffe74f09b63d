"""Streams: what the client sees of them, at what pace, and how a broken one ends."""

import pytest

from ledger.record import Outcome
from tests.gateway.proxy.gatehouse import API_KEY, Gatehouse, OpenGate, events, request
from tests.vendor import Vendor

ASK = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 600, "stream": True}


@pytest.mark.parametrize("trouble", [{"reset_after": 50}, {"eof_after": 50}])
async def test_a_stream_that_breaks_ends_in_an_error_event_and_costs_what_came(
    gate: Gatehouse, vendor: Vendor, trouble: dict[str, int]
) -> None:
    model = await vendor.script(
        "b", input_tokens=100, output_tokens=500, deltas=500, text=" t", **trouble
    )

    status, _, body = await gate.post({**ASK, "model": model})

    assert status == 200
    assert "error" in events(body)[-1]
    assert b"[DONE]" not in body
    (record,) = await gate.records()
    assert record.outcome in (Outcome.UPSTREAM_ERROR, Outcome.TRUNCATED)
    assert (record.usage_source, record.usage["output"]) == ("estimated", 50)


async def test_an_error_inside_a_stream_passes_and_its_text_costs_nothing(
    gate: Gatehouse, vendor: Vendor
) -> None:
    model = await vendor.script(
        "e",
        deltas=500,
        output_tokens=500,
        text=" t",
        error_after=50,
        error={"message": "overloaded " * 100},
    )

    _, _, body = await gate.post({**ASK, "model": model})

    assert events(body)[-1]["error"]["message"].startswith("overloaded")
    (record,) = await gate.records()
    assert (record.outcome, record.usage["output"]) == (Outcome.UPSTREAM_ERROR, 50)


async def test_a_key_of_ours_that_a_vendor_quotes_in_its_stream_is_not_shown(
    gate: Gatehouse, vendor: Vendor
) -> None:
    told = {"message": f"Incorrect API key provided: {API_KEY}."}
    model = await vendor.script("e", deltas=5, error_after=1, error=told)

    _, _, body = await gate.post({**ASK, "model": model, "stream": True})

    assert API_KEY.encode() not in body
    assert b"Incorrect API key provided: [secret]." in body


EVENT = b'data: {"model":"m","choices":[{"index":0,"delta":{"content":" t"}}]}\n\n'
LAST = b'data: {"model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":3}}\n\n'
DONE = b"data: [DONE]\n\n"
STREAM = EVENT * 3 + LAST + USAGE + DONE


@pytest.mark.parametrize("encoding", ["", "gzip"])
@pytest.mark.parametrize("framing", ["chunked", "close"])
@pytest.mark.parametrize(
    "cuts", [[], [5], [len(EVENT)], [len(STREAM) - len(DONE)], [*range(1, len(STREAM))]]
)
async def test_a_stream_is_the_same_however_it_comes(
    gate: Gatehouse, vendor: Vendor, cuts: list[int], framing: str, encoding: str
) -> None:
    model = await vendor.script(
        "cut",
        body=STREAM.decode(),
        content_type="text/event-stream",
        cuts=cuts,
        framing=framing,
        encoding=encoding,
    )

    status, _, body = await gate.post({**ASK, "model": model})

    assert (status, body) == (200, EVENT * 3 + LAST + DONE)
    (record,) = await gate.records()
    assert (record.charge, record.outcome) == (10 * 3000 + 3 * 15000, Outcome.SUCCESS)


@pytest.mark.parametrize("cuts", [[], [len(STREAM)], [len(STREAM) + 5]])
async def test_a_key_quoted_in_half_an_event_behind_the_end_is_not_shown(
    gate: Gatehouse, vendor: Vendor, cuts: list[int]
) -> None:
    told = STREAM.decode() + f'data: {{"error": {{"message": "wrong key {API_KEY}"}}}}'
    model = await vendor.script("e", body=told, content_type="text/event-stream", cuts=cuts)

    status, _, body = await gate.post({**ASK, "model": model})

    assert status == 200
    assert body.startswith(EVENT * 3 + LAST + DONE)
    assert API_KEY.encode() not in body
    (record,) = await gate.records()
    assert record.outcome == Outcome.SUCCESS


async def test_a_stream_that_stalls_is_given_up_and_the_client_told(
    open_gate: OpenGate, vendor: Vendor
) -> None:
    model = await vendor.script("stall", deltas=100, output_tokens=100, text=" t", hold_at=10)
    timeouts = {"connect_s": 1, "first_byte_s": 5, "idle_s": 0.2}
    changes = {"limits": {"timeouts": timeouts}}
    async with open_gate(changes=changes) as gate:
        _, _, body = await gate.post({**ASK, "model": model})
        (record,) = await gate.records()
        wallet = await gate.settled()

    assert events(body)[-1]["error"]["code"] == "upstream_timeout"
    assert (record.outcome, record.usage["output"]) == (Outcome.TIMEOUT, 10)
    assert wallet["held"] == 0
    await vendor.release()


async def test_events_are_passed_on_one_by_one(gate: Gatehouse, vendor: Vendor) -> None:
    model = await vendor.script("p", deltas=3, output_tokens=3, hold_at=2)
    line = await gate.line()
    line.writer.write(request({**ASK, "model": model}))
    await vendor.held(1)

    await line.reader.readuntil(b" token")
    await line.reader.readuntil(b" token")

    await vendor.release()
    assert (await line.reader.readuntil(b"0\r\n\r\n")).count(b" token") == 1


async def test_usage_is_shown_to_those_who_asked_for_it(gate: Gatehouse, vendor: Vendor) -> None:
    model = await vendor.script("u", input_tokens=7, output_tokens=3)

    _, _, unasked = await gate.post({**ASK, "model": model})
    _, _, asked = await gate.post(
        {**ASK, "model": model, "stream_options": {"include_usage": True}}
    )

    assert [event["usage"] for event in events(unasked) if event.get("usage")] == []
    assert events(asked)[-1]["usage"]["prompt_tokens"] == 7
    assert [entry.body.count("include_usage") for entry in await vendor.log()] == [1, 1]
