"""What a broken or hostile vendor may send in a stream."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.usage import Source
from providers.adapter import Failure, Operation
from providers.custom import QUIRKS
from tests.providers.vendor_bytes import (
    USAGE,
    call,
    chunk,
    event,
    meter,
    metered,
    usage_chunk,
)

RESPONSES = Operation.RESPONSES
COUNTS = {"input": 12, "output": 5}


SEARCH = {"type": "web_search_call", "status": "completed", "action": {"type": "search"}}


@pytest.mark.parametrize(
    "usage",
    [
        b'{"prompt_tokens": 12, "completion_tokens": Infinity}',
        b'{"prompt_tokens": 12, "completion_tokens": NaN}',
        b'{"prompt_tokens": 12, "completion_tokens": -5}',
        b'{"prompt_tokens": 12, "completion_tokens": 1e308}',
        b'{"prompt_tokens": 12, "completion_tokens": 1e99999999999999999999}',
        b'{"prompt_tokens": 12, "completion_tokens": "12"}',
        b'{"prompt_tokens": 12, "completion_tokens": true}',
        b'{"prompt_tokens": 12, "completion_tokens": 1' + b"0" * 400 + b"}",
    ],
)
def test_garbage_in_the_usage_is_flagged_and_estimated(usage: bytes) -> None:
    stream = b"".join([chunk("ab")] * 9) + b'data: {"choices": [], "usage": ' + usage + b"}\n\n"
    told = metered(meter(), stream)

    assert told.counts == {"input": 12, "output": 9}
    assert (told.source, told.flags) == (Source.ESTIMATED, ("bad_usage:completion_tokens",))


@pytest.mark.parametrize("usage", ["12", 7, [1], True])
def test_usage_that_is_no_object_is_flagged(usage: Any) -> None:
    stream = chunk("ab") + chunk("cd", usage=usage)

    assert metered(meter(), stream).flags == ("bad_usage:usage",)


@pytest.mark.parametrize(
    "data",
    [
        b"not json",
        b'{"choices": [',
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"choices":' * 50_000,
    ],
)
def test_an_unreadable_event_passes_and_is_flagged(data: bytes) -> None:
    for operation in (Operation.CHAT, RESPONSES):
        of = meter(call(operation))
        stream = b"data: " + data + b"\n\n"

        assert of.feed(stream) + of.end() == stream
        assert of.usage().flags == ("unreadable_event",)


@pytest.mark.parametrize(
    "odd",
    [
        {"choices": 7},
        {"choices": ["x", None, {"delta": 7}, {"delta": {"content": 7}}, {"index": []}]},
        {"choices": [{"delta": {"content": {"deep": [[[]]]}}, "finish_reason": {}}]},
        {"model": 7, "service_tier": [], "x_groq": 7, "cost": "x"},
        {"type": 7, "delta": 7, "response": 7},
        {"type": "response.completed", "response": {"output": 7, "usage": 7, "model": 7}},
        {"type": "response.output_item.done", "item": 7, "output_index": []},
        {"type": "response.output_item.done", "item": SEARCH, "output_index": []},
        {"type": "x.delta", "delta": [[["x"]]]},
    ],
)
def test_odd_shapes_do_no_harm(odd: Any) -> None:
    for operation in (Operation.CHAT, RESPONSES):
        of = meter(call(operation))
        stream = event(odd)

        assert of.feed(stream) + of.end() == stream
        assert sum(of.usage().counts.values()) <= 2_000


def test_a_shape_that_only_the_lenient_reader_takes_is_counted_the_same() -> None:
    odd = {"choices": [{"index": 0, "delta": {"content": "abcdefgh"}}, "odd"]}
    told = metered(meter(), event(odd) * 10 + event({"choices": ["odd"], "usage": USAGE}))
    response_odd = {"type": "response.completed", "response": {"usage": USAGE, "output": 7}}

    assert told.counts == COUNTS
    assert metered(meter(), event(odd) * 10).counts["output"] == 20
    assert metered(meter(call(RESPONSES)), event(response_odd)).counts == COUNTS


_TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("choices", "delta", "content", "usage", "error", "type", "response"),
                    *("prompt_tokens", "completion_tokens", "output", "index", "x_groq", "cost"),
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(
    st.lists(_TREES, max_size=5),
    st.sampled_from([Operation.CHAT, Operation.COMPLETIONS, RESPONSES, Operation.EMBEDDINGS]),
    st.sampled_from(sorted(QUIRKS)),
)
def test_no_input_makes_it_raise_or_count_below_zero(
    trees: list[Any], operation: Operation, quirks: str
) -> None:
    of = meter(call(operation, asks_usage=True), quirks)
    stream = b"".join(b"data: " + json.dumps(tree).encode() + b"\n\n" for tree in trees)

    assert of.feed(stream) + of.end() == stream
    assert all(count >= 0 for count in of.usage().counts.values())
    assert of.ending(None)
    assert of.ending(Failure("It broke", "server_error", None, None, 502))


def test_an_event_that_was_too_long_is_flagged() -> None:
    of = meter()
    of.feed(chunk("a"))
    of.feed(b"data: " + b"x" * (17 * 1024 * 1024))
    of.feed(b"\n\n" + usage_chunk())
    of.end()

    assert of.usage().counts == COUNTS
    assert of.usage().flags == ("event_too_long",)
