"""Errors within a stream, and how we end one ourselves."""

import json

import pytest

from ledger.usage import Source
from providers.adapter import Failure, Operation
from tests.providers.vendor_bytes import (
    USAGE,
    call,
    chunk,
    delta_event,
    event,
    meter,
    metered,
    response,
)

RESPONSES = Operation.RESPONSES
COUNTS = {"input": 12, "output": 5}


ERROR = {"message": "No capacity", "type": "overloaded_error", "code": None}


@pytest.mark.parametrize(
    ("stream", "status"),
    [
        (event({"error": ERROR}), 503),
        (event({"error": {"message": "slow down", "code": 429}}), 429),
        (event({"error": {"message": "x", "code": "rate_limit_exceeded"}}), 429),
        (event({"error": "it broke"}), 502),
        (b"event: error\n" + event(ERROR), 503),
        (b"event: error\ndata: it broke\n\n", 502),
        (chunk(error={"message": "x", "code": 401}, choices=[]), 401),
        (chunk(x_groq={"error": "x"}), 502),
    ],
)
def test_an_error_in_place_of_the_first_event_is_told_and_costs_nothing(
    stream: bytes, status: int
) -> None:
    of = meter()
    shown = of.feed(stream) + of.end()

    assert of.failure is not None
    assert of.failure.status == status
    assert (of.usage().counts, of.usage().source) == ({}, Source.NONE)
    assert shown == stream


def test_an_error_after_output_is_charged_for_the_output_and_not_for_its_text() -> None:
    long = {**ERROR, "message": "x" * 10_000}
    usage = metered(meter(), b"".join([chunk("ab")] * 50) + event({"error": long}))

    assert (usage.counts["output"], usage.source) == (50, Source.ESTIMATED)


def test_usage_beside_an_error_is_what_the_vendor_charges() -> None:
    of = meter()
    stream = chunk("a") + chunk(choices=[], error=ERROR, usage=USAGE)

    assert of.feed(stream) == stream  # an error is never withheld
    assert of.usage().counts == COUNTS


def test_a_null_or_empty_error_is_none() -> None:
    of = meter()
    of.feed(chunk("a", error=None) + chunk("b", error={}) + chunk("c", error=""))

    assert of.failure is None


def test_a_stream_that_broke_off_before_any_output_costs_nothing() -> None:
    of = meter()
    of.feed(chunk(""))
    waiting = of.usage().source
    of.end()

    assert (waiting, of.usage().source) == (Source.ESTIMATED, Source.NONE)


def vendor_failure() -> Failure | None:
    of = meter()
    of.feed(event({"error": ERROR}))
    return of.failure


def test_a_stream_ends_in_good_order_when_its_limit_is_reached() -> None:
    of = meter()
    of.feed(chunk("Hello"))

    ended = meter()
    assert ended.feed(chunk("Hello") + of.ending(None))
    assert ended.finished
    assert b'"finish_reason":"length"' in of.ending(None)
    assert b"usage" not in of.ending(None)


def test_a_client_that_asked_is_told_the_usage_when_the_limit_is_reached() -> None:
    of = meter(call(asks_usage=True))
    of.feed(chunk("ab") * 9)

    assert metered(meter(), chunk("ab") + of.ending(None)).counts["output"] == 9


def test_a_response_ends_as_incomplete_when_its_limit_is_reached() -> None:
    of = meter(call(RESPONSES))
    of.feed(response("response.created", id="resp_7") + delta_event("ab") * 9)
    ending = of.ending(None)
    tree = json.loads(ending.partition(b"data: ")[2])

    assert ending.startswith(b"event: response.incomplete\n")
    assert (tree["sequence_number"], tree["response"]["id"]) == (4, "resp_7")
    assert tree["response"]["usage"]["output_tokens"] == 9


def test_an_error_of_ours_is_kept_apart_from_half_an_event() -> None:
    failure = vendor_failure()
    asked, unasked = meter(call(asks_usage=True)), meter()
    for of in (asked, unasked):
        of.feed(chunk("a") + b'data: {"id"')

    assert asked.ending(failure).startswith(b"\n\ndata: ")
    assert unasked.ending(failure).startswith(b"data: ")  # the half was kept back
