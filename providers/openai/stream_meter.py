"""Meters a stream: its events are counted, decoded where they must be, and pass as they came.

What a client did not ask for is withheld: the one chunk that has no choices and only tells the
usage. Where the vendor puts the usage into a chunk with content, that chunk passes; so does the
`"usage": null` that asking brings into the others, for nothing else is ever changed.
"""

import json
from decimal import Decimal
from typing import Any, TypeVar

import msgspec
from msgspec import Raw

from ledger.usage import Usage
from providers.adapter import Call, Failure, Operation
from providers.custom import Quirks
from providers.openai.chunk import (
    Choice,
    Chunk,
    Delta,
    Form,
    decode_chunk,
    form_of,
    text_length,
    words,
)
from providers.openai.endings import length_chunks, length_response
from providers.openai.errors import failure_within, stream_error
from providers.openai.tally import UNREADABLE, Tally, text_bytes
from providers.sse import Block, SseReader

_Struct = TypeVar("_Struct", bound=msgspec.Struct)

_ABSENT = Raw()
_DONE = b"[DONE]"
_CHAT = Operation.CHAT
_COMPLETIONS = Operation.COMPLETIONS

_FORM_WORTH = 4
"""How many more events may lack the form that is known than have it, before it is given up."""

# Events of a response that are sent before anything is known to work.
_PRELUDE = frozenset({"response.created", "response.in_progress", "response.queued"})
_TERMINAL = frozenset(
    {"response.completed", "response.incomplete", "response.failed", "response.cancelled"}
)


class _Response(msgspec.Struct, gc=False):
    usage: Any = None
    model: Any = None
    service_tier: Any = None
    error: Any = None
    output: Raw = _ABSENT


class _Event(msgspec.Struct, gc=False):
    """An event of a response's stream."""

    type: Any = None
    delta: Any = None
    response: _Response | None = None
    item: Raw = _ABSENT
    output_index: Any = None
    usage: Any = None
    error: Any = None
    code: Any = None
    message: Any = None
    param: Any = None


_decode_event = msgspec.json.Decoder(_Event, float_hook=Decimal).decode


class StreamMeter:
    """A `Meter` of server-sent events."""

    __slots__ = (
        "_choices",
        "_ended",
        "_first",
        "_form",
        "_form_worth",
        "_last",
        "_next_try",
        "_operation",
        "_over",
        "_reader",
        "_responses",
        "_tally",
        "_withholding",
        "finished",
        "started",
    )

    def __init__(self, call: Call, quirks: Quirks, bound: int) -> None:
        operation = call.operation
        self._tally = Tally(call, quirks, bound)
        self._reader = SseReader()
        self._responses = operation is Operation.RESPONSES
        self._withholding = not call.usage_wanted and (
            operation is _CHAT or operation is _COMPLETIONS
        )
        self._choices = call.choices
        self._ended: set[Any] = set()  # the choices that have a finish reason
        self._over = False
        self._operation = operation
        self._form: Form | None = None  # of most of its events
        self._form_worth = 0
        self._next_try = 1  # to learn it, by the count of deltas
        self._first = self._last = b"{}"  # data of the first and of the latest event
        self.started = False
        self.finished = False

    @property
    def failure(self) -> Failure | None:
        """The error told inside the stream."""
        return self._tally.failure

    def feed(self, chunk: bytes) -> bytes:
        """What of `chunk`, and of what was kept before it, the client shall see: mostly itself."""
        reader = self._reader
        kept = reader.pending
        if not kept and self._is_known(chunk):
            return chunk  # nearly always: one event, like the one before
        blocks = reader.feed(chunk)
        several, withheld = len(blocks) > 1, False
        shown = []
        for block in blocks:
            if several and self._is_known(block.raw):
                shown.append(block.raw)
            elif self._read(block) and self._withholding:
                withheld = True
                shown.append(_comments(block))
            else:
                shown.append(block.raw)
        if self._withholding and (withheld or kept or reader.pending):
            return b"".join(shown)
        return chunk

    def end(self) -> bytes:
        """The bytes kept to the end, because no blank line ended their event."""
        shown = [_comments(b) if self._read(b) else b.raw for b in self._reader.end()]
        self._over = True
        # Some vendors send no [DONE].
        self.finished = self.finished or len(self._ended) >= self._choices
        if self._reader.overlong:
            self._tally.flag("event_too_long")
        return b"".join(shown) if self._withholding else b""

    def ending(self, failure: Failure | None) -> bytes:
        """What ends the client's stream in the vendor's stead: an error, or the limit reached."""
        # Half an event may be out already; a blank line keeps ours apart from it.
        events = b"\n\n" if self._reader.pending and not self._withholding else b""
        if failure is not None:
            return events + stream_error(self._operation, failure, sequence=self._sequence())
        if self._responses:
            return events + length_response(self._first, self.usage(), sequence=self._sequence())
        left = [index for index in range(self._choices) if index not in self._ended]
        usage = None if self._withholding else self.usage()
        return events + length_chunks(self._operation, self._last, left, usage)

    def generated(self) -> int:
        """Output tokens so far, as far as the stream shows or says them."""
        return self._tally.generated()

    def usage(self) -> Usage:
        """What was consumed so far."""
        return self._tally.usage(started=self.started, over=self._over, finished=self.finished)

    def _is_known(self, event: bytes) -> bool:
        """Count an event of the form that is known, as `_read` would; False if it has another."""
        form = self._form
        if form is None:
            return False
        length = text_length(form, event)
        if not length:
            return False
        tally = self._tally
        self._form_worth += 1
        tally.deltas += 1
        tally.text_bytes += length
        tally.model = form.model or tally.model
        tally.tier = form.tier or tally.tier
        self._last = event[6:-2]
        return True

    def _read(self, block: Block) -> bool:
        """Count one event. Whether it is to be withheld from a client that did not ask."""
        data = block.data
        if data is None:
            return False
        if data == _DONE:
            self.finished = self.started = True
            return False
        self._last = data
        if self._responses:
            self._read_event(data)
            return False
        try:
            chunk = decode_chunk(data)
        except UNREADABLE:
            return self._read_leniently(data, block.event)
        if block.event == b"error" and not chunk.error:
            chunk.error = _tree(data) or data.decode("utf-8", "replace")
        withheld = self._count_chunk(chunk)
        if self._form is not None:
            self._form_worth -= 1
            if self._form_worth < 0:
                self._form = None
        if self._tally.deltas >= self._next_try:
            # Where each event has a form of its own, the tries to learn one grow rare.
            self._next_try = 4 * self._tally.deltas
            self._form, self._form_worth = form_of(block, chunk) or self._form, _FORM_WORTH
        return withheld

    def _read_leniently(self, data: bytes, event: bytes) -> bool:
        """Read an event that msgspec refuses."""
        tree = _tree(data)
        if tree is None and event != b"error":
            if data and not data.isspace():
                self._tally.flag("unreadable_event")
            return False
        chunk = _lenient_chunk(tree or {})
        if event == b"error" and not chunk.error:
            chunk.error = tree or data.decode("utf-8", "replace")
        return self._count_chunk(chunk)

    def _count_chunk(self, chunk: Chunk) -> bool:
        tally = self._tally
        told = tally.deltas
        self.started = True
        if chunk.model is not None:
            tally.say_model(chunk.model)
        if chunk.service_tier is not None:
            tally.say_tier(chunk.service_tier)
        if chunk.error:
            tally.failure = tally.failure or failure_within({"error": chunk.error})
        else:
            for choice in chunk.choices or ():
                self._count_choice(choice)
        if chunk.cost is not None:
            tally.say_beside("cost", chunk.cost)
        if chunk.usage is not None:
            tally.report(chunk.usage, amid_text=tally.deltas > told)
            return not chunk.choices and not chunk.error and isinstance(chunk.usage, dict)
        if isinstance(chunk.x_groq, dict):
            self._read_groq(chunk.x_groq)
        return False

    def _count_choice(self, choice: Choice) -> None:
        size = words(choice)
        if size:
            self._tally.deltas += 1
            self._tally.text_bytes += size
        if choice.finish_reason is not None:
            index = choice.index if isinstance(choice.index, int) else 0
            if 0 <= index < self._choices:
                self._ended.add(index)

    def _read_groq(self, x_groq: dict[str, Any]) -> None:
        """Groq's own place for the usage, which repeats `usage` where that is given."""
        if x_groq.get("usage") is not None:
            self._tally.report(x_groq["usage"])
        if x_groq.get("error"):
            self._tally.failure = self._tally.failure or failure_within({"error": x_groq["error"]})

    def _sequence(self) -> int:
        """The number of the next event of a response."""
        tree = _tree(self._last) or {}
        number = tree.get("sequence_number")
        return number + 1 if isinstance(number, int) else 0

    def _read_event(self, data: bytes) -> None:
        tally = self._tally
        event = _event(data)
        if event is None:
            tally.flag("unreadable_event")
            return
        kind = event.type if type(event.type) is str else ""
        if kind in _PRELUDE:
            self._first = data
        else:
            self.started = True
        if event.delta and kind.endswith(".delta"):
            tally.deltas += 1
            if "audio" not in kind or "transcript" in kind:
                tally.text_bytes += text_bytes(event.delta)
        elif kind == "response.output_item.done" and event.item is not _ABSENT:
            tally.count_item(event.item, event.output_index)
        if event.usage is not None:
            tally.report(event.usage)
        if event.response is not None:
            self._read_response(event.response, kind)
        if event.error or kind == "error":
            named = {"message": event.message, "code": event.code, "param": event.param}
            tally.failure = tally.failure or failure_within({"error": event.error or named})
        self.finished = self.finished or kind in _TERMINAL

    def _read_response(self, response: _Response, kind: str) -> None:
        tally = self._tally
        tally.say_model(response.model)
        tally.say_tier(response.service_tier)
        if response.usage is not None:
            tally.report(response.usage)
        if response.output is not _ABSENT:
            tally.count_items(response.output)
        if kind == "response.failed" or response.error:
            tally.failed = True
            error = response.error or {"message": "The response failed"}
            tally.failure = tally.failure or failure_within({"error": error})


def _comments(block: Block) -> bytes:
    """What passes of a block that is withheld: comments, if any stood before its data."""
    if not block.raw.startswith(b":") and b"\n:" not in block.raw and b"\r:" not in block.raw:
        return b""
    lines = block.raw.splitlines(keepends=True)
    return b"".join(line for line in lines if line.startswith(b":"))


def _tree(data: bytes) -> dict[str, Any] | None:
    """An event that msgspec refuses: Python's own reader also takes NaN and numbers of any size."""
    try:
        tree = json.loads(data, parse_float=_number)
    except UNREADABLE:
        return None
    return tree if isinstance(tree, dict) else None


def _number(text: str) -> Decimal | float:
    try:
        return Decimal(text)
    except ArithmeticError:
        return float(text)  # an exponent of twenty digits: infinite or nothing


def _lenient_chunk(tree: dict[str, Any]) -> Chunk:
    choices = tree.get("choices")
    chunk = _picked(Chunk(), tree)
    chunk.choices = []
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict):
            made = _picked(Choice(), choice)
            delta = choice.get("delta")
            made.delta = _picked(Delta(), delta) if isinstance(delta, dict) else None
            chunk.choices.append(made)
    return chunk


def _event(data: bytes) -> _Event | None:
    try:
        event: _Event = _decode_event(data)
    except UNREADABLE:
        tree = _tree(data)
        return None if tree is None else _lenient_event(tree)
    return event


def _lenient_event(tree: dict[str, Any]) -> _Event:
    event = _picked(_Event(), tree)
    response = tree.get("response")
    event.response = _picked(_Response(), response) if isinstance(response, dict) else None
    event.item = _ABSENT
    if event.response:
        event.response.output = _ABSENT
    return event


def _picked(into: _Struct, tree: dict[str, Any]) -> _Struct:
    """The struct with those of its fields that the tree has."""
    for name in into.__struct_fields__:
        if tree.get(name) is not None:
            setattr(into, name, tree[name])
    return into
