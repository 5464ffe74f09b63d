"""Trying again: only before the first byte, only where it is safe, never for a client that left."""

import base64
import gzip

import orjson
import pytest

from gateway import errors
from gateway.proxy.forward import client_error
from ledger.record import Outcome
from providers.adapter import Failure
from tests.gateway.proxy.gatehouse import Gatehouse, OpenGate, request
from tests.vendor import Vendor

ASK = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 10}


async def test_a_vendor_that_stumbles_is_asked_once_more(gate: Gatehouse, vendor: Vendor) -> None:
    model = await vendor.script("once", status=503, error={"message": "busy"})

    status, _, _ = await gate.post({**ASK, "model": model})

    assert status == 503
    assert len(await vendor.log()) == 2
    (record,) = await gate.records()
    assert record.attempts == 2


BODY = orjson.dumps(
    {
        "model": "served",
        "choices": [{"index": 0, "message": {"content": "hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
    }
)


@pytest.mark.parametrize("encoding", ["", "gzip"])
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("cuts", [[], [0], [7], [0, 7, 20, len(BODY) - 1]])
async def test_a_body_is_the_same_however_it_comes(
    gate: Gatehouse, vendor: Vendor, cuts: list[int], framing: str, encoding: str
) -> None:
    model = await vendor.script(
        "cut", body=BODY.decode(), cuts=cuts, framing=framing, encoding=encoding
    )

    status, _, body = await gate.post({**ASK, "model": model})

    assert (status, body) == (200, BODY)
    (record,) = await gate.records()
    assert (record.charge, record.attempts) == (10 * 3000 + 2 * 15000, 1)
    assert (record.outcome, record.model_served) == (Outcome.SUCCESS, "served")
    assert record.first_byte_us > 0


@pytest.mark.parametrize("status", [418, 419, 498, 499])
async def test_a_refusal_with_a_status_that_no_standard_names_arrives_whole(
    gate: Gatehouse, vendor: Vendor, status: int
) -> None:
    model = await vendor.script("odd", status=status, error={"message": "no room"})
    line = await gate.line()

    for _ in range(2):  # and its connection goes on
        told, _, body = await line.ask(request({**ASK, "model": model}))
        assert (told, orjson.loads(body)["error"]["message"]) == (status, "no room")

    assert [record.charge for record in await gate.records()] == [0, 0]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_with_a_status_that_no_standard_names_is_whole_and_charged(
    gate: Gatehouse, vendor: Vendor, *, stream: bool
) -> None:
    model = await vendor.script("odd", status=299, input_tokens=10, output_tokens=2)

    status, _, body = await gate.post({**ASK, "model": model, "stream": stream})

    assert status == 299
    assert body.endswith(b"data: [DONE]\n\n" if stream else b"}")
    (record,) = await gate.records()
    assert (record.outcome, record.charge) == (Outcome.SUCCESS, 10 * 3000 + 2 * 15000)


@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
async def test_an_answer_that_cannot_be_kept_is_given_up(
    gate: Gatehouse, vendor: Vendor, kind: str
) -> None:
    model = await vendor.script(
        "bomb",
        raw=base64.b64encode(gzip.compress(b" " * (65 << 20))).decode(),
        headers={"content-encoding": "gzip"},
        content_type=kind,
    )

    status, _, body = await gate.post({**ASK, "model": model})

    assert (status, orjson.loads(body)["error"]["code"]) == (502, "upstream_unreachable")
    (record,) = await gate.records()
    assert (record.charge, record.attempts) == (0, 1)


async def test_a_good_answer_without_a_body_is_passed_on_and_costs_nothing(
    gate: Gatehouse, vendor: Vendor
) -> None:
    model = await vendor.script("empty", body="")

    status, _, body = await gate.post({**ASK, "model": model})

    assert (status, body) == (200, b"")
    (record,) = await gate.records()
    assert (record.charge, record.outcome, record.attempts) == (0, Outcome.TRUNCATED, 1)


async def test_an_error_in_a_good_body_is_a_failed_attempt(gate: Gatehouse, vendor: Vendor) -> None:
    model = await vendor.script("e", body='{"error": {"message": "overloaded", "code": 503}}')

    status, _, body = await gate.post({**ASK, "model": model})

    assert (status, orjson.loads(body)["error"]["message"]) == (503, "overloaded")
    (record,) = await gate.records()
    assert (record.charge, record.outcome) == (0, Outcome.UPSTREAM_ERROR)


@pytest.mark.parametrize("status", [400, 404, 409, 422])
async def test_a_refusal_is_final(gate: Gatehouse, vendor: Vendor, status: int) -> None:
    model = await vendor.script("no", status=status, error={"message": "no", "code": "because"})

    answered, _, body = await gate.post({**ASK, "model": model})

    assert (answered, orjson.loads(body)["error"]["code"]) == (status, "because")
    assert len(await vendor.log()) == 1


async def test_another_target_serves_where_the_first_is_exhausted(
    open_gate: OpenGate, vendor: Vendor
) -> None:
    tired = await vendor.script("tired", status=429, error={"message": "slow down"})
    fresh = await vendor.script("fresh", input_tokens=10, output_tokens=2)
    targets = [{"provider": "vendor", "model": name} for name in (tired, fresh)]
    changes = {"models": {"m": {"targets": targets}}}
    async with open_gate(changes=changes) as gate:
        status, _, _ = await gate.post({**ASK, "model": "m"})

        (record,) = await gate.records()

    assert status == 200
    assert (record.model_requested, record.model_target) == ("m", fresh)
    assert (record.attempts, record.charge) == (2, 10 * 3000 + 2 * 15000)


async def test_an_error_as_the_first_event_keeps_its_status(
    gate: Gatehouse, vendor: Vendor
) -> None:
    model = await vendor.script(
        "e", error_after=-1, error={"message": "too fast", "type": "rate_limit_error"}
    )

    status, _, body = await gate.post({**ASK, "model": model, "stream": True})

    assert (status, orjson.loads(body)["error"]["message"]) == (429, "too fast")
    (record,) = await gate.records()
    assert (record.charge, record.outcome) == (0, Outcome.UPSTREAM_ERROR)


async def test_a_vendor_that_is_not_there_is_told_apart_from_one_that_is_slow(
    open_gate: OpenGate, vendor: Vendor
) -> None:
    slow = await vendor.script("slow", hold_at=-1)
    timeouts = {"connect_s": 1, "first_byte_s": 0.2, "idle_s": 1}
    changes = {"limits": {"timeouts": timeouts}}
    async with open_gate(changes=changes) as gate:
        late, _, _ = await gate.post({**ASK, "model": slow})

        (record,) = await gate.records()

    assert (late, record.outcome) == (504, Outcome.TIMEOUT)
    assert len(await vendor.log()) == 1, "what may have arrived is not sent twice"


async def test_a_client_that_left_is_not_worth_another_try(gate: Gatehouse, vendor: Vendor) -> None:
    model = await vendor.script("h", hold_at=-1, status=503, error={"message": "busy"})
    line = await gate.line()
    line.writer.write(request({**ASK, "model": model}))
    await vendor.held(1)
    line.writer.transport.abort()
    while not all(live.client_gone for live in gate.calls.live.values()):
        await vendor.state()
    await vendor.release()

    (record,) = await gate.records()
    assert record.attempts == 1
    assert len(await vendor.quiet()) == 1


@pytest.mark.parametrize(
    ("vendors", "ours"),
    [
        *((400, 400), (401, 502), (402, 502), (403, 403), (404, 404), (408, 504), (413, 413)),
        *((422, 422), (429, 429), (500, 502), (502, 502), (503, 503), (504, 504), (529, 503)),
    ],
)
def test_the_vendors_quarrel_with_us_is_not_the_clients(vendors: int, ours: int) -> None:
    error = client_error(Failure("m", "t", "c", None, vendors), "7")

    assert error.status_now == ours
    assert isinstance(error, errors.GatewayError)
    if ours in (429, 503):
        assert error.headers["retry-after"] == "7"
