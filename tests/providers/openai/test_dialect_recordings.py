"""Real recorded answers of every vendor of the dialect, metered as the gateway meters them.

The recordings are kept outside the tree, beside it; without them there is nothing to test here.
"""

import json
import random
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ledger.usage import Source, Unit, Usage
from providers.adapter import Call, Operation
from providers.custom import QUIRKS, UsageIn
from providers.openai.calls import read_call
from providers.openai.dialect import OpenAI
from providers.sse import SseReader
from tests.providers.vendor_bytes import target

FOLDER = Path(__file__).parents[4] / "shared" / "recordings"
OPERATIONS = {operation.value.replace("/", "."): operation for operation in Operation}
CACHE_READS = (Unit.CACHE_READ, Unit.CACHE_READ_AUDIO, Unit.CACHE_READ_IMAGE)
CACHE_WRITES = (Unit.CACHE_WRITE_5M, Unit.CACHE_WRITE_1H)

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no recordings in {FOLDER}")


class Recording(NamedTuple):
    name: str
    operation: Operation
    tree: dict[str, Any]

    @property
    def provider(self) -> str:
        return str(self.tree["provider"])

    @property
    def body(self) -> bytes:
        return str(self.tree["response_body"]).encode()

    def call(self, *, asks_usage: bool) -> Call:
        """The client's call: as recorded, or made up where the recording has none."""
        fields = dict(self.tree["request_json"] or {})
        fields.setdefault("model", self.tree["model"] or "m")
        fields["stream"] = bool(self.tree["streaming"])
        fields["stream_options"] = {"include_usage": asks_usage}
        return read_call(self.operation, json.dumps(fields).encode())


def why_left_out(tree: dict[str, Any]) -> str:
    """The reason why a recording proves nothing here; empty if it does."""
    if tree["provider"] not in QUIRKS and tree["endpoint"] in OPERATIONS:
        return f"{tree['provider']}: another dialect"
    if tree["endpoint"] not in OPERATIONS:
        return f"{tree['endpoint']}: another operation"
    if tree["status"] != 200:
        return "not answered with 200"
    if not tree["expected"]:
        return f"nothing expected: {tree['expected_note']}"
    return "ambiguous" if tree["ambiguous"] else ""


def trees() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(FOLDER.glob("*.jsonl")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            yield f"{path.name}:{number}", json.loads(line)


def recordings() -> Iterator[Recording]:
    for name, tree in trees():
        if not why_left_out(tree):
            yield Recording(name, OPERATIONS[tree["endpoint"]], tree)


def replayed(recording: Recording, *, asks_usage: bool, seed: int) -> tuple[Usage, bytes]:
    """Usage, and what the client saw, of an answer cut at random places."""
    body = recording.body
    pick = random.Random(seed)  # noqa: S311 - places to cut
    bounds = sorted({0, len(body), *(pick.randrange(len(body) + 1) for _ in range(20))})
    meter = OpenAI().meter(
        recording.call(asks_usage=asks_usage),
        target(recording.provider),
        streamed=bool(recording.tree["streaming"]),
        bound=10**9,
    )
    shown = [meter.feed(body[a:b]) for a, b in pairwise(bounds)]
    shown.append(meter.end())
    assert meter.failure is None
    assert meter.finished
    return meter.usage(), b"".join(shown)


def told(usage: Usage) -> dict[str, int]:
    return {
        "input_tokens": usage.input_tokens(),
        "cached_input_tokens": sum(usage.counts.get(unit, 0) for unit in CACHE_READS),
        "cache_write_tokens": sum(usage.counts.get(unit, 0) for unit in CACHE_WRITES),
        "output_tokens": usage.output_tokens(),
        "reasoning_tokens": usage.reasoning,
    }


def test_every_recorded_answer_is_metered_as_expected(capsys: pytest.CaptureFixture[str]) -> None:
    wrong: list[str] = []
    proved: Counter[str] = Counter()
    for seed, recording in enumerate(recordings()):
        expected = {name: recording.tree["expected"][name] or 0 for name in told(Usage({}))}
        for asks_usage in (True, False):
            usage, _ = replayed(recording, asks_usage=asks_usage, seed=seed)
            if told(usage) != expected or usage.source is not Source.REPORTED:
                wrong.append(f"{recording.name}: {usage} instead of {expected}")
        proved[recording.provider] += 1
    left_out = Counter(filter(None, (why_left_out(tree) for _, tree in trees())))
    with capsys.disabled():
        print(f"\n{proved.total()} recordings metered as expected: {dict(sorted(proved.items()))}")
        print(f"left out: {dict(left_out.most_common())}")

    assert not wrong
    assert proved.total() > 0


def test_a_client_that_asked_gets_every_recorded_byte() -> None:
    for seed, recording in enumerate(recordings()):
        _, shown = replayed(recording, asks_usage=True, seed=seed)

        assert shown == recording.body, recording.name


def test_a_client_that_did_not_ask_gets_all_but_the_chunk_that_only_tells_the_usage() -> None:
    for seed, recording in enumerate(recordings()):
        _, shown = replayed(recording, asks_usage=False, seed=seed)
        reader = SseReader()
        blocks = [*reader.feed(recording.body), *reader.end()]
        chat = recording.operation in {Operation.CHAT, Operation.COMPLETIONS}
        if recording.tree["streaming"] and chat:
            assert shown == b"".join(b.raw for b in blocks if not only_usage(b.data)), (
                recording.name
            )
        else:
            assert shown == recording.body, recording.name


def only_usage(data: bytes | None) -> bool:
    if not data or data == b"[DONE]":
        return False
    tree = json.loads(data)
    return bool(tree.get("usage")) and not tree.get("choices")


def test_every_stream_of_chat_has_its_usage_where_the_table_says() -> None:
    for recording in recordings():
        if not recording.tree["streaming"] or recording.operation is not Operation.CHAT:
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
    for seed, recording in enumerate(recordings()):
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
    for name, tree in trees():
        if (
            tree["status"] >= 400
            and tree["body_encoding"] == "utf-8"
            and tree["provider"] in QUIRKS
        ):
            failure = OpenAI().failure(tree["status"], tree["response_body"].encode())

            assert failure.status == tree["status"], name
            assert not failure.message.startswith("The vendor answered"), name
