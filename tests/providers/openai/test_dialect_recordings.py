"""Real recorded answers of every vendor of the dialect, metered as the gateway meters them.

Without recordings there is nothing to test here.
"""

import json
import random
from itertools import pairwise

import pytest

from ledger.usage import Source, Unit, Usage
from providers.adapter import Call, Operation
from providers.custom import QUIRKS, UsageIn
from providers.openai.calls import read_call
from providers.openai.dialect import OpenAI
from providers.sse import SseReader
from tests.providers.vendor_bytes import target
from tests.recordings import Recording, recordings, replays, without_usage

OPERATIONS = {operation.value.replace("/", "."): operation for operation in Operation}
CACHE_READS = (Unit.CACHE_READ, Unit.CACHE_READ_AUDIO, Unit.CACHE_READ_IMAGE)
CACHE_WRITES = (Unit.CACHE_WRITE_5M, Unit.CACHE_WRITE_1H)

pytestmark = replays


ALL = list(recordings())
RECORDINGS = [one for one in ALL if not one.why_left_out(endpoints=OPERATIONS, providers=QUIRKS)]


def call_of(recording: Recording, *, asks_usage: bool) -> Call:
    """The client's call: as recorded, or made up where the recording has none."""
    fields = dict(recording.tree["request_json"] or {})
    fields.setdefault("model", recording.tree["model"] or "m")
    fields["stream"] = recording.streaming
    fields["stream_options"] = {"include_usage": asks_usage}
    return read_call(OPERATIONS[recording.endpoint], json.dumps(fields).encode())


def replayed(recording: Recording, *, asks_usage: bool, seed: int) -> tuple[Usage, bytes]:
    """Usage, and what the client saw, of an answer cut at random places."""
    body = recording.body
    pick = random.Random(seed)  # noqa: S311 - places to cut
    bounds = sorted({0, len(body), *(pick.randrange(len(body) + 1) for _ in range(20))})
    meter = OpenAI().meter(
        call_of(recording, asks_usage=asks_usage),
        target(recording.provider),
        streamed=recording.streaming,
        bound=10**9,
    )
    shown = [meter.feed(body[a:b]) for a, b in pairwise(bounds)]
    shown.append(meter.end())
    assert meter.failure is None
    assert meter.finished
    return meter.usage(), b"".join(shown)


def told(usage: Usage) -> dict[str, int]:
    return {
        "input": usage.input_tokens(),
        "cached_input": sum(usage.counts.get(unit, 0) for unit in CACHE_READS),
        "cache_write": sum(usage.counts.get(unit, 0) for unit in CACHE_WRITES),
        "output": usage.output_tokens(),
        "reasoning": usage.reasoning,
    }


@pytest.mark.parametrize("asks_usage", [True, False])
def test_every_recorded_answer_is_metered_as_expected(*, asks_usage: bool) -> None:
    wrong: list[str] = []
    for seed, recording in enumerate(RECORDINGS):
        usage, _ = replayed(recording, asks_usage=asks_usage, seed=seed)
        if told(usage) != recording.expected() or usage.source is not Source.REPORTED:
            wrong.append(f"{recording.name}: {usage} instead of {recording.expected()}")

    assert not wrong
    assert RECORDINGS


def test_a_client_that_asked_gets_every_recorded_byte() -> None:
    for seed, recording in enumerate(RECORDINGS):
        _, shown = replayed(recording, asks_usage=True, seed=seed)

        assert shown == recording.body, recording.name


def test_a_client_that_did_not_ask_gets_all_but_the_chunk_that_only_tells_the_usage() -> None:
    for seed, recording in enumerate(RECORDINGS):
        _, shown = replayed(recording, asks_usage=False, seed=seed)
        body = recording.body

        assert shown == (without_usage(body) if recording.hides_usage else body), recording.name


def test_every_stream_of_chat_has_its_usage_where_the_table_says() -> None:
    for recording in RECORDINGS:
        if not recording.streaming or recording.endpoint != "chat.completions":
            continue
        events = [block.data for block in SseReader().feed(recording.body + b"\n\n") if block.data]
        told_in = [json.loads(data) for data in events if b'"usage"' in data]
        reports = [tree for tree in told_in if tree.get("usage")]
        where = QUIRKS[recording.provider].usage_in
        alone = [tree for tree in reports if not tree["choices"]]
        if where is UsageIn.OWN_CHUNK:
            assert len(alone) == len(reports) == 1, recording.name
        elif where is UsageIn.LAST_CHOICE:
            assert (len(alone), len(reports)) == (0, 1), recording.name


def test_reported_costs_are_exact() -> None:
    for seed, recording in enumerate(RECORDINGS):
        extra = recording.tree["expected"]["extra"]
        usage, _ = replayed(recording, asks_usage=True, seed=seed)
        if recording.provider == "openrouter":
            exact = round(extra["cost"] * 10**9)
        elif recording.provider == "perplexity" and "cost" in extra:
            exact = round(extra["cost"]["total_cost"] * 10**9)
        elif recording.provider == "xai" and "cost_in_usd_ticks" in extra:
            exact = -(-extra["cost_in_usd_ticks"] // 10)
        else:
            continue
        assert usage.reported_nanos == exact, recording.name


def test_every_recorded_error_is_told() -> None:
    for name, tree in ALL:
        if (
            tree["status"] >= 400
            and tree["body_encoding"] == "utf-8"
            and tree["provider"] in QUIRKS
        ):
            failure = OpenAI().failure(tree["status"], tree["response_body"].encode())

            assert failure.status == tree["status"], name
            assert not failure.message.startswith("The vendor answered"), name
