"""Events of a known form are counted without decoding, to the very same result."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from providers.custom import QUIRKS
from providers.openai.chunk import decode_chunk as decode
from providers.openai.chunk import form_of, text_length
from providers.openai.stream_meter import StreamMeter
from providers.sse import Block
from tests.providers.vendor_bytes import DONE, call, chunk, cut, event, stop, usage_chunk


class Decoding(StreamMeter):
    """A meter that decodes every event."""

    def _is_known(self, event: bytes) -> bool:  # noqa: ARG002 - it knows none
        return False


def delta(name: str, text: Any, *, compact: bool = True, **fields: Any) -> bytes:
    choice = {"index": 0, "delta": {name: text}, "logprobs": None, "finish_reason": None}
    if name == "text":
        choice = {"index": 0, "text": text, "finish_reason": None}
    tree = {"id": "c", "model": "m-1", "choices": [choice], **fields}
    separators = (",", ":") if compact else (", ", ": ")
    told = json.dumps(tree, separators=separators, ensure_ascii=len(name) % 2 == 0)
    return b"data: " + told.encode() + b"\n\n"


def block(raw: bytes) -> Block:
    return Block(raw, raw[6:-2])


_TEXTS = st.sampled_from(["a", " the", "\n", '"', "\\", "é", "日本", "", " x" * 60, "\x7f"])
_SHAPES: list[dict[str, Any]] = [
    *[{"name": name} for name in ("content", "reasoning_content", "reasoning", "text", "refusal")],
    {"name": "content", "compact": False},
    {"name": "content", "model": "m-2", "service_tier": "flex"},
    {"name": "content", "obfuscation": "aB3"},
    {"name": "content", "usage": {"prompt_tokens": 12, "completion_tokens": 2}},
    {"name": "content", "x_groq": {"usage": {"prompt_tokens": 12, "completion_tokens": 2}}},
    {"name": "content", "cost": {"usd": 1}},
    {"name": "content", "error": {"message": "no"}},
]
# A few events in a row that differ in their texts alone.
_RUNS = st.builds(
    lambda shape, texts: [delta(text=text, **shape) for text in texts],
    st.sampled_from(_SHAPES),
    st.lists(_TEXTS, min_size=1, max_size=4),
)
_ODD = st.sampled_from(
    [
        chunk("a", model="m-2"),
        chunk("b", service_tier="flex"),
        chunk("c", usage=None),
        chunk("d", usage={"prompt_tokens": 12, "completion_tokens": 1, "service_tier": "slow"}),
        chunk("e", cost={"usd": 1}),
        chunk("f", error={"message": "no"}),
        chunk("g", x_groq={"usage": {"prompt_tokens": 1, "completion_tokens": 1}}),
        chunk("h", note={"content": "elsewhere"}),
        event({"note": {"content": "elsewhere"}, "choices": [{"delta": {"content": "i"}}]}),
        b'data: {"choices":[{"delta":{"content":"x","content":"longer"}}]}\n\n',
        b'data: {"choices":[{"delta":{"\\"content": "x","content":"longer"}}]}\n\n',
        event({"choices": [{"delta": {"content": "x"}}, {"index": 1, "delta": {"content": "y"}}]}),
        b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n',
        b'data: {"choices":[{"delta":{"content":"\x01"}}]}\n\n',
        b'data: {"choices":[{"delta":{"content":"k"},"finish_reason":"stop"}]}\n\n',
        b'data:{"choices":[{"delta":{"content":"k"}}]}\n\n',
        b'event: error\ndata: {"choices":[{"delta":{"content":"k"}}]}\n\n',
        b'data: {"choices":[{"delta":\r\n\r\n',
        b": comment\n\n",
        b"data: [DONE]\n\n",
        stop(),
        usage_chunk(),
    ]
)


@settings(max_examples=1_000)
@given(
    st.lists(_RUNS | st.lists(_ODD, max_size=2), max_size=6),
    st.integers(1, 400) | st.none(),
    st.integers(0, 1),
)
def test_a_stream_is_counted_as_if_every_event_were_decoded(
    runs: list[list[bytes]], size: int | None, asks: int
) -> None:
    events = [each for run in runs for each in run]
    pieces = events if size is None else list(cut(b"".join(events), size))
    of = call(asks_usage=bool(asks))
    meters = StreamMeter(of, QUIRKS["openai"], 9_000), Decoding(of, QUIRKS["openai"], 9_000)

    shown = [[each.feed(piece) for piece in pieces] + [each.end()] for each in meters]

    assert shown[0] == shown[1]
    assert told(meters[0]) == told(meters[1])


def told(of: StreamMeter) -> dict[str, Any]:
    """All that a meter knows."""
    tally = ("deltas", "text_bytes", "model", "tier", "failure", "flags", "_deltas_at_report")
    own = ("_last", "_ended", "started", "finished", "failure")
    return {
        "usage": of.usage(),
        **{f"tally {name}": getattr(of._tally, name) for name in tally},
        **{name: getattr(of, name) for name in own},
    }


def test_a_known_event_tells_its_model_and_tier_again() -> None:
    of = StreamMeter(call(), QUIRKS["openai"], 9_000)
    usual = delta("content", "a", model="m-1", service_tier="flex")
    of.feed(usual)
    of.feed(delta("content", "a", model="m-2", service_tier="fast"))
    assert of._is_known(usual)

    assert (of.usage().model, of.usage().tier) == ("m-1", "flex")


def test_an_event_behind_half_a_comment_is_part_of_the_comment() -> None:
    of = StreamMeter(call(asks_usage=True), QUIRKS["openai"], 9_000)
    of.feed(delta("content", "one"))
    of.feed(b": half")
    of.feed(delta("content", "two"))

    assert of._tally.text_bytes == 3


@pytest.mark.parametrize("name", ["content", "reasoning_content", "reasoning", "text"])
@pytest.mark.parametrize("fields", [{}, {"obfuscation": "aB3"}, {"usage": None}])
@pytest.mark.parametrize("compact", [True, False])
def test_the_form_of_a_usual_event_is_learned(
    name: str, fields: dict[str, Any], *, compact: bool
) -> None:
    first = delta(name, "Hello", compact=compact, **fields)
    form = form_of(block(first), decode(first[6:-2]))

    assert form is not None
    assert text_length(form, first) == 5
    if fields.get("obfuscation"):
        fields = {"obfuscation": "longer than before"}
    assert text_length(form, delta(name, " there", compact=compact, **fields)) == 6
    for odd in ("", "\n", '"', "\\"):
        assert text_length(form, delta(name, odd, compact=compact, **fields)) == 0
    assert text_length(form, first + first) == 0
    assert text_length(form, first[:-1]) == 0
    assert text_length(form, first.replace(b"Hello", b"H\xff")) == 0
    assert text_length(form, first.replace(b"Hello", b"H\xc3\xa9")) == 3


def test_most_of_a_stream_is_known_after_its_first_words() -> None:
    of = StreamMeter(call(), QUIRKS["openai"], 9_000)
    of.feed(chunk("") + chunk("one"))

    assert of._is_known(chunk(" two"))
    assert not of._is_known(stop())
    assert not of._is_known(chunk(" two", model="m-2"))
    assert not of._is_known(DONE)


def test_a_stream_without_a_form_is_tried_ever_more_rarely() -> None:
    of = StreamMeter(call(), QUIRKS["openai"], 9_000)
    tries = set()
    forms = 0
    for number in range(1_000):
        of.feed(chunk(str(number), number=number))
        tries.add(of._next_try)
        forms += of._form is not None

    assert len(tries) < 12
    assert forms < 120
