"""The usual answer is metered without a tally, to the very same result."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.usage import Source, Usage
from providers.adapter import Operation
from providers.custom import QUIRKS
from providers.openai.body_meter import BodyMeter, _Answer
from tests.providers.vendor_bytes import answer, call

_REPORTS: st.SearchStrategy[Any] = st.one_of(
    st.fixed_dictionaries(
        {"prompt_tokens": st.just(12)},
        optional={
            "completion_tokens": st.sampled_from([0, 5]),
            "total_tokens": st.sampled_from([12, 17, 40]),
            "service_tier": st.sampled_from(["flex", "", None, 3]),
            "prompt_tokens_details": st.sampled_from([None, {"cached_tokens": 4}, {"new": 1}]),
            "cost": st.sampled_from([0.01, None]),
            "web_searches": st.just(2),
        },
    ),
    st.sampled_from([None, {}, [], "5", 0, {"completion_tokens": 5}]),
)
_OTHERS = st.fixed_dictionaries(
    {},
    optional={
        "model": st.sampled_from(["m-2", "", None, 5, "x" * 200]),
        "service_tier": st.sampled_from(["flex", "", None, 5, "y" * 200]),
        "error": st.sampled_from([None, {}, "bad", {"message": "bad"}]),
        "status": st.sampled_from(["failed", "completed"]),
        "cost": st.sampled_from([{"usd": 0.25}, None, 1]),
        "x_groq": st.sampled_from([None, {"usage": {"prompt_tokens": 9, "completion_tokens": 1}}]),
        "output": st.sampled_from([[], None, [{"type": "web_search_call", "status": "completed"}]]),
        "choices": st.sampled_from([None, []]),
    },
)


class Tallying(BodyMeter):
    """A meter that tallies every answer."""

    def _usual_usage(self, answer: _Answer) -> Usage | None:  # noqa: ARG002 - none is usual
        return None


def usual_meter(body: bytes) -> BodyMeter:
    of = BodyMeter(call(stream=False), QUIRKS["openai"], 10_000)
    of.feed(body)
    of.end()
    return of


@settings(max_examples=1_000)
@given(
    _REPORTS,
    _OTHERS,
    st.sampled_from(["openai", "xai", "venice", "gemini", "perplexity", "openrouter"]),
    st.sampled_from(Operation),
    st.sampled_from([{}, {"web_search_options": {}}]),
    st.integers(0, 1),
)
def test_a_usual_answer_is_metered_as_if_it_were_tallied(
    report: Any, others: Any, quirks: str, operation: Operation, asked: Any, looks: int
) -> None:
    body = answer(report, **others)
    of = call(operation, stream=False, **asked)
    meters = BodyMeter(of, QUIRKS[quirks], 10_000), Tallying(of, QUIRKS[quirks], 10_000)
    for each in meters:
        each.feed(body[:40])
        if looks:
            each.usage()  # while it comes
        each.feed(body[40:])
        each.end()

    usual, tallied = meters
    assert usual.usage() == tallied.usage()
    assert list(usual.usage().counts) == list(tallied.usage().counts)
    assert (usual.failure, usual.finished) == (tallied.failure, tallied.finished)


def test_the_usual_answer_needs_no_tally() -> None:
    of = usual_meter(answer({"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17}))

    assert of._usual == of.usage() == Usage({"input": 12, "output": 5}, model="m-1")


def test_a_body_looked_at_before_its_end_is_not_counted_twice() -> None:
    of = BodyMeter(call(stream=False), QUIRKS["openai"], 10_000)
    body = json.dumps({"choices": [{"message": {"content": "four"}}]}).encode()
    of.feed(body)
    assert of.usage().counts["output"] > 1
    of.end()

    assert of.usage().source is Source.ESTIMATED
    assert of.usage().counts["output"] == 1
