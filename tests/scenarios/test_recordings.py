"""Real answers of every vendor of OpenAI's dialect, replayed through the running gateway.

The recordings lie outside the tree, beside it. Each is cut at random bytes, in the middle of a
character or a line end too, and served to the gateway as its vendor would.
"""

import asyncio
import base64
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ledger.usage import INPUT_TOKENS, OUTPUT_TOKENS
from providers.sse import SseReader
from tests.scenarios.caller import Answer, caller
from tests.scenarios.deployment import Deployment, Key
from tests.scenarios.invariants import assert_books
from tests.scenarios.scale import LONG
from tests.scenarios.vendors import ACCENTS
from tests.vendor import Vendor

FOLDER = Path(__file__).parents[3] / "shared" / "recordings"
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

pytestmark = [
    pytest.mark.scenario,
    pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no recordings in {FOLDER}"),
]


class Recording(NamedTuple):
    """One recorded answer and the name of its script at the vendor."""

    name: str
    tree: dict[str, Any]

    @property
    def provider(self) -> str:
        """Whose it is."""
        return str(self.tree["provider"])

    @property
    def body(self) -> bytes:
        """The answer as it was sent."""
        return str(self.tree["response_body"]).encode()

    @property
    def hides_usage(self) -> bool:
        """Whether a client must ask for the usage in order to see it."""
        is_chat = self.tree["endpoint"] in ("chat.completions", "completions")
        return bool(self.tree["streaming"]) and is_chat

    def call(self, *, asks_usage: bool) -> dict[str, Any]:
        """The client's call: as recorded, or made up where the recording has none."""
        fields = {**CONTENT[self.tree["endpoint"]], **(self.tree["request_json"] or {})}
        fields["model"] = f"{self.provider}/script-{self.name}"
        if self.tree["endpoint"] != "embeddings":
            fields["stream"] = bool(self.tree["streaming"])
        fields.pop("stream_options", None)
        if self.hides_usage:
            fields["stream_options"] = {"include_usage": asks_usage}
        return fields

    def script(self, seed: int) -> dict[str, Any]:
        """What the vendor is told to do."""
        default = "text/event-stream" if self.tree["streaming"] else "application/json"
        awkward = [found.start() + 1 for found in AWKWARD.finditer(self.body)][:CUTS_MAX]
        return {
            "raw": base64.b64encode(self.body).decode(),
            "content_type": self.tree["response_headers"].get("content-type", default),
            **({"cuts": awkward} if awkward and not seed else {"cut_seed": seed}),
        }

    def expected(self) -> dict[str, int]:
        """What the record must say."""
        found = self.tree["expected"]
        names = ("input", "cached_input", "cache_write", "output", "reasoning")
        return {name: found[f"{name}_tokens"] or 0 for name in names}


def why_left_out(tree: dict[str, Any]) -> str:
    """The reason why a recording proves nothing here; empty if it does."""
    if tree["endpoint"] not in PATHS:
        return "another route"
    if tree["provider"] not in ACCENTS:
        return f"{tree['provider']}: another dialect"
    if tree["status"] != 200:
        return "an error"
    if not tree["expected"]:
        return "no usage expected"
    return "ambiguous" if tree["ambiguous"] else ""


def trees() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every recording there is."""
    for path in sorted(FOLDER.glob("*.jsonl")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            yield f"{path.stem}-{number}", json.loads(line)


RECORDINGS = (
    [Recording(name, tree) for name, tree in trees() if not why_left_out(tree)]
    if FOLDER.is_dir()
    else []
)


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


def without_usage(body: bytes) -> bytes:
    """A stream without the chunk that has no choices and only tells the usage."""
    reader = SseReader()
    blocks = [*reader.feed(body), *reader.end()]
    return b"".join(block.raw for block in blocks if not _only_usage(block.data))


def _only_usage(data: bytes | None) -> bool:
    if not data or data == b"[DONE]":
        return False
    tree = json.loads(data)
    return bool(tree.get("usage")) and not tree.get("choices")


async def replayed(
    tollgate: Deployment, key: Key, *, asks_usage: bool
) -> list[tuple[Recording, Answer]]:
    """Every recording as the client got it, by a few callers at once."""
    waiting, done = iter(RECORDINGS), []

    async def work() -> None:
        async with caller(tollgate) as line:
            for recording in waiting:
                path = PATHS[recording.tree["endpoint"]]
                answer = await line.post(path, key.secret, recording.call(asks_usage=asks_usage))
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
            await vendor_apart.script(recording.name, **recording.script(at))
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
    left_out = Counter(filter(None, (why_left_out(tree) for _, tree in trees())))
    print(f"recordings: {len(RECORDINGS)} metered == expected, {len(answers)} replays")
    print(f"recordings by vendor: {dict(sorted(proved.items()))}")
    print(f"recordings left out: {dict(left_out.most_common())}")


def told_as(status: int) -> int:
    """The status that a client sees for the vendor's: a vendor's quarrel with us is ours."""
    return {401: 502, 402: 502, 500: 502, 501: 502}.get(status, status)


async def test_every_recorded_error_is_told_and_costs_nothing(
    tollgate: Deployment, key: Key, vendor_apart: Vendor
) -> None:
    errors = [Recording(name, tree) for name, tree in trees() if why_left_out(tree) == "an error"]
    for recording in errors:
        tree = recording.tree
        script = {"status": tree["status"], "body": tree["response_body"]}
        await vendor_apart.script(recording.name, **script)
        async with caller(tollgate) as line:
            path = PATHS[tree["endpoint"]]
            answer = await line.post(path, key.secret, recording.call(asks_usage=False))
        assert answer.status == told_as(tree["status"]), recording.name
        assert answer.error["message"], recording.name

    records = await assert_books(tollgate, key, records=len(errors), charge=0)
    assert {record["kind"] for record in records} == {"released"}
    statuses = Counter(recording.tree["status"] for recording in errors)
    print(f"recordings of errors: {len(errors)} told, {dict(sorted(statuses.items()))}, 0 nano")
