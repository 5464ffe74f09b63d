"""The usual report is read a shorter way, to the very same result."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from providers.adapter import Operation
from providers.custom import QUIRKS
from providers.openai.report import COUNT_MAX, Reading, _read_any, _read_plain, read_report

CHAT = Operation.CHAT

_ODD_NUMBERS: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([0, 1, 3, 5, 7, 40, -1, COUNT_MAX, COUNT_MAX + 1]),
    st.sampled_from([Decimal(0), Decimal(5), Decimal("NaN")]),
    st.sampled_from([None, True, False, "", "5", [], {}]),
)
_SMALL = st.sampled_from([0, 0, 1, 3, 5])
_PLAIN_DETAILS = st.dictionaries(
    st.sampled_from(
        ["cached_tokens", "reasoning_tokens", "audio_tokens", "prompt_tokens", "text_tokens", "new"]
    ),
    _SMALL | _ODD_NUMBERS,
    max_size=3,
)
_OPTIONAL = {
    "prompt_tokens_details": _PLAIN_DETAILS | _ODD_NUMBERS,
    "completion_tokens_details": _PLAIN_DETAILS | _ODD_NUMBERS,
    "input_tokens": _ODD_NUMBERS,
    "output_tokens": _ODD_NUMBERS,
    "cached_tokens": _ODD_NUMBERS,
    "reasoning_tokens": _ODD_NUMBERS,
    "cost": _ODD_NUMBERS,
    "new": _ODD_NUMBERS,
}


def usual(prompt: int, completion: int, **details: Any) -> dict[str, Any]:
    counts = {"prompt_tokens": prompt, "completion_tokens": completion}
    return {**counts, "total_tokens": prompt + completion, **details}


@st.composite
def nearly_plain(draw: st.DrawFn) -> dict[str, Any]:
    """The usual report, or one that differs from it here or there."""
    prompt, completion = draw(_SMALL), draw(_SMALL)
    report: dict[str, Any] = usual(prompt, completion)
    for name in draw(st.sets(st.sampled_from(sorted(report)), max_size=1)):
        report[name] = draw(_ODD_NUMBERS)
    for name in draw(st.lists(st.sampled_from(sorted(_OPTIONAL)), unique=True, max_size=3)):
        report[name] = draw(_OPTIONAL[name])
    names = draw(st.permutations(sorted(report)))
    return {name: report[name] for name in names}


@settings(max_examples=1_000)
@given(
    nearly_plain(),
    st.sampled_from(["openai", "xai", "gemini", "mistral", "perplexity"]),
    st.sampled_from(Operation),
)
def test_the_straight_way_reads_what_the_long_way_reads(
    report: dict[str, Any], quirks: str, operation: Operation
) -> None:
    whole = _read_any(report, QUIRKS[quirks], operation)

    plain = _read_plain(report, QUIRKS[quirks], operation)

    assert plain is None or plain == whole
    assert plain is None or list(plain.counts) == list(whole.counts)
    assert read_report(report, QUIRKS[quirks], operation) == whole


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (usual(12, 5), Reading(12, 5, {"output": 5, "input": 12}, 0, [])),
        (
            usual(
                12,
                5,
                prompt_tokens_details={"cached_tokens": 4, "audio_tokens": 0},
                completion_tokens_details={
                    "reasoning_tokens": 3,
                    "audio_tokens": 0,
                    "accepted_prediction_tokens": 0,
                    "rejected_prediction_tokens": 0,
                },
            ),
            Reading(12, 5, {"output": 5, "input": 8, "cache_read": 4}, 3, []),
        ),
        (
            usual(12, 0, prompt_tokens_details=None, new=0),
            Reading(12, 0, {"input": 12}, 0, []),
        ),
    ],
)
def test_the_usual_reports_go_the_straight_way(report: Any, expected: Reading) -> None:
    assert _read_plain(report, QUIRKS["openai"], CHAT) == expected


def test_reasoning_beside_the_completion_is_not_read_as_part_of_it() -> None:
    report = usual(12, 5, completion_tokens_details={"reasoning_tokens": 3})

    assert _read_plain(report, QUIRKS["xai"], CHAT) is None
    assert read_report(report, QUIRKS["xai"], CHAT).completion == 8
    assert _read_plain(report, QUIRKS["xai"], Operation.RESPONSES) is not None
