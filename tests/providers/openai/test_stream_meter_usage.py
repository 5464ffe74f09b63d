"""The usage of a stream, reported or estimated."""

from typing import Any

import pytest

from ledger.usage import Source
from providers.adapter import Operation
from tests.providers.vendor_bytes import (
    DONE,
    USAGE,
    call,
    chunk,
    event,
    meter,
    metered,
    stop,
    usage_chunk,
)

COUNTS = {"input": 12, "output": 5}
PLAIN = chunk("Hel") + chunk("lo") + stop()


def test_usage_told_three_times_counts_once() -> None:
    stream = (
        chunk("Hello", x_groq={"id": "r"})
        + stop(x_groq={"id": "r", "usage": USAGE}, usage=USAGE)
        + usage_chunk()
        + DONE
    )

    assert metered(meter(quirks="groq"), stream).counts == COUNTS


def test_usage_in_groqs_own_place_alone_counts() -> None:
    assert metered(meter(quirks="groq"), PLAIN + stop(x_groq={"usage": USAGE})).counts == COUNTS


def test_cumulative_usage_is_overwritten_and_not_added() -> None:
    stream = b"".join(
        chunk("a", usage={"prompt_tokens": 12, "completion_tokens": n, "total_tokens": 12 + n})
        for n in (1, 2, 3, 4, 5)
    )

    usage = metered(meter(quirks="perplexity"), stream)

    assert usage.counts == {**COUNTS, "requests": 1}
    assert usage.source is Source.REPORTED


def test_of_each_field_the_last_value_that_is_not_null_counts() -> None:
    first = {"prompt_tokens": 99, "completion_tokens": 1, "cached_tokens": 4}
    second = {"prompt_tokens": 12, "completion_tokens": None, "x": {"a": 0}}
    third = {"completion_tokens": 5, "x": {"a": 0, "b": None}, "cached_tokens": 0}
    stream = chunk("a") + b"".join(usage_chunk(usage) for usage in (first, second, third))

    usage = metered(meter(), stream)

    assert (usage.counts, usage.flags) == (COUNTS, ())


def test_an_explicit_zero_is_not_replaced_by_an_estimate() -> None:
    zeros = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    usage = metered(meter(), PLAIN + usage_chunk(zeros) + DONE)

    assert (usage.counts, usage.source) == ({}, Source.REPORTED)
    assert usage.flags == ("output_reported_zero",)


def test_what_was_sent_after_the_last_report_is_estimated() -> None:
    early = {"prompt_tokens": 12, "completion_tokens": 1}
    usage = metered(meter(), chunk("a", usage=early) + b"".join([chunk("b")] * 30))

    assert usage.source is Source.ESTIMATED
    assert usage.counts == {"input": 12, "output": 31}


def test_a_vendor_that_reports_more_than_was_seen_is_believed() -> None:
    early = {"prompt_tokens": 12, "completion_tokens": 500}
    usage = metered(meter(), chunk("a", usage=early) + chunk("b"))

    assert (usage.counts["output"], usage.source) == (500, Source.ESTIMATED)


def test_without_a_report_the_output_is_the_greater_of_deltas_and_bytes_by_four() -> None:
    short = metered(meter(), b"".join([chunk("ab")] * 806))
    long = metered(meter(), chunk("x" * 4_001))
    wide = metered(meter(), chunk("\u4e2d" * 100))

    assert short.counts["output"] == 806
    assert long.counts["output"] == 1_001
    assert wide.counts["output"] == 75
    assert {u.source for u in (short, long, wide)} == {Source.ESTIMATED}


def test_without_a_report_the_input_is_a_third_of_the_bound_and_never_above_the_hold() -> None:
    of = call(messages=[{"role": "user", "content": "x" * 3_000}])

    assert metered(meter(of), PLAIN).counts["input"] == -(-of.input_bound // 3)
    assert metered(meter(of, bound=50), PLAIN).counts["input"] == 50


@pytest.mark.parametrize(
    "delta",
    [
        {"content": "abcdefgh"},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "abcdefgh"}]}]},
        {"reasoning_content": "abcdefgh"},
        {"reasoning_content": "abcdefgh", "reasoning": "abcdefgh"},
        {"reasoning": "abcdefgh", "reasoning_details": [{"text": "abcdefgh"}]},
        {"refusal": "abcdefgh"},
        {"tool_calls": [{"index": 0, "function": {"name": "abcd", "arguments": "efgh"}}]},
        {"function_call": {"name": "abcd", "arguments": "efgh"}},
        {"audio": {"transcript": "abcdefgh", "data": "QUJD"}},
    ],
)
def test_every_kind_of_content_counts(delta: Any) -> None:
    usage = metered(meter(), chunk(choices=[{"index": 0, "delta": delta}]) * 10)

    assert usage.counts["output"] == 20


def test_the_text_of_a_legacy_completion_counts() -> None:
    of = call(Operation.COMPLETIONS, prompt="p")
    pieces = event({"choices": [{"index": 0, "text": "abcdefgh", "finish_reason": None}]}) * 10
    last = event({"choices": [], "usage": USAGE})

    assert metered(meter(of), pieces).counts["output"] == 20
    assert metered(meter(of), pieces + last).counts == COUNTS


def test_the_model_and_the_tier_are_those_the_vendor_names() -> None:
    stream = (
        chunk("a", model="", service_tier=None)
        + chunk("b", model="m-served", service_tier="auto")
        + usage_chunk(service_tier="priority", model=None)
    )
    usage = metered(meter(), stream)

    assert (usage.model, usage.tier) == ("m-served", "priority")


def test_the_tier_may_stand_in_the_usage() -> None:
    usage = metered(meter(quirks="mistral"), stop(usage={**USAGE, "service_tier": "standard"}))

    assert usage.tier == "standard"


def test_a_cost_is_read_where_the_vendor_tells_it() -> None:
    in_usage = stop(usage={**USAGE, "cost": 0.0000375})
    beside = stop(usage=USAGE, cost={"usd": 0.00012525, "diem": 0})
    ticks = usage_chunk({**USAGE, "cost_in_usd_ticks": 6_881_001})

    assert metered(meter(quirks="openrouter"), in_usage).reported_nanos == 37_500
    assert metered(meter(quirks="venice"), beside).reported_nanos == 125_250
    assert metered(meter(quirks="xai"), ticks).reported_nanos == 688_101
    assert metered(meter(quirks="openai"), in_usage).reported_nanos is None


def test_a_chat_with_search_options_costs_a_search() -> None:
    of = call(web_search_options={})

    assert metered(meter(of), PLAIN + usage_chunk()).counts == {**COUNTS, "web_searches": 1}
    assert metered(meter(of, "groq"), PLAIN + usage_chunk()).counts == COUNTS
