"""What one answer has told of its consumption so far, and the usage that follows from it.

Of each field of the reports the last value that is not null counts: reports are cumulative, are
repeated, and are not always in the last event. Where the vendor says nothing, the output is the
greatest of what it last said, the content deltas, and a token for each 4 bytes of text.
"""

import math
from collections import Counter
from typing import Any

import msgspec
from msgspec import Raw
from msgspec.structs import replace

from ledger.usage import NOTHING, OUTPUT_TOKENS, Source, Unit, Usage
from providers.adapter import OUTPUTLESS, Call, Failure, Operation
from providers.custom import Quirks
from providers.openai.report import FLAGS_MAX, Reading, read_report, reported_nanos

BYTES_PER_TOKEN = 4

BOUND_PER_TOKEN = 3
"""The bound on the input overshoots 3.2 times on real requests; an estimate is a third of it."""

ITEMS_MAX = 10_000
"""Tool runs counted in one answer; vendors stop at 128."""

_NAME_CHARACTERS_MAX = 128

UNREADABLE = (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError, ArithmeticError)
"""What decoding an answer and its numbers may raise."""

# Keys of a delta, message or item below which the model's own words are.
_TEXT_KEYS = (
    "content",
    "reasoning_content",
    "reasoning",
    "thinking",
    "refusal",
    "text",
    "transcript",
    "tool_calls",
    "function_call",
    "function",
    "name",
    "arguments",
    "input",
    "code",
    "summary",
    "message",
)


class _Item(msgspec.Struct, gc=False):
    """An output item of a response."""

    type: Any = None
    action: Any = None
    status: Any = None
    container_id: Any = None


_decode_items = msgspec.json.Decoder(list[_Item] | None).decode
_decode_item = msgspec.json.Decoder(_Item).decode

_UNITS = {
    "web_search_call": Unit.WEB_SEARCHES,
    "x_search_call": Unit.WEB_SEARCHES,
    "file_search_call": Unit.FILE_SEARCHES,
    "image_generation_call": Unit.IMAGES,
    "code_interpreter_call": Unit.CODE_SESSIONS,
}
# Pages opened and searched within cost nothing beside their tokens.
_FREE_ACTIONS = frozenset({"open_page", "find_in_page", "find"})


class Tally:
    """Adds up one answer. The meters feed it."""

    __slots__ = (
        "_amid_text",
        "_beside",
        "_call",
        "_deltas_at_report",
        "_items",
        "_quirks",
        "_report",
        "bound",
        "deltas",
        "failed",
        "failure",
        "flags",
        "model",
        "text_bytes",
        "tier",
    )

    def __init__(self, call: Call, quirks: Quirks, bound: int) -> None:
        self._call, self._quirks, self.bound = call, quirks, bound
        self._report: dict[str, Any] | None = None
        self._beside: dict[str, Any] = {}
        self._items: dict[tuple[Unit, Any], None] = {}
        self._deltas_at_report = 0
        self._amid_text = False
        self.deltas = 0  # events that carried content
        self.text_bytes = 0  # of the content, as text
        self.model: str | None = None
        self.tier: str | None = None
        self.failure: Failure | None = None
        self.failed = False  # the vendor ended the call as failed, and bills what it reports
        self.flags: list[str] = []

    def flag(self, name: str) -> None:
        if name not in self.flags and len(self.flags) < FLAGS_MAX:
            self.flags.append(name)

    def say_model(self, model: Any) -> None:
        """The vendor named the model that serves; some name none at first."""
        self.model = name_said(model) or self.model

    def say_tier(self, tier: Any) -> None:
        self.tier = name_said(tier) or self.tier

    def say_beside(self, name: str, value: Any) -> None:
        """Something outside the usage object that tells of cost."""
        self._beside[name] = value

    def report(self, usage: Any, *, amid_text: bool = False) -> None:
        """A usage object came, or what stands in its place. `amid_text`: with text beside it."""
        if not isinstance(usage, dict):
            self.flag("bad_usage:usage")
            return
        self._deltas_at_report, self._amid_text = self.deltas, amid_text
        if self._report is None:
            self._report = usage
        else:
            _merge(self._report, usage)
        if "service_tier" in usage:
            self.say_tier(usage["service_tier"])

    def count_items(self, output: Raw) -> None:
        """The tools that the vendor ran, as the final list of output items shows them."""
        if b"_call" not in bytes(output):
            return
        try:
            items = _decode_items(output) or []
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            self.flag("unreadable_output")
            return
        for index, item in enumerate(items):
            self._count_item(item, index)

    def count_item(self, item: Raw, index: Any) -> None:
        """A tool that the vendor ran, as it is done; `index` is its place in the output."""
        if b"_call" in bytes(item):
            try:
                self._count_item(_decode_item(item), index)
            except (msgspec.MsgspecError, UnicodeError, RecursionError):
                self.flag("unreadable_output")

    def _count_item(self, item: _Item, index: Any) -> None:
        unit = _UNITS.get(item.type) if type(item.type) is str else None
        if unit is None or item.status == "failed":
            return
        if isinstance(item.action, dict) and item.action.get("type") in _FREE_ACTIONS:
            return
        # Calls of one container are one session.
        key = item.container_id if unit is Unit.CODE_SESSIONS and item.container_id else index
        if isinstance(key, str | int) and len(self._items) < ITEMS_MAX:
            self._items[unit, key] = None

    def generated(self) -> int:
        """Output tokens so far: the most that was said, shown as deltas, or shown as text."""
        said = 0
        if self._report is not None:
            told = self._report.get("completion_tokens", self._report.get("output_tokens"))
            said = told if type(told) is int else 0
        return max(said, self.deltas, -(-self.text_bytes // BYTES_PER_TOKEN))

    def usage(self, *, started: bool, over: bool, finished: bool) -> Usage:
        """The consumption so far. `over`: no more bytes will come; `finished`: and none lack."""
        reading = None
        if self._report is not None:
            reading = read_report(self._report, self._quirks, self._call.operation)
        if reading is None or (reading.prompt is None and reading.completion is None):
            if not (started and self._may_have_cost(over=over, finished=finished)):
                return replace(NOTHING, model=self.model, flags=tuple(self.flags))
        elif self._is_exact(reading, finished=finished):
            return self._made(reading.counts, Source.REPORTED, reading)
        return self._made(self._estimated(reading), Source.ESTIMATED, reading)

    def _may_have_cost(self, *, over: bool, finished: bool) -> bool:
        """Whether a call without a report is to be estimated at all."""
        if self._call.operation is Operation.MODERATIONS or self.failed:
            return False
        if self.deltas or self.text_bytes:
            return True
        return self.failure is None and (finished or not over)

    def _is_exact(self, reading: Reading, *, finished: bool) -> bool:
        """Whether the report covers all that was sent; a cut stream may have sent more since.

        A vendor that reports with every piece of text may say one until the last of them.
        """
        if reading.prompt is None:
            return False
        if self._call.operation in OUTPUTLESS:
            return True
        if reading.completion is None or self.deltas > self._deltas_at_report:
            return False
        return finished or not self._amid_text or reading.completion >= self.deltas

    def _estimated(self, reading: Reading | None) -> dict[str, int]:
        counts = dict(reading.counts) if reading else {}
        if reading is None or reading.prompt is None:
            counts[Unit.INPUT] = max(
                1, min(self.bound, math.ceil(self._call.input_bound / BOUND_PER_TOKEN))
            )
        output = max(self.deltas, math.ceil(self.text_bytes / BYTES_PER_TOKEN))
        reported = (reading.completion or 0) if reading else 0
        if output > reported and self._call.operation not in OUTPUTLESS:
            counts = {unit: n for unit, n in counts.items() if unit not in OUTPUT_TOKENS}
            counts[Unit.OUTPUT] = output
        return counts

    def _made(self, counts: dict[str, int], source: Source, reading: Reading | None) -> Usage:
        quirks = self._quirks
        if self._items:
            self._add_tools(counts)
        if quirks.request_fee:
            counts[Unit.REQUESTS] = 1
        if quirks.searches and "web_search_options" in self._call.fields:
            counts[Unit.WEB_SEARCHES] = max(1, counts.get(Unit.WEB_SEARCHES, 0))
        flags = self.flags
        if reading:
            flags = [*flags, *reading.flags]
            if reading.completion == 0 and self.deltas and source is Source.REPORTED:
                flags.append("output_reported_zero")
        cost = None
        if quirks.cost:
            tree = self._beside if quirks.cost.beside_usage else self._report
            cost = reported_nanos(tree or {}, quirks.cost)
        return Usage(
            counts,
            source,
            reading.reasoning if reading else 0,
            self.model,
            self.tier,
            cost,
            tuple(flags[:FLAGS_MAX]),
        )

    def _add_tools(self, counts: dict[str, int]) -> None:
        """What the items show, where the report does not already count as many."""
        done = Counter(unit for unit, _ in self._items)
        for unit, count in done.items():
            counts[unit] = max(count, counts.get(unit, 0))


def name_said(name: Any) -> str | None:
    """The name that a vendor gives, cut short; None if it gives none."""
    return name[:_NAME_CHARACTERS_MAX] if type(name) is str and name else None


def _merge(into: dict[str, Any], new: dict[str, Any], *, depth: int = 3) -> None:
    for name, value in new.items():
        old = into.get(name)
        if depth and isinstance(value, dict) and isinstance(old, dict):
            _merge(old, value, depth=depth - 1)
        elif value is not None:
            into[name] = value


def text_bytes(value: Any) -> int:
    """How many bytes of UTF-8 the model's own words in a delta, message or item have."""
    if type(value) is str:
        return len(value) if value.isascii() else len(value.encode("utf-8", "replace"))
    size, left = 0, [value]
    while left:
        node = left.pop()
        if type(node) is str:
            size += text_bytes(node)
        elif isinstance(node, list):
            left += node
        elif isinstance(node, dict):
            left += [node[key] for key in _TEXT_KEYS if key in node]
    return size
