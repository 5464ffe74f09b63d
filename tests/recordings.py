"""Real answers of vendors, recorded: data beside the tree, and what each of them must come to.

They are replayed where they are present. RECORDINGS names their folder; otherwise they are looked
for in `shared/recordings` beside the project's own. A file has one recording a line, as JSON.
"""

import json
import os
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from providers.sse import SseReader

_BESIDE = Path(__file__).parents[2] / "shared" / "recordings"
FOLDER = Path(os.environ.get("RECORDINGS") or _BESIDE)  # noqa: TID251 - chosen by whoever runs the tests

replays = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no recordings in {FOLDER}")
"""The mark of tests that need them."""

_EXPECTED = ("input", "cached_input", "cache_write", "output", "reasoning")


class Recording(NamedTuple):
    """One recorded answer."""

    name: str  # its file and line: also the name of its script at a vendor
    tree: dict[str, Any]

    @property
    def provider(self) -> str:
        """Whose it is."""
        return str(self.tree["provider"])

    @property
    def endpoint(self) -> str:
        """What was asked for: `chat.completions`, ..."""
        return str(self.tree["endpoint"])

    @property
    def streaming(self) -> bool:
        """Whether it is a stream."""
        return bool(self.tree["streaming"])

    @property
    def body(self) -> bytes:
        """The answer as it was sent."""
        return str(self.tree["response_body"]).encode()

    @property
    def hides_usage(self) -> bool:
        """Whether a client must ask for the usage in order to see it."""
        return self.streaming and self.endpoint in ("chat.completions", "completions")

    def expected(self) -> dict[str, int]:
        """The tokens that must be counted, by their kind."""
        found = self.tree["expected"]
        return {kind: found[f"{kind}_tokens"] or 0 for kind in _EXPECTED}

    def why_left_out(self, *, endpoints: Container[str], providers: Container[str]) -> str:
        """The reason why it proves nothing for these; empty if it does."""
        if self.endpoint not in endpoints:
            return "another route"
        if self.provider not in providers:
            return f"{self.provider}: another dialect"
        if self.tree["status"] != 200:
            return "an error"
        if not self.tree["expected"]:
            return "no usage expected"
        return "ambiguous" if self.tree["ambiguous"] else ""


def recordings() -> Iterator[Recording]:
    """Every recording there is."""
    for path in sorted(FOLDER.glob("*.jsonl")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            yield Recording(f"{path.stem}-{number}", json.loads(line))


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
