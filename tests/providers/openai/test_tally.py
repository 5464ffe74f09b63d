"""What an answer has told so far."""

import json
from typing import Any

import msgspec
import pytest

from ledger.usage import Source, Usage
from providers.adapter import Operation
from providers.custom import QUIRKS
from providers.openai.tally import ITEMS_MAX, Tally, text_bytes
from tests.providers.vendor_bytes import USAGE, call


def tally(operation: Operation = Operation.CHAT, quirks: str = "openai") -> Tally:
    return Tally(call(operation), QUIRKS[quirks], bound=10_000)


def usage(of: Tally) -> Usage:
    return of.usage(started=True, over=True, finished=True)


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("abc", 3),
        ("\u00e9\u4e2d", 5),
        ("\ud800", 1),
        ([{"type": "text", "text": "ab"}, {"type": "thinking", "thinking": "cd"}], 4),
        ({"function": {"name": "f", "arguments": "{}"}, "id": "call_1"}, 3),
        (None, 0),
        (7, 0),
        ({"url": "x" * 99}, 0),
    ],
)
def test_only_the_models_own_words_count_as_text(value: Any, size: int) -> None:
    assert text_bytes(value) == size


def test_text_nested_without_end_does_no_harm() -> None:
    nested: Any = "abc"
    for _ in range(5_000):
        nested = [nested]

    assert text_bytes(nested) == 3


def test_nothing_is_charged_for_what_never_started() -> None:
    assert tally().usage(started=False, over=False, finished=False).source is Source.NONE


def test_asking_twice_gives_the_same_answer() -> None:
    of = tally()
    of.report({**USAGE, "prompt_tokens_details": {"cached_tokens": 2}})

    assert usage(of) == usage(of)
    usage(of).counts.clear()  # type: ignore[attr-defined]  # a caller who breaks the rules
    assert usage(of).counts == {"input": 10, "cache_read": 2, "output": 5}


def test_a_report_amid_text_and_below_it_is_believed_only_at_the_end() -> None:
    of = tally()
    of.deltas, of.text_bytes = 806, 4 * 806
    of.report({**USAGE, "completion_tokens": 1}, amid_text=True)

    assert of.usage(started=True, over=True, finished=False).counts["output"] == 806
    assert of.usage(started=True, over=True, finished=True).counts["output"] == 1


def test_a_nested_report_is_merged_field_by_field() -> None:
    of = tally()
    of.report({**USAGE, "prompt_tokens_details": {"cached_tokens": 2, "audio_tokens": 3}})
    of.report({"prompt_tokens_details": {"cached_tokens": None, "audio_tokens": 4}})

    assert usage(of).counts == {"input": 6, "cache_read": 2, "input_audio": 4, "output": 5}


def test_reports_nested_without_end_are_merged_in_bounded_depth() -> None:
    of = tally()
    for _ in range(2):
        nested: Any = {}
        for _ in range(5_000):
            nested = {"x": nested}
        of.report({**USAGE, "x": nested})

    assert usage(of).counts == {"input": 12, "output": 5}


def test_names_the_vendor_gives_are_cut() -> None:
    of = tally()
    of.say_model("m" * 999)
    of.say_tier("t" * 999)
    of.say_model("")
    of.say_tier(None)

    assert of.model == "m" * 128
    assert of.tier == "t" * 128


def test_flags_are_few_and_told_once() -> None:
    of = tally()
    for index in range(50):
        of.flag(f"f{index // 2}")

    assert of.flags == [f"f{index}" for index in range(8)]


def test_runs_of_tools_are_bounded() -> None:
    of = tally(Operation.RESPONSES)
    items = [{"type": "file_search_call"}] * (ITEMS_MAX + 9)
    of.count_items(msgspec.Raw(json.dumps(items).encode()))
    of.report(USAGE)

    assert usage(of).counts["file_searches"] == ITEMS_MAX


def test_output_that_cannot_be_read_is_flagged() -> None:
    of = tally(Operation.RESPONSES)
    of.count_items(msgspec.Raw(b'{"_call": 1}'))
    of.count_item(msgspec.Raw(b'"_call"'), 0)

    assert of.flags == ["unreadable_output"]


def test_a_fee_for_each_request_is_counted_once() -> None:
    of = tally(quirks="perplexity")
    of.report(USAGE)

    assert usage(of).counts["requests"] == 1
    assert tally(quirks="perplexity").usage(started=False, over=True, finished=False).counts == {}
