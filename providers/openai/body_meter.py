"""Meters an answer that comes in one piece: it passes as it comes and is read at its end."""

import json
from decimal import Decimal
from typing import Any

import msgspec
from msgspec import Raw

from ledger.usage import Source, Usage
from providers.adapter import Call, Failure
from providers.custom import Quirks
from providers.openai.errors import failure_within
from providers.openai.report import FLAGS_MAX, read_report
from providers.openai.tally import UNREADABLE, Tally, name_said, text_bytes

BODY_BYTES_MAX = 64 * 1024 * 1024
"""Kept to be read. Embeddings of 2,048 texts have 60 MB at most; what is longer is estimated."""

_ABSENT = Raw()
_REPORTED = Source.REPORTED


class _Answer(msgspec.Struct, gc=False):
    """The answer of any operation: their names do not collide."""

    choices: Raw = _ABSENT
    output: Raw = _ABSENT
    usage: Any = None
    error: Any = None
    model: Any = None
    service_tier: Any = None
    status: Any = None
    x_groq: Any = None
    cost: Any = None


_decode_answer = msgspec.json.Decoder(_Answer, float_hook=Decimal).decode


class BodyMeter:
    """A `Meter` of one JSON body."""

    __slots__ = (
        "_answer",
        "_bound",
        "_call",
        "_chunks",
        "_over",
        "_quirks",
        "_size",
        "_tally",
        "_usual",
        "failure",
        "finished",
        "started",
    )

    def __init__(self, call: Call, quirks: Quirks, bound: int) -> None:
        self._call, self._quirks, self._bound = call, quirks, bound
        self._chunks: list[bytes] = []
        self._size = 0
        self._over = False
        self._usual: Usage | None = None  # of an answer that needs no tally
        self._tally: Tally | None = None
        self._answer: _Answer | None = None  # until its words are counted
        self.failure: Failure | None = None  # the error that came as a good answer
        self.started = False
        self.finished = False

    def feed(self, chunk: bytes) -> bytes:
        """The chunk itself."""
        # Some vendors send blank lines to keep the connection while they think.
        self.started = self.started or not chunk.isspace()
        self._size += len(chunk)
        if self._size <= BODY_BYTES_MAX:
            self._chunks.append(chunk)
        else:
            self._chunks.clear()
        return chunk

    def end(self) -> bytes:
        """Read the body. No bytes are ever withheld of it."""
        self._over = True
        chunks, self._chunks = self._chunks, []
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        try:
            answer = _decode_answer(body)
        except UNREADABLE:
            self._read_tree(body)
            return b""
        self.finished = True
        self._usual = self._usual_usage(answer)
        if self._usual is None:
            self._answer = answer
            tally = self._made_tally()
            tally.text_bytes = 0
            self._read(answer, tally)
        return b""

    def ending(self, failure: Failure | None) -> bytes:  # noqa: ARG002 - as all meters have it
        """Nothing: no error can follow half a JSON text. The connection must be cut."""
        return b""

    def generated(self) -> int:
        """Output tokens so far."""
        return self.usage().output_tokens()

    def usage(self) -> Usage:
        """What was consumed so far."""
        if self._usual is not None:
            return self._usual
        tally = self._made_tally()
        if not self._over:
            tally.text_bytes = self._size
        usage = self._tallied(tally)
        if usage.source is not Source.REPORTED and self._answer is not None:
            # The words are counted only where the vendor's own count is missing.
            tally.text_bytes = _own_words(self._answer)
            self._answer = None
            usage = self._tallied(tally)
        return usage

    def _usual_usage(self, answer: _Answer) -> Usage | None:
        """The usage of an answer that tells its tokens and nothing else, as a tally has it."""
        report, quirks, call = answer.usage, self._quirks, self._call
        if type(report) is not dict or answer.error or answer.output is not _ABSENT:
            return None
        if quirks.cost is not None or quirks.request_fee or "service_tier" in report:
            return None
        if quirks.searches and "web_search_options" in call.fields:
            return None
        reading = read_report(report, quirks, call.operation)
        if reading.prompt is None or reading.completion is None:
            return None
        return Usage(
            reading.counts,
            _REPORTED,
            reading.reasoning,
            name_said(answer.model),
            name_said(answer.service_tier),
            None,
            tuple(reading.flags[:FLAGS_MAX]),
        )

    def _made_tally(self) -> Tally:
        if self._tally is None:
            self._tally = Tally(self._call, self._quirks, self._bound)
        return self._tally

    def _tallied(self, tally: Tally) -> Usage:
        return tally.usage(started=self.started, over=self._over, finished=self.finished)

    def _read(self, answer: _Answer, tally: Tally) -> None:
        tally.say_model(answer.model)
        tally.say_tier(answer.service_tier)
        if answer.error:
            tally.failure = self.failure = failure_within({"error": answer.error})
            tally.failed = answer.status == "failed"
        if answer.cost is not None:
            tally.say_beside("cost", answer.cost)
        if answer.output is not _ABSENT:
            tally.count_items(answer.output)
        if answer.usage is not None:
            tally.report(answer.usage)
        elif isinstance(answer.x_groq, dict) and answer.x_groq.get("usage") is not None:
            tally.report(answer.x_groq["usage"])

    def _read_tree(self, body: bytes) -> None:
        """Read a body that msgspec refuses."""
        tally = self._made_tally()
        tally.text_bytes = 0
        tree = self._tree(body, tally)
        if tree is not None:
            self.finished = True
            answer = _Answer()
            for name in ("usage", "error", "model", "service_tier", "status", "cost"):
                setattr(answer, name, tree.get(name))
            tally.text_bytes = text_bytes([tree.get("choices"), tree.get("output")])
            self._read(answer, tally)

    def _tree(self, body: bytes, tally: Tally) -> dict[str, Any] | None:
        """A body that msgspec refuses; None if it is cut, or no JSON, or was too long to keep."""
        try:
            tree = json.loads(body, parse_float=Decimal)
        except UNREADABLE:
            tree = None
        if isinstance(tree, dict):
            return tree
        tally.flag("unreadable_answer")
        # A cut answer was generated, and is estimated; a proxy's page was not.
        if self._size > BODY_BYTES_MAX or body.lstrip()[:1] == b"{":
            tally.text_bytes = self._size
        return None


def _own_words(answer: _Answer) -> int:
    size = 0
    for raw in (answer.choices, answer.output):
        if raw is not _ABSENT:
            try:
                size += text_bytes(msgspec.json.decode(raw))
            except UNREADABLE:
                size += len(memoryview(raw))
    return size
