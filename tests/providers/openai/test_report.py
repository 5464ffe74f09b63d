"""A vendor's usage object in disjoint buckets."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.usage import INPUT_TOKENS, OUTPUT_TOKENS, Unit
from providers.adapter import Operation
from providers.custom import QUIRKS, Cost
from providers.openai.report import COUNT_MAX, FLAGS_MAX, Reading, read_report, reported_nanos

CHAT = Operation.CHAT


def read(report: Any, quirks: str = "openai", operation: Operation = CHAT) -> Reading:
    return read_report(report, QUIRKS[quirks], operation)


def counts(report: Any, quirks: str = "openai", operation: Operation = CHAT) -> dict[str, int]:
    return read(report, quirks, operation).counts


def chat(prompt: int, completion: int, **details: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, **details}


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (chat(12, 5, total_tokens=17), {"input": 12, "output": 5}),
        ({"input_tokens": 12, "output_tokens": 5}, {"input": 12, "output": 5}),
        ({"prompt_tokens": 8, "total_tokens": 8}, {"input": 8}),
        ({"total_tokens": 8}, {"input": 8}),
        (chat(0, 0, total_tokens=0), {}),
        (
            chat(12307, 550, prompt_tokens_details={"cached_tokens": 12304}),
            {"input": 3, "cache_read": 12304, "output": 550},
        ),
        (
            chat(100, 5, prompt_tokens_details={"cached_tokens": 60, "cache_write_tokens": 30}),
            {"input": 10, "cache_read": 60, "cache_write_5m": 30, "output": 5},
        ),
        (
            chat(
                100,
                5,
                prompt_tokens_details={"cache_creation_input_tokens": 30},
                cache_creation={"ephemeral_1h_input_tokens": 20},
            ),
            {"input": 70, "cache_write_5m": 10, "cache_write_1h": 20, "output": 5},
        ),
        (
            chat(66, 22, prompt_tokens_details={"audio_tokens": 40, "text_tokens": 26}),
            {"input": 26, "input_audio": 40, "output": 22},
        ),
        (
            chat(
                100,
                22,
                prompt_tokens_details={
                    "audio_tokens": 40,
                    "cached_tokens": 50,
                    "cached_tokens_details": {"audio_tokens": 30, "text_tokens": 20},
                },
            ),
            {
                "input": 40,
                "cache_read": 20,
                "input_audio": 10,
                "cache_read_audio": 30,
                "output": 22,
            },
        ),
        # More is cached than there is text, so some of the picture is.
        (
            chat(504, 91, prompt_tokens_details={"cached_tokens": 370, "image_tokens": 256}),
            {"cache_read": 248, "cache_read_image": 122, "input_image": 134, "output": 91},
        ),
        (
            chat(100, 9, prompt_tokens_details={"video_tokens": 90, "cached_tokens": 20}),
            {"cache_read": 20, "input_video": 80, "output": 9},
        ),
        (
            chat(5, 30, completion_tokens_details={"audio_tokens": 20, "image_tokens": 4}),
            {"input": 5, "output": 6, "output_audio": 20, "output_image": 4},
        ),
    ],
)
def test_a_report_is_divided_into_buckets(report: Any, expected: dict[str, int]) -> None:
    reading = read(report)

    assert reading.counts == expected
    assert reading.flags == []


@pytest.mark.parametrize(
    "spelling",
    [
        {"prompt_tokens_details": {"cached_tokens": 9}},
        {"cached_tokens": 9},
        {"num_cached_tokens": 9},
        {"prompt_cache_hit_tokens": 9, "prompt_cache_miss_tokens": 3},
        {"cache_read_input_tokens": 9},
        {"prompt_tokens_details": {"cached_tokens": 9}, "cache_read_input_tokens": 9},
        {"prompt_tokens_details": {"cached_tokens": 0}, "cached_tokens": 9},
        {"prompt_tokens_details": {"cached_tokens": 9}, "cached_tokens": 4},
        {"prompt_tokens_details": None, "cached_tokens": 9},
    ],
)
def test_cached_tokens_count_once_however_they_are_spelled(spelling: dict[str, Any]) -> None:
    assert counts(chat(12, 5, **spelling)) == {"input": 3, "cache_read": 9, "output": 5}


def test_reasoning_is_within_the_output_and_is_not_added() -> None:
    for report in (
        chat(51, 136, total_tokens=187, completion_tokens_details={"reasoning_tokens": 31}),
        chat(51, 136, total_tokens=187, reasoning_tokens=31),
        {
            "input_tokens": 51,
            "output_tokens": 136,
            "output_tokens_details": {"reasoning_tokens": 31},
        },
    ):
        reading = read(report)

        assert reading.counts == {"input": 51, "output": 136}
        assert (reading.reasoning, reading.flags) == (31, [])


def test_a_vendor_may_put_reasoning_beside_the_output_in_chat_alone() -> None:
    details = {"reasoning_tokens": 290}
    in_chat = chat(12, 1, total_tokens=303, completion_tokens_details=details)
    in_responses = {
        "input_tokens": 12,
        "output_tokens": 291,
        "total_tokens": 303,
        "output_tokens_details": details,
    }

    for reading in (read(in_chat, "xai"), read(in_responses, "xai", Operation.RESPONSES)):
        assert reading.counts == {"input": 12, "output": 291}
        assert (reading.reasoning, reading.flags) == (290, [])


def test_a_vendor_may_tell_thoughts_in_the_total_alone() -> None:
    reading = read(chat(35, 12, total_tokens=109), "gemini")

    assert reading.counts == {"input": 35, "output": 74}
    assert (reading.reasoning, reading.flags) == (62, [])
    assert counts(chat(35, 12, total_tokens=47), "gemini") == {"input": 35, "output": 12}


def test_a_vendor_may_leave_audio_out_of_the_prompt() -> None:
    report = chat(11, 15, total_tokens=401, prompt_tokens_details={"audio_tokens": 375})

    reading = read(report, "mistral")

    assert reading.counts == {"input": 11, "input_audio": 375, "output": 15}
    assert reading.flags == []


@pytest.mark.parametrize(
    ("report", "expected", "flag"),
    [
        (
            chat(10, 2, prompt_tokens_details={"cached_tokens": 161}),
            {"cache_read": 10, "output": 2},
            "cached_over_input",
        ),
        (
            chat(10, 2, prompt_tokens_details={"cached_tokens": 8, "cache_write_tokens": 8}),
            {"cache_read": 8, "cache_write_5m": 2, "output": 2},
            "cache_write_over_input",
        ),
        (
            chat(10, 2, completion_tokens_details={"reasoning_tokens": 7}),
            {"input": 10, "output": 2},
            "reasoning_over_output",
        ),
        (chat(10, 2, total_tokens=13), {"input": 10, "output": 2}, "total_mismatch"),
        (chat(10, 2, novel_tokens=3), {"input": 10, "output": 2}, "unknown_field:novel_tokens"),
        (
            chat(10, 2, prompt_tokens_details={"smell_tokens": 3}),
            {"input": 10, "output": 2},
            "unknown_field:smell_tokens",
        ),
        (chat(10, 2, novelty={"a": 1}), {"input": 10, "output": 2}, "unknown_field:novelty"),
        (
            chat(10, 2, server_side_tool_usage_details={"teleports": 1}),
            {"input": 10, "output": 2},
            "unknown_field:teleports",
        ),
    ],
)
def test_what_is_odd_is_flagged(report: Any, expected: dict[str, int], flag: str) -> None:
    reading = read(report)

    assert reading.counts == expected
    assert reading.flags == [flag]


def test_unknown_fields_that_are_zero_or_words_are_not_flagged() -> None:
    report = chat(10, 2, novel_tokens=0, note="x", maybe=None, truth=True, empty={}, ratio=0)

    assert read(report).flags == []


@pytest.mark.parametrize(
    "garbage",
    [
        -5,
        COUNT_MAX + 1,
        10**30,
        "12",
        True,
        [1],
        {"a": 1},
        1.5,
        float("inf"),
        float("nan"),
        Decimal("1E+308"),
        Decimal("1.5"),
    ],
)
def test_garbage_is_left_out_and_flagged(garbage: Any) -> None:
    reading = read({"prompt_tokens": garbage, "completion_tokens": 5})

    assert (reading.prompt, reading.completion) == (None, 5)
    assert reading.counts == {"output": 5}
    assert reading.flags == ["bad_usage:prompt_tokens"]


def test_garbage_in_the_details_costs_only_the_detail() -> None:
    for details in ({"cached_tokens": -1}, {"cached_tokens": "9"}, 7, "x"):
        reading = read(chat(12, 5, prompt_tokens_details=details))

        assert reading.counts == {"input": 12, "output": 5}
        assert [flag.partition(":")[0] for flag in reading.flags] == ["bad_usage"]


def test_names_in_flags_are_clean_and_few() -> None:
    reading = read({f"n{i}\n\x00é" + "x" * 99: 1 for i in range(50)})

    assert len(reading.flags) == FLAGS_MAX
    assert all(flag.isascii() and flag.isprintable() for flag in reading.flags)
    assert max(map(len, reading.flags)) < 70


def test_runs_of_tools_are_counted() -> None:
    assert counts(
        chat(
            1,
            1,
            num_server_side_tools_used=9,
            server_side_tool_usage_details={
                "web_search_calls": 2,
                "x_search_calls": 1,
                "file_search_calls": 3,
                "document_search_calls": 1,
                "code_interpreter_calls": 1,
                "image_generation_calls": 2,
                "mcp_calls": 4,
            },
        )
    ) == {
        "input": 1,
        "output": 1,
        "web_searches": 3,
        "file_searches": 4,
        "code_sessions": 1,
        "images": 2,
    }


_NUMBERS = st.integers(-10, 10_000)
_DETAILS = st.dictionaries(
    st.sampled_from(
        [
            "cached_tokens",
            "cache_write_tokens",
            "audio_tokens",
            "image_tokens",
            "video_tokens",
            "reasoning_tokens",
            "novelty",
        ]
    ),
    _NUMBERS,
)


@given(
    st.fixed_dictionaries(
        {"prompt_tokens": st.integers(0, 10_000), "completion_tokens": st.integers(0, 10_000)},
        optional={
            "prompt_tokens_details": _DETAILS,
            "completion_tokens_details": _DETAILS,
            "cache_creation": st.dictionaries(st.just("ephemeral_1h_input_tokens"), _NUMBERS),
            "cached_tokens": _NUMBERS,
        },
    )
)
def test_the_buckets_are_never_negative_and_sum_to_what_the_vendor_says(
    report: dict[str, Any],
) -> None:
    reading = read(report)

    assert all(count > 0 for count in reading.counts.values())
    assert sum(reading.counts.get(u, 0) for u in INPUT_TOKENS) == report["prompt_tokens"]
    assert sum(reading.counts.get(u, 0) for u in OUTPUT_TOKENS) == report["completion_tokens"]
    assert 0 <= reading.reasoning <= report["completion_tokens"]


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text()
        | st.decimals(allow_nan=True),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["prompt_tokens", "prompt_tokens_details", "cached_tokens", "x"]),
                inner,
            )
        ),
        max_leaves=12,
    ),
    st.sampled_from(sorted(QUIRKS)),
)
def test_nothing_a_vendor_sends_makes_it_raise_or_count_below_zero(value: Any, quirks: str) -> None:
    report = value if isinstance(value, dict) else {"prompt_tokens": value, "cost": value}

    assert all(count > 0 for count in read(report, quirks).counts.values())
    cost = QUIRKS[quirks].cost or Cost(path=("cost",))
    nanos = reported_nanos(report, cost)
    assert nanos is None or nanos >= 0


@pytest.mark.parametrize(
    ("text", "nanos"),
    [
        ("0.0000375", 37_500),
        ("6.2e-07", 620),
        ("0.00012524999999999998", 125_250),
        ("1e-400", 1),
        ("0", 0),
        ("1", 1_000_000_000),
        ("1e400", None),
        ("-0.1", None),
        ("NaN", None),
    ],
)
def test_a_reported_cost_is_exact_and_rounded_up(text: str, nanos: int | None) -> None:
    assert reported_nanos({"cost": Decimal(text)}, Cost(path=("cost",))) == nanos


def test_a_cost_in_ticks_is_nano_usd_rounded_up() -> None:
    ticks = QUIRKS["xai"].cost
    assert ticks is not None
    assert reported_nanos({"cost_in_usd_ticks": 6_881_000}, ticks) == 688_100
    assert reported_nanos({"cost_in_usd_ticks": 123_456}, ticks) == 12_346


@pytest.mark.parametrize("cost", [None, "0.1", True, 0.1, [], {"total_cost": "x"}])
def test_a_cost_that_is_no_number_is_none(cost: Any) -> None:
    assert reported_nanos({"cost": cost}, Cost(path=("cost",))) is None


def test_units_are_those_of_the_ledger() -> None:
    assert set(counts(chat(1, 1))) <= {unit.value for unit in Unit}
