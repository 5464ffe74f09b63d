"""Whatever a vendor sends and however it is cut: nothing raises, and the same is metered and shown.

In this process alone. Short form: 20,000 answers; LONG=1: a million.
"""

import json
import random
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from ledger.usage import Source, Usage
from providers.adapter import Call, Failure, Meter, Operation
from providers.custom import QUIRKS
from providers.sse import EVENT_BYTES_MAX
from tests.providers.vendor_bytes import (
    DONE,
    USAGE,
    answer,
    call,
    chunk,
    delta_event,
    meter,
    named_event,
    response,
    stop,
    usage_chunk,
)
from tests.scenarios.scale import LONG, SEED

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(3_600 if LONG else 180)]

ANSWERS = 1_000_000 if LONG else 20_000
WARM = 2_000  # answers after which whatever is kept for good is there
GROWTH_BYTES_MAX = 50 << 20
LINE_BYTES = 1 << 30 if LONG else 64 << 20
BOUND = 10_000  # input tokens
TOLD_MAX = 1_000_000_000  # what is above it is no count

ODD_USAGES = [
    *(None, 7, "12", [1], True, {}, {"prompt_tokens": -1}, {"prompt_tokens": 2**70}),
    {"prompt_tokens": 12, "completion_tokens": "5"},
    {"prompt_tokens": 12, "completion_tokens": 1e308},
    {"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 4},
    {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 999}, "completion_tokens": 1},
    {"input_tokens": 5, "output_tokens": {"nested": {"deep": [[[]]]}}},
    {"completion_tokens": 999_999_999, "prompt_tokens": 999_999_999},
    {"completion_tokens_details": {"reasoning_tokens": 50}, **USAGE},
]
PIECES = [
    *(chunk("Hello"), chunk(" w\u00f6rld \U0001f600"), chunk("\u4e2d\u6587"), chunk(""), stop()),
    *(usage_chunk(), stop(usage=USAGE), chunk("a", usage=USAGE), DONE, b"data:\n\n", b"\n\n"),
    *(usage_chunk(usage) for usage in ODD_USAGES),
    *(chunk("x", usage=usage) for usage in ODD_USAGES),
    *(delta_event("Hello"), delta_event("\u00e9" * 40), response("response.created")),
    *(response("response.completed", usage) for usage in ODD_USAGES),
    response("response.completed", {"input_tokens": 12, "output_tokens": 5}),
    response("response.failed"),
    named_event({"type": "response.output_item.done", "item": {"type": "web_search_call"}}),
    named_event({"type": "error", "message": "broken"}),
    *(b": keep-alive\n\n", b"event: ping\ndata: {}\n\n", b"id: 7\nretry: 3\n\n", b"\xef\xbb\xbf"),
    b'data: {"error": {"message": "no", "type": "server_error", "code": 500}}\n\n',
    b'event: error\ndata: {"message": "bad"}\n\n',
    *(
        b"event: error\ndata: \xff\xfe\n\n",
        b'data: {"choices": [{"delta": {"content": "\xff"}}]}\n\n',
    ),
    *(b"data: {\n\n", b'data: "text"\n\n', b"data: null\n\n", b"data: [1, 2]\n\n", b"garbage\n\n"),
    *(b'data: {"usage": NaN}\n\n', b'data: {"choices": 5, "usage": {"a": 1e9999}}\n\n'),
    b'data: {"choices": [{"index": "x", "delta": [], "finish_reason": {}}]}\n\n',
    b'data: {"choices": [null, 1, {"delta": null}]}\n\n',
    b"data: " + b"[" * 3_000 + b"]" * 3_000 + b"\n\n",
    b'data: {"choices": ' + b'[{"delta": ' * 600 + b"1" + b"}]" * 600 + b"}\n\n",
    b'data: {"usage": ' + b'{"a": ' * 700 + b"1" + b"}" * 700 + b"}\n\n",
    chunk("long " * 2_000),
    b"data: " + b"x" * 20_000 + b"\n\n",
    b'data: {"id": "c",\ndata: "choices": [{"index": 0,\ndata: "delta": {"content": "ml"}}]}\n\n',
]
BODIES = [answer(usage) for usage in [USAGE, *ODD_USAGES]] + [
    *(b"", b"{", b"[]", b"null", b"\xff\xfe", b"<html>busy</html>", b'{"error": "no"}'),
    answer(USAGE, "long " * 2_000),
    b'{"choices": ' + b"[" * 3_000,
    b'{"usage": {"prompt_tokens": 1' + b"0" * 4_400 + b"}}",
]
CALLS = [
    call(operation, **({"asks_usage": asks} if operation is Operation.CHAT else {}))
    for operation in (Operation.CHAT, Operation.COMPLETIONS, Operation.RESPONSES)
    for asks in (False, True)
]
QUIRK_NAMES = sorted(QUIRKS)
LINE_ENDS = (b"\n", b"\n", b"\r\n", b"\r")


class Case(NamedTuple):
    """One answer, and where it is cut."""

    call: Call
    quirks: str
    is_stream: bool
    data: bytes
    cuts: list[int]


class Told(NamedTuple):
    """What came of an answer."""

    shown: bytes
    usage: Usage
    generated: int
    is_finished: bool
    failure: Failure | None
    ending: bytes


def drawn(chance: random.Random) -> Case:
    """One answer of many kinds, often damaged, and its pieces."""
    is_stream = chance.random() < 0.9
    if is_stream:
        data = b"".join(chance.choices(PIECES, k=chance.randrange(1, 9)))
        end = chance.choice(LINE_ENDS)
        if end != b"\n":
            data = data.replace(b"\n", end)
        if chance.random() < 0.1:  # every line its own end
            lines = data.split(b"\n")
            data = b"".join(line + chance.choice(LINE_ENDS) for line in lines)
    else:
        data = chance.choice(BODIES)
    how = chance.random()
    if data and how < 0.25:
        data = data[: chance.randrange(len(data))]
    elif data and how < 0.45:
        at = chance.randrange(len(data))
        data = data[:at] + chance.randbytes(chance.randrange(4)) + data[at + chance.randrange(3) :]
    count = chance.choice((0, 1, 2, 5, 12))
    cuts = sorted(chance.choices(range(len(data) + 1), k=count))
    quirks = chance.choice(QUIRK_NAMES) if chance.random() < 0.5 else "openai"
    return Case(chance.choice(CALLS), quirks, is_stream, data, cuts)


def told(case: Case, cuts: list[int]) -> Told:
    """What the meter says of the answer in these pieces."""
    of: Meter = meter(case.call, case.quirks, streamed=case.is_stream, bound=BOUND)
    bounds = [0, *cuts, len(case.data)]
    shown = [of.feed(case.data[a:b]) for a, b in pairwise(bounds)]
    shown.append(of.end())
    ending = of.ending(None) if case.is_stream else b""
    return Told(b"".join(shown), of.usage(), of.generated(), of.finished, of.failure, ending)


def check(case: Case) -> Source:
    """Assert what must hold of every answer, in one piece and in many."""
    whole = told(case, [])
    assert told(case, case.cuts) == whole, "it matters where it is cut"
    usage = whole.usage
    assert all(type(n) is int and 0 <= n <= 2 * TOLD_MAX for n in usage.counts.values()), usage
    if usage.source is Source.ESTIMATED and b"tokens" not in case.data:
        assert usage.input_tokens() <= BOUND, usage
        assert usage.output_tokens() <= len(case.data), usage
    if case.call.usage_wanted or case.call.operation is Operation.RESPONSES:
        assert whole.shown == case.data
    json.dumps(usage.flags)
    return usage.source


def resident_bytes() -> int:
    """The memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def line_of(size: int) -> Iterator[bytes]:
    """One event without an end, in pieces as they come from a socket."""
    yield b'data: {"choices": [{"delta": {"content": "'
    piece = b"x" * 65_536
    for _ in range(size // len(piece)):
        yield piece
    yield b'"}}]}\n\n'


def test_no_answer_makes_the_meter_raise_or_matters_by_its_cuts_or_keeps_memory() -> None:
    print(f"\nfuzzed streams: seed {SEED}")
    sources = {source.value: 0 for source in Source}
    began_s = time.monotonic()
    before = resident_bytes()
    for number in range(ANSWERS):
        case = drawn(random.Random(f"{SEED}/{number}"))  # noqa: S311 - can be repeated
        try:
            sources[check(case).value] += 1
        except BaseException as error:
            raise AssertionError(f"answer {number} of seed {SEED}: {case}") from error
        if number == WARM:
            before = resident_bytes()
    grown = resident_bytes() - before
    took_s = time.monotonic() - began_s
    assert grown < GROWTH_BYTES_MAX
    assert all(sources.values()), "nothing was reported, or nothing estimated"
    print(
        f"fuzzed streams, seed {SEED}: {ANSWERS:,} answers, whole and in pieces: 0 raised, 0"
        f" differ, {sources}; memory grew by {grown / 2**20:.1f} MiB; {took_s:.0f} s"
    )


def test_a_line_without_an_end_passes_and_is_never_kept() -> None:
    of = meter(call(asks_usage=True), bound=BOUND)
    of.feed(chunk("a"))
    before = high = resident_bytes()
    passed = 0
    for number, piece in enumerate(line_of(LINE_BYTES)):
        passed += len(of.feed(piece))
        if number % 64 == 0:
            high = max(high, resident_bytes())
    of.feed(usage_chunk() + DONE)
    of.end()
    assert passed > LINE_BYTES
    assert of.usage().counts == {"input": 12, "output": 5}
    assert "event_too_long" in of.usage().flags
    assert high - before < GROWTH_BYTES_MAX + EVENT_BYTES_MAX
    print(
        f"a line of {LINE_BYTES >> 20:,} MiB: passed on, metered behind it, memory grew by"
        f" {(high - before) / 2**20:.1f} MiB at most"
    )
