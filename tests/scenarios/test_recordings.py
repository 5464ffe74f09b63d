"""Real answers of every vendor of OpenAI's dialect, replayed through the running gateway.

Each is cut at random bytes, in the middle of a
character or a line end too, and served to the gateway as its vendor would.
"""

import asyncio
import base64
import json
import re
from collections import Counter
from typing import Any

import pytest

from ledger.usage import INPUT_TOKENS, OUTPUT_TOKENS
from tests.recordings import Recording, recordings, replays, without_usage
from tests.scenarios.caller import Answer, caller
from tests.scenarios.deployment import Deployment, Key
from tests.scenarios.invariants import assert_books
from tests.scenarios.scale import LONG
from tests.scenarios.vendors import ACCENTS
from tests.vendor import Vendor

SEEDS = range(20 if LONG else 3)
CALLERS = 8
# The first seed cuts here: within a character, a line end, a blank line.
AWKWARD = re.compile(rb"[\xc2-\xf4][\x80-\xbf]|\r\n|\n\n")
CUTS_MAX = 200

PATHS = {
    "chat.completions": "/v1/chat/completions",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "responses": "/v1/responses",
}
CONTENT: dict[str, dict[str, Any]] = {
    "chat.completions": {"messages": [{"role": "user", "content": "hello"}]},
    "completions": {"prompt": "hello"},
    "embeddings": {"input": "hello"},
    "responses": {"input": "hello"},
}

pytestmark = [pytest.mark.scenario, replays]


def call_of(recording: Recording, *, asks_usage: bool) -> dict[str, Any]:
    """The client's call: as recorded, or made up where the recording has none."""
    fields = {**CONTENT[recording.endpoint], **(recording.tree["request_json"] or {})}
    fields["model"] = f"{recording.provider}/script-{recording.name}"
    if recording.endpoint != "embeddings":
        fields["stream"] = recording.streaming
    fields.pop("stream_options", None)
    if recording.hides_usage:
        fields["stream_options"] = {"include_usage": asks_usage}
    return fields


def script_of(recording: Recording, seed: int) -> dict[str, Any]:
    """What the vendor is told to do."""
    default = "text/event-stream" if recording.streaming else "application/json"
    awkward = [found.start() + 1 for found in AWKWARD.finditer(recording.body)][:CUTS_MAX]
    return {
        "raw": base64.b64encode(recording.body).decode(),
        "content_type": recording.tree["response_headers"].get("content-type", default),
        **({"cuts": awkward} if awkward and not seed else {"cut_seed": seed}),
    }


def why_left_out(recording: Recording) -> str:
    """The reason why it proves nothing here; empty if it does."""
    return recording.why_left_out(endpoints=PATHS, providers=ACCENTS)


ALL = list(recordings())
RECORDINGS = [one for one in ALL if not why_left_out(one)]


def metered(record: Any) -> dict[str, int]:
    """What the gateway's record says, in the words of the recordings."""
    other = json.loads(record["other_usage"] or "{}")
    cached = record["cache_read"] + sum(
        count for unit, count in other.items() if unit.startswith("cache_read")
    )
    more_in = sum(count for unit, count in other.items() if unit in INPUT_TOKENS)
    more_out = sum(count for unit, count in other.items() if unit in OUTPUT_TOKENS)
    return {
        "input": record["input"] + record["cache_read"] + record["cache_write"] + more_in,
        "cached_input": cached,
        "cache_write": record["cache_write"],
        "output": record["output"] + more_out,
        "reasoning": record["reasoning"],
    }


async def replayed(
    tollgate: Deployment, key: Key, *, asks_usage: bool
) -> list[tuple[Recording, Answer]]:
    """Every recording as the client got it, by a few callers at once."""
    waiting, done = iter(RECORDINGS), []

    async def work() -> None:
        async with caller(tollgate) as line:
            for recording in waiting:
                path = PATHS[recording.endpoint]
                answer = await line.post(
                    path, key.secret, call_of(recording, asks_usage=asks_usage)
                )
                done.append((recording, answer))

    async with asyncio.TaskGroup() as group:
        for _ in range(CALLERS):
            group.create_task(work())
    return done


async def test_every_recorded_answer_is_metered_as_expected_and_passes_unchanged(
    tollgate: Deployment, vendor_apart: Vendor
) -> None:
    key = await tollgate.new_key(credit_usd="10000")
    answers: dict[str, tuple[Recording, Answer]] = {}
    for seed in SEEDS:
        for number, recording in enumerate(RECORDINGS):
            at = seed * 1000 + number if seed else 0
            await vendor_apart.script(recording.name, **script_of(recording, at))
        for asks_usage in (True, False):
            for recording, answer in await replayed(tollgate, key, asks_usage=asks_usage):
                unseen = recording.hides_usage and not asks_usage
                seen = without_usage(recording.body) if unseen else recording.body
                assert answer.body == seen, f"{recording.name}, seed {seed}, asked {asks_usage}"
                answers[answer.headers["x-request-id"]] = recording, answer

    wrong = []
    for record in await assert_books(tollgate, key, records=len(answers)):
        recording, _ = answers[str(record["call_id"])]
        if metered(record) != recording.expected() or record["usage_source"] != "reported":
            wrong.append(f"{recording.name}: {metered(record)} for {recording.expected()}")
    assert not wrong, "\n".join(wrong)
    proved = Counter(recording.provider for recording in RECORDINGS)
    left_out = Counter(filter(None, map(why_left_out, ALL)))
    print(f"recordings: {len(RECORDINGS)} metered == expected, {len(answers)} replays")
    print(f"recordings by vendor: {dict(sorted(proved.items()))}")
    print(f"recordings left out: {dict(left_out.most_common())}")


def told_as(status: int) -> int:
    """The status that a client sees for the vendor's: a vendor's quarrel with us is ours."""
    return {401: 502, 402: 502, 500: 502, 501: 502}.get(status, status)


async def test_every_recorded_error_is_told_and_costs_nothing(
    tollgate: Deployment, key: Key, vendor_apart: Vendor
) -> None:
    errors = [recording for recording in ALL if why_left_out(recording) == "an error"]
    for recording in errors:
        tree = recording.tree
        script = {"status": tree["status"], "body": tree["response_body"]}
        await vendor_apart.script(recording.name, **script)
        async with caller(tollgate) as line:
            path = PATHS[recording.endpoint]
            answer = await line.post(path, key.secret, call_of(recording, asks_usage=False))
        assert answer.status == told_as(tree["status"]), recording.name
        assert answer.error["message"], recording.name

    records = await assert_books(tollgate, key, records=len(errors), charge=0)
    assert {record["kind"] for record in records} == {"released"}
    statuses = Counter(recording.tree["status"] for recording in errors)
    print(f"recordings of errors: {len(errors)} told, {dict(sorted(statuses.items()))}, 0 nano")
