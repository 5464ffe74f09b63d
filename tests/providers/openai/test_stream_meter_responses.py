"""Metering the stream of a response."""

from typing import Any

import pytest

from ledger.usage import Source
from providers.adapter import Operation
from tests.providers.vendor_bytes import (
    call,
    delta_event,
    meter,
    metered,
    named_event,
    response,
)

RESPONSES = Operation.RESPONSES
COUNTS = {"input": 12, "output": 5}


@pytest.mark.parametrize(
    ("kind", "output"),
    [("response.completed", 7), ("response.incomplete", 1024), ("response.failed", 7)],
)
def test_every_terminal_event_of_a_response_tells_its_usage(kind: str, output: int) -> None:
    of = meter(call(RESPONSES))
    usage = {"input_tokens": 12, "output_tokens": output, "total_tokens": 12 + output}
    stream = response("response.created") + delta_event("Hello") + response(kind, usage)

    assert of.feed(stream) == stream
    assert of.finished
    assert of.usage().counts == {"input": 12, "output": output}
    assert of.usage().source is Source.REPORTED


def test_a_response_that_failed_without_usage_costs_nothing() -> None:
    error = {"code": "server_error", "message": "It broke"}
    of = meter(call(RESPONSES))
    of.feed(delta_event("Hello") + response("response.failed", error=error))

    bare = meter(call(RESPONSES))
    bare.feed(delta_event("Hello") + response("response.failed"))

    assert of.usage().source is bare.usage().source is Source.NONE
    assert bare.failure is not None
    assert of.failure is not None
    assert (of.failure.message, of.failure.status) == ("It broke", 502)


def test_an_error_event_of_a_response_is_told_in_either_shape() -> None:
    quota = {"type": "insufficient_quota", "code": "insufficient_quota", "message": "Pay"}
    flat = {"type": "error", "code": "rate_limit_exceeded", "message": "Slow", "param": None}
    for tree, message in (({"type": "error", "error": quota}, "Pay"), (flat, "Slow")):
        of = meter(call(RESPONSES))
        of.feed(response("response.created") + named_event(tree))

        assert of.failure is not None
        assert (of.failure.message, of.failure.status) == (message, 429)
        assert of.usage().source is Source.NONE


def test_a_response_cut_off_is_estimated() -> None:
    of = meter(call(RESPONSES))
    usage = metered(of, response("response.created") + delta_event("Hello") * 30)

    assert (usage.counts["output"], usage.source) == (38, Source.ESTIMATED)
    assert not of.finished


@pytest.mark.parametrize(
    "kind",
    [
        "response.output_text.delta",
        "response.reasoning_summary_text.delta",
        "response.reasoning_text.delta",
        "response.function_call_arguments.delta",
        "response.refusal.delta",
        "response.audio.transcript.delta",
    ],
)
def test_every_delta_of_a_response_counts(kind: str) -> None:
    usage = metered(meter(call(RESPONSES)), delta_event("abcdefgh", kind) * 10)

    assert usage.counts["output"] == 20


def test_sound_in_a_response_counts_as_deltas_only() -> None:
    kind = "response.audio.delta"

    assert metered(meter(call(RESPONSES)), delta_event("QUJD" * 99, kind) * 3).counts["output"] == 3


SEARCH = {"type": "web_search_call", "status": "completed", "action": {"type": "search"}}
OPENED = {**SEARCH, "action": {"type": "open_page"}}
CODE = {"type": "code_interpreter_call", "container_id": "cntr_1", "status": "completed"}


def done(item: Any, index: int) -> bytes:
    return named_event({"type": "response.output_item.done", "output_index": index, "item": item})


def test_tools_the_vendor_ran_are_counted_once_however_often_they_are_shown() -> None:
    items = [
        SEARCH,
        OPENED,
        {**SEARCH, "status": "failed"},
        {"type": "file_search_call"},
        CODE,
        {**CODE, "id": "ci_2"},
        {"type": "image_generation_call"},
        {"type": "function_call", "name": "f"},
        SEARCH,
        {"type": 7},
    ]
    usage = {"input_tokens": 12, "output_tokens": 5}
    in_events = b"".join(done(item, index) for index, item in enumerate(items))
    at_the_end = response("response.completed", usage, output=items)
    tools = {"web_searches": 2, "file_searches": 1, "code_sessions": 1, "images": 1}

    for stream in (
        in_events + at_the_end,
        at_the_end,
        in_events + response("response.completed", usage, output=[]),
    ):
        assert metered(meter(call(RESPONSES)), stream).counts == {**COUNTS, **tools}
