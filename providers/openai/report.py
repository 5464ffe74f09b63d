"""What a vendor's usage object says, in disjoint buckets.

Garbage is left out and flagged, an unknown number that is not zero is flagged, and nothing here
raises or counts below zero, whatever the vendor sends.
"""

from collections.abc import Mapping
from decimal import ROUND_CEILING, Context, Decimal
from typing import Any

import msgspec

from ledger.usage import Unit
from providers.adapter import Operation
from providers.custom import Cost, Quirks

COUNT_MAX = 1_000_000_000
"""No call consumes a billion of anything; a greater number is garbage."""

FLAGS_MAX = 8
_NAME_CHARACTERS_MAX = 48
_NANOS_PER_USD = 1_000_000_000
_USD_MAX = Decimal(1_000_000)
_EXACT = Context(prec=60, rounding=ROUND_CEILING)

# Name -> what it counts. "" is known and not needed. A name that stands in several places of the
# same report (vendors repeat themselves) counts once: the greatest.
_DETAILS: Mapping[str, Any] = {
    "cached_tokens": "cached",
    "cache_write_tokens": "written",
    "cache_creation_input_tokens": "written",
    "cache_creation": {
        "ephemeral_5m_input_tokens": "",
        "ephemeral_1h_input_tokens": "written_1h",
        "ephemeral_24h_input_tokens": "written_1h",
    },
    "cache_write_tokens_details": {"ttl_30m_tokens": "", "ttl_12h_tokens": "written_1h"},
    "cached_tokens_details": {
        "audio_tokens": "cached_audio",
        "image_tokens": "cached_image",
        "text_tokens": "",
    },
    "audio_tokens": "audio_in",
    "image_tokens": "image_in",
    "video_tokens": "video_in",
    "text_tokens": "",
}
_OUTPUT_DETAILS: Mapping[str, Any] = {
    "reasoning_tokens": "reasoning",
    "audio_tokens": "audio_out",
    "image_tokens": "image_out",
    "text_tokens": "",
    "accepted_prediction_tokens": "",
    "rejected_prediction_tokens": "",
    "tool_output_tokens": "",
}
_REPORT: Mapping[str, Any] = {
    "prompt_tokens": "prompt",
    "input_tokens": "prompt",
    "completion_tokens": "completion",
    "output_tokens": "completion",
    "total_tokens": "total",
    "prompt_tokens_details": _DETAILS,
    "prompt_token_details": _DETAILS,
    "input_tokens_details": _DETAILS,
    "input_token_details": _DETAILS,
    "completion_tokens_details": _OUTPUT_DETAILS,
    "output_tokens_details": _OUTPUT_DETAILS,
    "output_token_details": _OUTPUT_DETAILS,
    "reasoning_tokens": "reasoning",
    "cached_tokens": "cached",
    "num_cached_tokens": "cached",
    "prompt_cache_hit_tokens": "cached",
    "prompt_cache_miss_tokens": "",
    "cache_read_input_tokens": "cached",
    "cache_creation_input_tokens": "written",
    "cache_creation": _DETAILS["cache_creation"],
    "server_side_tool_usage_details": {
        "web_search_calls": "web_searches",
        "x_search_calls": "x_searches",
        "file_search_calls": "file_searches",
        "document_search_calls": "document_searches",
        "code_interpreter_calls": "code_sessions",
        "image_generation_calls": "images",
        "mcp_calls": "",
    },
    "num_server_side_tools_used": "",
    "num_sources_used": "",
    "server_tool_use": {"web_search_requests": "web_searches"},
    "server_tool_use_details": {"web_search_requests": "web_searches"},
    "context_details": "",
    "cost": "",
    "cost_details": "",
    "cost_in_usd_ticks": "",
    "is_byok": "",
    "latency_checkpoint": "",
    "prompt_audio_seconds": "",
    "audio_prompt_tokens": "",
    "request_count": "",
    "queue_time": "",
    "prompt_time": "",
    "completion_time": "",
    "total_time": "",
    "total_time_sec": "",
    "total_prompt_time_sec": "",
    "total_completion_time_sec": "",
    "avg_tok_per_sec": "",
    "avg_prompt_tok_per_sec": "",
    "avg_compl_tok_per_sec": "",
    "search_context_size": "",
    "citation_tokens": "",
    "num_search_queries": "web_searches",
}
_SAID_EVEN_IF_ZERO = frozenset(
    {"prompt_tokens", "input_tokens", "completion_tokens", "output_tokens", "total_tokens"}
)
_TOTALS = frozenset({"prompt_tokens", "completion_tokens", "total_tokens"})
_SELDOM = frozenset(
    {"written", "written_1h", "audio_in", "image_in", "video_in", "cached_audio", "cached_image"}
)
_INPUT, _CACHE_READ, _OUTPUT = Unit.INPUT, Unit.CACHE_READ, Unit.OUTPUT


class Reading(msgspec.Struct, gc=False):
    """A report, read. None: it does not say."""

    prompt: int | None
    completion: int | None  # reasoning included, wherever the vendor puts it
    counts: dict[str, int]  # Unit -> count above 0
    reasoning: int
    flags: list[str]


def read_report(report: Mapping[str, Any], quirks: Quirks, operation: Operation) -> Reading:
    """The counts of a usage object whose floats were decoded to `Decimal`."""
    return _read_plain(report, quirks, operation) or _read_any(report, quirks, operation)


def _read_plain(report: Mapping[str, Any], quirks: Quirks, operation: Operation) -> Reading | None:
    """The usual report, as `_read_any` would read it; None if it says anything else.

    That is: three totals that agree, and of all details none but cached tokens and reasoning.
    """
    get = report.get
    prompt, completion, total = get("prompt_tokens"), get("completion_tokens"), get("total_tokens")
    if not (type(prompt) is type(completion) is type(total) is int):
        return None
    cached, reasoning = _plain_details(report) if len(report) > len(_TOTALS) else (0, 0)
    agree = prompt + completion == total <= COUNT_MAX and 0 <= cached <= prompt
    if not (agree and 0 <= reasoning <= completion):
        return None
    if reasoning and operation in quirks.reasoning_outside:
        return None
    counts: dict[str, int] = {}
    if completion:
        counts[_OUTPUT] = completion
    if prompt > cached:
        counts[_INPUT] = prompt - cached
    if cached:
        counts[_CACHE_READ] = cached
    return Reading(prompt, completion, counts, reasoning, [])


def _plain_details(report: Mapping[str, Any]) -> tuple[int, int]:
    """The cached tokens and the reasoning; -1 where the report has more to say."""
    cached = reasoning = 0
    for name, value in report.items():
        if name in _TOTALS or (not value and name not in _SAID_EVEN_IF_ZERO):
            continue
        if name == "prompt_tokens_details":
            cached = _only("cached_tokens", value)
        elif name == "completion_tokens_details":
            reasoning = _only("reasoning_tokens", value)
        else:
            return -1, -1
    return cached, reasoning


def _only(wanted: str, details: Any) -> int:
    """The one count that these details give, 0 if they give none; -1 if they say more."""
    if type(details) is not dict:
        return -1
    if not any(details.values()):
        return 0
    count = details.get(wanted) or 0
    if type(count) is not int or sum(map(bool, details.values())) != bool(count):
        return -1
    return count


def _read_any(report: Mapping[str, Any], quirks: Quirks, operation: Operation) -> Reading:
    found: dict[str, int] = {}
    flags: list[str] = []
    _gather(report, _REPORT, found, flags)
    counts: dict[str, int] = {}
    prompt, completion, total = found.get("prompt"), found.get("completion"), found.get("total")
    if prompt is None and completion is None:
        prompt = total  # an embedding's report may say no more
    reasoning = found.get("reasoning", 0)
    if completion is not None:
        completion, reasoning = _with_reasoning(completion, found, quirks, operation)
        if reasoning > completion:
            reasoning = completion
            flags.append("reasoning_over_output")
        _output_buckets(completion, found, counts)
    if prompt is not None:
        if quirks.audio_outside:
            prompt += found.get("audio_in", 0)
        _input_buckets(prompt, found, counts, flags)
    if total is not None and total != (prompt or 0) + (completion or 0):
        flags.append("total_mismatch")
    if not _TOOL_NAMES.isdisjoint(found):
        _tool_buckets(found, counts)
    return Reading(prompt, completion, counts, reasoning, flags)


def _with_reasoning(
    completion: int, found: dict[str, int], quirks: Quirks, operation: Operation
) -> tuple[int, int]:
    """All of the output, and the reasoning in it, wherever the vendor puts that."""
    reasoning = found.get("reasoning", 0)
    if quirks.thoughts_in_total:
        outside = found.get("total", 0) - found.get("prompt", 0) - completion
        if outside > 0:
            return completion + outside, max(reasoning, outside)
    elif reasoning and operation in quirks.reasoning_outside:
        return completion + reasoning, reasoning
    return completion, reasoning


def _gather(
    report: Mapping[str, Any], names: Mapping[str, Any], found: dict[str, int], flags: list[str]
) -> None:
    """Sort the numbers of a report by what they mean."""
    for name, value in report.items():
        if not value and (value is None or name not in _SAID_EVEN_IF_ZERO):
            continue
        meaning = names.get(name)
        if type(value) is int and type(meaning) is str and 0 <= value <= COUNT_MAX:
            if meaning and value > found.get(meaning, -1):
                found[meaning] = value
        elif isinstance(meaning, dict) and isinstance(value, dict):
            _gather(value, meaning, found, flags)
        elif meaning != "" and len(flags) < FLAGS_MAX:
            if meaning is not None:
                flags.append(f"bad_usage:{_clean(name)}")
            elif _weighs(value):
                flags.append(f"unknown_field:{_clean(name)}")


def _weighs(value: Any, *, depth: int = 3) -> bool:
    """Whether a value nobody knows may stand for something that costs."""
    if isinstance(value, dict) and depth:
        return any(_weighs(inner, depth=depth - 1) for inner in value.values())
    if isinstance(value, dict | list):
        return bool(value)
    return isinstance(value, int | Decimal | float) and value is not True and bool(value)


def _clean(name: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "_.-") else "?" for c in name)[
        :_NAME_CHARACTERS_MAX
    ]


def _input_buckets(
    prompt: int, found: dict[str, int], counts: dict[str, int], flags: list[str]
) -> None:
    """Divide the prompt into buckets that sum to it, whatever the details say."""
    cached = found.get("cached", 0)
    if cached > prompt:
        cached = prompt
        flags.append("cached_over_input")
    if not _SELDOM.isdisjoint(found):
        _divide(prompt, cached, found, counts, flags)
        return
    if prompt > cached:
        counts[_INPUT] = prompt - cached
    if cached:
        counts[_CACHE_READ] = cached


def _divide(
    prompt: int, cached: int, found: dict[str, int], counts: dict[str, int], flags: list[str]
) -> None:
    """Divide a prompt that is not all text, or that was written to the cache."""
    written = max(found.get("written", 0), found.get("written_1h", 0))
    if written > prompt - cached:
        written = prompt - cached
        flags.append("cache_write_over_input")
    rest = {Unit.INPUT: prompt}
    for unit, name in _MODALITIES:
        rest[unit] = min(found.get(name, 0), rest[Unit.INPUT])
        rest[Unit.INPUT] -= rest[unit]
    # What is known to be cached of a modality first, then text, then what is left of the others.
    for unit, into, name in _CACHED:
        cached -= _move(min(cached, found.get(name, 0)), rest, counts, unit, into)
    for unit, into in _CACHE_READS:
        cached -= _move(cached, rest, counts, unit, into)
    long = min(found.get("written_1h", 0), written)
    for unit in _WRITES:
        moved = _move(long, rest, counts, unit, Unit.CACHE_WRITE_1H)
        long, written = long - moved, written - moved
    for unit in _WRITES:
        written -= _move(written, rest, counts, unit, Unit.CACHE_WRITE_5M)
    counts.update({unit: count for unit, count in rest.items() if count})


_MODALITIES = (
    (Unit.INPUT_AUDIO, "audio_in"),
    (Unit.INPUT_IMAGE, "image_in"),
    (Unit.INPUT_VIDEO, "video_in"),
)
_CACHED = (
    (Unit.INPUT_AUDIO, Unit.CACHE_READ_AUDIO, "cached_audio"),
    (Unit.INPUT_IMAGE, Unit.CACHE_READ_IMAGE, "cached_image"),
)
_CACHE_READS = (
    (Unit.INPUT, Unit.CACHE_READ),
    (Unit.INPUT_IMAGE, Unit.CACHE_READ_IMAGE),
    (Unit.INPUT_AUDIO, Unit.CACHE_READ_AUDIO),
    (Unit.INPUT_VIDEO, Unit.CACHE_READ),
)
_WRITES = (Unit.INPUT, Unit.INPUT_IMAGE, Unit.INPUT_AUDIO, Unit.INPUT_VIDEO)


def _move(count: int, rest: dict[Unit, int], counts: dict[str, int], unit: Unit, into: Unit) -> int:
    """Move up to `count` tokens of `unit` from the rest into another bucket; how many it were."""
    moved = min(count, rest[unit])
    if moved:
        rest[unit] -= moved
        counts[into] = counts.get(into, 0) + moved
    return moved


def _output_buckets(completion: int, found: dict[str, int], counts: dict[str, int]) -> None:
    if "audio_out" not in found and "image_out" not in found:
        if completion:
            counts[_OUTPUT] = completion
        return
    audio = min(found.get("audio_out", 0), completion)
    image = min(found.get("image_out", 0), completion - audio)
    divided = {
        Unit.OUTPUT: completion - audio - image,
        Unit.OUTPUT_AUDIO: audio,
        Unit.OUTPUT_IMAGE: image,
    }
    counts.update({unit: count for unit, count in divided.items() if count})


def _tool_buckets(found: dict[str, int], counts: dict[str, int]) -> None:
    for unit, names in _TOOLS:
        count = sum(found.get(name, 0) for name in names)
        if count:
            counts[unit] = count


_TOOLS = (
    (Unit.WEB_SEARCHES, ("web_searches", "x_searches")),
    (Unit.FILE_SEARCHES, ("file_searches", "document_searches")),
    (Unit.CODE_SESSIONS, ("code_sessions",)),
    (Unit.IMAGES, ("images",)),
)
_TOOL_NAMES = frozenset(name for _, names in _TOOLS for name in names)


def reported_nanos(tree: Mapping[str, Any], cost: Cost) -> int | None:
    """The vendor's own figure in nano-USD, rounded up; None if it gives none that makes sense."""
    value: Any = tree
    for key in cost.path:
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        return None
    if isinstance(value, Decimal) and not value.is_finite():
        return None
    if not 0 <= value <= _USD_MAX * cost.per_usd:
        return None
    exact = _EXACT.divide(_EXACT.multiply(Decimal(value), Decimal(_NANOS_PER_USD)), cost.per_usd)
    return int(exact.to_integral_value(rounding=ROUND_CEILING))
