"""What passes of a stream while it is metered, and when it has started and finished."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.usage import Source
from providers.adapter import Operation
from tests.providers.vendor_bytes import (
    DONE,
    USAGE,
    call,
    chunk,
    cut,
    delta_event,
    meter,
    metered,
    response,
    stop,
    usage_chunk,
)

RESPONSES = Operation.RESPONSES
COUNTS = {"input": 12, "output": 5}
PLAIN = chunk("Hel") + chunk("lo") + stop()
NULLED = chunk("Hel", usage=None) + chunk("lo", usage=None) + stop(usage=None)


def passed(stream: bytes, *, asks_usage: bool = False, size: int = 10_000, **fields: Any) -> bytes:
    """What the client sees of a stream that comes in pieces of `size`."""
    of = meter(call(asks_usage=asks_usage, **fields))
    return b"".join([*(of.feed(piece) for piece in cut(stream, size)), of.end()])


@pytest.mark.parametrize("asks_usage", [True, False])
@pytest.mark.parametrize(
    ("stream", "shown_unasked"),
    [
        (NULLED + usage_chunk() + DONE, NULLED + DONE),  # only if asked, which we always do
        (PLAIN + usage_chunk() + DONE, PLAIN + DONE),  # always
        (PLAIN + DONE, PLAIN + DONE),  # never
        (chunk("Hello") + stop(usage=USAGE) + DONE, chunk("Hello") + stop(usage=USAGE) + DONE),
        (chunk("Hello", usage=USAGE) + DONE, chunk("Hello", usage=USAGE) + DONE),
    ],
    ids=["if asked", "always", "never", "in the last choice", "in the content"],
)
def test_a_usage_chunk_is_shown_only_if_asked_and_all_else_passes_unchanged(
    stream: bytes, shown_unasked: bytes, *, asks_usage: bool
) -> None:
    of = meter(call(asks_usage=asks_usage))

    shown = of.feed(stream) + of.end()

    assert shown == (stream if asks_usage else shown_unasked)
    if b"prompt_tokens" in stream:
        assert (of.usage().counts, of.usage().source) == (COUNTS, Source.REPORTED)
    else:
        assert of.usage().source is Source.ESTIMATED


def test_a_chunk_of_which_nothing_is_withheld_is_the_object_itself() -> None:
    for of in (meter(), meter(call(asks_usage=True)), meter(call(RESPONSES))):
        first, second = chunk("a"), chunk("b") + chunk("c")

        assert of.feed(first) is first
        assert of.feed(second) is second


def test_half_an_event_is_kept_until_it_is_known_not_to_be_the_usage() -> None:
    of = meter()
    whole = usage_chunk()

    assert of.feed(chunk("a") + whole[:30]) == chunk("a")
    assert of.feed(whole[30:-1]) == b""
    assert of.feed(whole[-1:] + DONE) == DONE


def test_a_client_that_asked_gets_every_byte_at_once() -> None:
    of = meter(call(asks_usage=True))
    stream = PLAIN + usage_chunk() + DONE

    for piece in cut(stream, 7):
        assert of.feed(piece) == piece
    assert of.end() == b""
    assert of.usage().counts == COUNTS


VARIED = (
    b": OPENROUTER PROCESSING\n\n"
    + chunk("H\u00e9", usage=None)
    + chunk('"usage": {"prompt_tokens": 999, "completion_tokens": 999}')
    + chunk("\u4e2d", choices=[], prompt_filter_results=[{}])
    + stop(usage=None)
    + b": comment before the usage\n"
    + usage_chunk({**USAGE, "prompt_tokens_details": {"cached_tokens": 2}})
    + chunk(choices=[], moderation={"flagged": False})
    + DONE
)


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("asks_usage", [True, False])
def test_bytes_and_usage_are_the_same_wherever_the_stream_is_cut(
    line_end: bytes, *, asks_usage: bool
) -> None:
    stream = VARIED.replace(b"\n", line_end)
    expected = passed(stream, asks_usage=asks_usage)
    for at in range(len(stream) + 1):
        of = meter(call(asks_usage=asks_usage))
        shown = of.feed(stream[:at]) + of.feed(stream[at:]) + of.end()

        assert shown == expected
        assert of.usage().counts == {"input": 10, "cache_read": 2, "output": 5}
        assert of.finished
        assert of.failure is None


@given(st.lists(st.integers(0, len(VARIED)), max_size=12))
def test_bytes_and_usage_are_the_same_in_any_pieces(places: list[int]) -> None:
    bounds = [0, *sorted(places), len(VARIED)]
    of = meter()

    shown = b"".join([*(of.feed(VARIED[a:b]) for a, b in pairwise(bounds)), of.end()])

    assert shown == passed(VARIED)
    assert of.usage().counts == {"input": 10, "cache_read": 2, "output": 5}


def test_a_comment_beside_withheld_usage_still_passes() -> None:
    assert b": comment before the usage\n" in passed(VARIED)
    assert b'"completion_tokens": 5' not in passed(VARIED)


def test_the_last_event_needs_no_blank_line() -> None:
    for ending in (usage_chunk().rstrip(b"\n"), usage_chunk().rstrip(b"\n") + b"\n"):
        of = meter()

        assert of.feed(PLAIN + ending) + of.end() == PLAIN
        assert of.usage().counts == COUNTS


@pytest.mark.parametrize(
    "text",
    [
        '"usage"',
        '{"usage":{"prompt_tokens":999}}',
        "data: [DONE]\n\n",
        'data: {"error": {"message": "x"}}\n\n',
        '"finish_reason":"stop"',
    ],
)
def test_text_that_looks_like_the_protocol_is_text(text: str) -> None:
    of = meter()
    stream = chunk(text) + chunk(None, choices=[{"index": 0, "delta": {"reasoning": text}}])

    assert of.feed(stream) == stream
    assert of.usage().source is Source.ESTIMATED
    assert (of.failure, of.finished) == (None, False)


def test_usage_need_not_be_in_the_last_event_and_empty_choices_are_no_usage() -> None:
    first = chunk(choices=[], prompt_filter_results=[{"x": 1}], id="", model="")
    last = chunk(choices=[], moderation={"flagged": False})

    assert passed(first + PLAIN + usage_chunk() + last + DONE) == first + PLAIN + last + DONE
    assert metered(meter(), first + PLAIN + usage_chunk() + last + DONE).counts == COUNTS


def test_nothing_has_started_before_an_event_that_carries_something() -> None:
    of = meter()
    of.feed(b": OPENROUTER PROCESSING\n\n: again\n\n")
    assert not of.started
    assert of.usage().source is Source.NONE

    of.feed(chunk(""))
    assert of.started


def test_a_response_starts_after_its_prelude() -> None:
    of = meter(call(RESPONSES))
    of.feed(response("response.created") + response("response.in_progress"))
    assert not of.started

    of.feed(delta_event("a"))
    assert of.started


def test_a_chat_is_finished_by_done_or_by_all_its_finish_reasons() -> None:
    of = meter()
    of.feed(PLAIN)
    assert not of.finished  # the usage may still come
    of.feed(DONE)
    assert of.finished

    ended, cut_off = meter(), meter()
    ended.feed(PLAIN)
    ended.end()
    cut_off.feed(chunk("Hel"))
    cut_off.end()
    assert (ended.finished, cut_off.finished) == (True, False)


def test_all_of_several_choices_must_have_ended() -> None:
    of = meter(call(n=2))
    of.feed(stop() + stop())
    of.end()
    assert not of.finished

    of = meter(call(n=2))
    of.feed(stop() + stop(choices=[{"index": 1, "delta": {}, "finish_reason": "length"}]))
    of.end()
    assert of.finished
