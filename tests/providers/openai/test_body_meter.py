"""Metering an answer that comes in one piece."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.usage import Source
from providers.adapter import Operation
from providers.openai.body_meter import BODY_BYTES_MAX
from tests.providers.vendor_bytes import USAGE, answer, call, cut, meter, metered

COUNTS = {"input": 12, "output": 5}
RESPONSES = Operation.RESPONSES


def of(operation: Operation = Operation.CHAT, quirks: str = "openai", **fields: Any) -> Any:
    return meter(call(operation, stream=False, **fields), quirks, streamed=False)


def test_an_answer_is_read_at_its_end_and_passes_as_it_came() -> None:
    raw = answer(USAGE, service_tier="flex")
    for size in (1, 7, len(raw)):
        body_meter = of()
        for piece in cut(raw, size):
            assert body_meter.feed(piece) is piece
        assert body_meter.end() == b""

        usage = body_meter.usage()
        assert (usage.counts, usage.source) == (COUNTS, Source.REPORTED)
        assert (usage.model, usage.tier) == ("m-1", "flex")
        assert body_meter.finished
        assert body_meter.failure is None


def test_blank_lines_before_the_answer_are_no_start() -> None:
    body_meter = of()
    body_meter.feed(b"\n\n \n")
    assert not body_meter.started
    assert body_meter.usage().source is Source.NONE

    body_meter.feed(answer(USAGE))
    body_meter.end()
    assert body_meter.started
    assert body_meter.usage().counts == COUNTS


def test_embeddings_have_no_output() -> None:
    tree = {"data": [{"embedding": "AAAA" * 999}], "model": "e", "usage": {"prompt_tokens": 8}}
    usage = metered(of(Operation.EMBEDDINGS, input="x"), json.dumps(tree).encode())

    assert (usage.counts, usage.source) == ({"input": 8}, Source.REPORTED)


def test_embeddings_without_a_report_are_estimated() -> None:
    one = call(Operation.EMBEDDINGS, input="x" * 900)
    usage = metered(meter(one, streamed=False), b'{"data": [{"embedding": "AAAA"}]}')

    assert usage.source is Source.ESTIMATED
    assert usage.counts == {"input": -(-one.input_bound // 3)}


def test_moderations_are_free_unless_the_vendor_reports() -> None:
    raw = b'{"id": "modr-1", "model": "omni", "results": []}'
    reported = b'{"results": [], "usage": {"prompt_tokens": 8, "total_tokens": 8}}'

    assert metered(of(Operation.MODERATIONS), raw).source is Source.NONE
    assert metered(of(Operation.MODERATIONS), reported).counts == {"input": 8}


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        (None, {"output": 3}),
        ({"prompt_tokens": 12}, {"input": 12, "output": 3}),
        ({"completion_tokens": 5}, {"output": 5}),
        ({"prompt_tokens": "12", "completion_tokens": -1}, {"output": 3}),
    ],
)
def test_what_the_vendor_does_not_say_is_estimated(usage: Any, counts: dict[str, int]) -> None:
    told = metered(of(), answer(usage, text="Hello there"))

    assert told.source is Source.ESTIMATED
    expected = {"input": told.counts["input"], **counts} if "input" not in counts else counts
    assert told.counts == expected


def test_the_words_of_a_response_are_estimated_too() -> None:
    output = [{"type": "message", "content": [{"type": "output_text", "text": "x" * 40}]}]
    raw = json.dumps({"status": "completed", "output": output, "usage": None}).encode()

    assert metered(of(RESPONSES), raw).counts["output"] == 10


def test_a_response_tells_its_tools() -> None:
    output = [{"type": "web_search_call", "action": {"type": "search"}}]
    usage = {"input_tokens": 12, "output_tokens": 5}
    raw = json.dumps({"status": "completed", "output": output, "usage": usage}).encode()

    assert metered(of(RESPONSES), raw).counts == {**COUNTS, "web_searches": 1}


def test_an_error_that_comes_as_a_good_answer_costs_nothing() -> None:
    body_meter = of()
    usage = metered(body_meter, b'{"error": {"message": "No", "code": 429}}')

    assert (usage.counts, usage.source) == ({}, Source.NONE)
    assert body_meter.failure.status == 429


def test_a_response_that_failed_costs_what_is_reported() -> None:
    error = {"code": "server_error", "message": "It broke"}
    tree: dict[str, Any] = {"status": "failed", "error": error, "output": [], "usage": None}
    body_meter = of(RESPONSES)

    assert metered(body_meter, json.dumps(tree).encode()).source is Source.NONE
    assert body_meter.failure.message == "It broke"
    tree["usage"] = {"input_tokens": 12, "output_tokens": 5}
    assert metered(of(RESPONSES), json.dumps(tree).encode()).counts == COUNTS


def test_a_response_in_the_background_is_not_free() -> None:
    usage = metered(of(RESPONSES), b'{"status": "queued", "output": [], "usage": null}')

    assert (usage.source, "input" in usage.counts) == (Source.ESTIMATED, True)


def test_an_answer_that_is_cut_is_estimated_by_its_bytes() -> None:
    body_meter = of()
    body_meter.feed(answer(USAGE, text="x" * 4_000)[:2_000])
    assert body_meter.usage().counts["output"] == 500
    body_meter.end()

    assert body_meter.usage().counts["output"] == 500
    assert body_meter.usage().source is Source.ESTIMATED
    assert not body_meter.finished


@pytest.mark.parametrize("raw", [b"", b"  ", b"<html>" + b"x" * 9_999, b"text", b"[1]", b"7"])
def test_what_is_no_answer_costs_nothing(raw: bytes) -> None:
    usage = metered(of(), raw)

    assert (usage.counts, usage.source) == ({}, Source.NONE)


@pytest.mark.parametrize("number", [b"NaN", b"-Infinity", b"1" + b"0" * 400])
def test_json_that_only_python_reads_is_read(number: bytes) -> None:
    raw = b'{"usage": {"prompt_tokens": 12, "completion_tokens": ' + number + b"}}"
    usage = metered(of(), raw)

    assert (usage.counts, usage.source) == ({"input": 12}, Source.ESTIMATED)
    assert usage.flags == ("bad_usage:completion_tokens",)


def test_an_answer_longer_than_is_kept_is_estimated() -> None:
    body_meter = of(Operation.EMBEDDINGS)
    piece = b" " * (BODY_BYTES_MAX // 8) + b"x"
    for _ in range(9):
        body_meter.feed(piece)
    body_meter.end()

    assert body_meter.usage().source is Source.ESTIMATED
    assert body_meter.usage().flags == ("unreadable_answer",)


def test_no_event_can_end_half_a_body() -> None:
    assert of().ending(None) == b""


def test_groqs_own_place_for_the_usage_is_read() -> None:
    assert metered(of(quirks="groq"), answer(x_groq={"usage": USAGE})).counts == COUNTS


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["usage", "error", "output", "choices", "cost", "prompt_tokens"]),
                inner,
            )
        ),
    )
)
def test_no_answer_makes_it_raise_or_count_below_zero(tree: Any) -> None:
    for operation in Operation:
        usage = metered(of(operation), json.dumps(tree).encode())

        assert all(count >= 0 for count in usage.counts.values())
