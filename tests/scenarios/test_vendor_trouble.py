"""Whatever goes wrong at the vendor: nothing is charged for nothing, and the client is told."""

import asyncio
import base64
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pytest

from tests.scenarios.caller import CHAT, RESPONSES, Answer, asks, post
from tests.scenarios.deployment import Deployment, Key
from tests.scenarios.invariants import (
    assert_books,
    assert_no_forgotten_sockets,
    open_holds,
    owed,
)
from tests.vendor import Vendor

pytestmark = pytest.mark.scenario
TEXT = " abc"  # four bytes: one token by every way of estimating
SCRIPT = {"input_tokens": 100, "output_tokens": 500, "text": TEXT}
ERROR = {"message": "The model is overloaded: " + "x" * 400, "type": "overloaded", "code": "busy"}
RELEASED_S_MAX = 1.0


def events(body: bytes) -> Iterator[dict[str, Any]]:
    """The data of every event of a stream."""
    for line in body.decode().splitlines():
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


def error_in(answer: Answer) -> dict[str, Any]:
    """The last event of a stream, which is an error."""
    *_, last = events(answer.body)
    found: dict[str, Any] = last["error"]
    return found


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
async def test_an_error_as_the_first_event_is_a_real_error_and_costs_nothing(
    tollgate: Deployment, key: Key, vendor_apart: Vendor, path: str
) -> None:
    refused = {"message": "slower", "type": "requests", "code": "rate_limit_exceeded"}
    model = await vendor_apart.script("first", **SCRIPT, error_after=-1, error=refused)

    answer = await post(tollgate, key, path, asks(path, model, stream=True))

    assert (answer.status, answer.error["code"]) == (429, "rate_limit_exceeded")
    (record,) = await assert_books(tollgate, key, records=1, charge=0)
    assert record["kind"] == "released"
    assert len(await vendor_apart.quiet()) == 1
    print(f"A9a {path[4:]}: error as first event, client got 429, 0 nano, hold released")


class Break(NamedTuple):
    """How a stream breaks after 50 tokens, and what its record and its client say of it."""

    script: Mapping[str, Any]
    outcome: str
    code: str


BREAKS = {
    "b error event": Break({"error_after": 50, "error": ERROR}, "upstream_error", "busy"),
    "c reset": Break({"reset_after": 50}, "upstream_error", "upstream_error"),
    "c cut": Break({"cut_after": 50}, "upstream_error", "upstream_error"),
    "d end without [DONE]": Break({"eof_after": 50}, "truncated", "upstream_truncated"),
}


@pytest.mark.parametrize("how", BREAKS)
@pytest.mark.parametrize("path", [CHAT, RESPONSES])
async def test_a_stream_that_breaks_costs_what_was_relayed_and_ends_in_an_error_event(
    tollgate: Deployment, key: Key, vendor_apart: Vendor, path: str, how: str
) -> None:
    script, outcome, code = BREAKS[how]
    model = await vendor_apart.script("breaks", **SCRIPT, **script)

    answer = await post(tollgate, key, path, asks(path, model, stream=True))

    assert answer.status == 200
    *_, last = events(answer.body)
    assert (last.get("error") or last)["code"] == code
    (record,) = await assert_books(tollgate, key, records=1)
    assert (record["outcome"], record["usage_source"]) == (outcome, "estimated")
    assert record["output"] == 50, "the text of the error is no output"
    assert record["charge"] == record["input"] * 3000 + 50 * 15000
    assert len(await vendor_apart.quiet()) == 1, "nobody tries again after the first byte"
    print(f"A9{how} {path[4:]}: {outcome}, output 50, {record['charge']:,} nano, error event sent")


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
async def test_an_error_event_stands_apart_from_half_an_event(
    tollgate: Deployment, key: Key, vendor_apart: Vendor, path: str
) -> None:
    options = {"stream_options": {"include_usage": True}} if path == CHAT else {}
    for cut in range(9_000, 9_300, 30):
        model = await vendor_apart.script("half", **SCRIPT, reset_after_bytes=cut)

        answer = await post(tollgate, key, path, asks(path, model, stream=True, **options))

        last = answer.body.strip().rsplit(b"\n\n", 1)[-1].splitlines()[-1]
        assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "upstream_error"
    await assert_books(tollgate, key, records=10)


async def test_a_stream_cut_behind_its_terminal_event_is_whole(
    tollgate: Deployment, key: Key, vendor_apart: Vendor
) -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
    chunk = {"choices": [{"index": 0, "delta": {"content": TEXT}, "finish_reason": "stop"}]}
    body = b"data: %b\n\ndata: [DONE]\n\n" % json.dumps({**chunk, "usage": usage}).encode()
    wire = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"%x\r\n%b\r\n" % (len(body), body)
    )
    model = await vendor_apart.script("early", raw_wire=base64.b64encode(wire).decode())

    answer = await post(tollgate, key, CHAT, asks(CHAT, model, stream=True))

    assert answer.body == body
    (record,) = await assert_books(tollgate, key, records=1, charge=100 * 3000 + 7 * 15000)
    assert record["outcome"] == "success"


ENDINGS = {
    "completed": ("success", "reported", 7),
    "incomplete": ("success", "reported", 7),
    "failed": ("upstream_error", "reported", 7),
    "none": ("truncated", "estimated", 7),
}


@pytest.mark.parametrize("terminal", ENDINGS)
async def test_a_response_is_charged_by_whichever_event_ends_it(
    tollgate: Deployment, key: Key, vendor_apart: Vendor, terminal: str
) -> None:
    script = {"input_tokens": 100, "output_tokens": 7, "text": TEXT, "terminal": terminal}
    model = await vendor_apart.script("ends", **script)

    await post(tollgate, key, RESPONSES, asks(RESPONSES, model, stream=True))

    (record,) = await assert_books(tollgate, key, records=1)
    said = (record["outcome"], record["usage_source"], record["output"])
    assert said == ENDINGS[terminal]
    print(f"A6 {terminal}: {record['outcome']}, output 7 {record['usage_source']}")


FAILURES: dict[str, tuple[str, dict[str, Any], int]] = {
    "500": ("{}", {"status": 500}, 502),
    "429": ("{}", {"status": 429}, 429),
    "connection refused": ("dead/{}", {}, 502),
    "name not found": ("nowhere/{}", {}, 502),
    "closed before the head": ("{}", {"close_before_head": True}, 502),
    "reset before the head": ("{}", {"reset_before_head": True}, 502),
    "no first byte in time": ("hasty/{}", {"head_s": 5}, 504),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("failure", FAILURES)
async def test_a_call_that_fails_before_any_output_is_free_at_once(
    tollgate: Deployment, key: Key, vendor_apart: Vendor, failure: str, *, stream: bool
) -> None:
    route, script, status = FAILURES[failure]
    name = await vendor_apart.script("fails", **script)

    answer = await post(tollgate, key, CHAT, asks(CHAT, route.format(name), stream=stream))

    failed_s = time.monotonic()
    while await open_holds(tollgate, key):
        assert time.monotonic() - failed_s < RELEASED_S_MAX
    took_s = time.monotonic() - failed_s
    assert answer.status == status
    (record,) = await assert_books(tollgate, key, records=1, charge=0)
    assert record["kind"] == "released"
    print(
        f"A10 {failure}, {'stream' if stream else 'whole'}: {status}, 0 nano,"
        f" released within {took_s * 1000:.0f} ms, {record['attempts']} attempts"
    )


@pytest.mark.parametrize("stream", [False, True])
async def test_a_report_of_zero_is_a_zero_and_not_a_missing_report(
    tollgate: Deployment, key: Key, vendor_apart: Vendor, *, stream: bool
) -> None:
    zeros = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    model = await vendor_apart.script("zeros", output_tokens=5, usage_fields=zeros)

    await post(tollgate, key, CHAT, asks(CHAT, model, stream=stream))

    (record,) = await assert_books(tollgate, key, records=1, charge=0)
    assert (record["usage_source"], record["kind"]) == ("reported", "settled")
    assert not stream or "output_reported_zero" in record["flags"]
    print(f"A10 zeros, {'stream' if stream else 'whole'}: reported 0, charged 0 nano")


@pytest.mark.parametrize("encoding", ["", "gzip", "deflate", "br", "zstd"])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_compressed_unasked_is_metered_and_passes_readable(
    tollgate: Deployment, key: Key, vendor_apart: Vendor, *, encoding: str, stream: bool
) -> None:
    script = {**SCRIPT, "output_tokens": 50, "encoding": encoding}
    model = await vendor_apart.script("packed", **script)

    answer = await post(tollgate, key, CHAT, asks(CHAT, model, stream=stream))

    assert answer.status == 200
    assert "content-encoding" not in answer.headers
    if stream:
        deltas = [chunk["choices"][0]["delta"].get("content") for chunk in events(answer.body)]
        assert "".join(delta or "" for delta in deltas) == TEXT * 50
    else:
        assert answer.tree["choices"][0]["message"]["content"] == TEXT * 50
    (entry,) = await vendor_apart.quiet()
    assert entry.header("accept-encoding") == "identity"
    (record,) = await assert_books(tollgate, key, records=1, charge=owed([entry]))
    assert record["usage_source"] == "reported"
    how = "stream" if stream else "whole"
    print(f"D7 {encoding or 'identity'} {how}: {record['charge']:,} nano, metered exactly")


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_cannot_be_unpacked_is_502_and_free(
    tollgate: Deployment, key: Key, vendor_apart: Vendor, *, stream: bool
) -> None:
    model = await vendor_apart.script("spoiled", **SCRIPT, encoding="corrupt")

    answer = await post(tollgate, key, CHAT, asks(CHAT, model, stream=stream))

    assert answer.status == 502
    (record,) = await assert_books(tollgate, key, records=1, charge=0)
    assert record["kind"] == "released"
    print(f"D7 corrupt gzip {'stream' if stream else 'whole'}: 502, 0 nano, hold released")


async def test_much_trouble_at_once_leaves_no_socket_behind(
    tollgate: Deployment, vendor_apart: Vendor
) -> None:
    key = await tollgate.new_key(credit_usd="1000")
    scripts: list[dict[str, Any]] = [
        {},
        *({"cut_after": after} for after in (0, 1, 50)),
        *({"reset_after": after} for after in (0, 1, 50)),
        {"garbage": True},
        {"close_before_head": True},
        {"encoding": "corrupt"},
        {"status": 500},
    ]
    async with asyncio.TaskGroup() as group:
        for number, script in enumerate(scripts * 4):
            name = await vendor_apart.script(f"trouble-{number}", **SCRIPT, **script)
            body = asks(CHAT, name, stream=number % 2 == 0)
            group.create_task(post(tollgate, key, CHAT, body), name=name)

    await assert_books(tollgate, key, records=4 * len(scripts))
    await assert_no_forgotten_sockets(vendor_apart.port, tollgate.ports["data"])
