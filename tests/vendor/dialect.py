"""OpenAI's answers, byte for byte as its servers write them; ids are placeholders."""

from typing import Any, NamedTuple

import orjson

from tests.vendor.asked import Asked, embedding
from tests.vendor.script import Script

ID = "000000000000000000000000"  # replaced by the request's number, padded to the same length
_CREATED = 1_754_000_000


class Tokens(NamedTuple):
    """What one answer consumes when it is sent whole."""

    input: int
    cached: int
    output: int
    reasoning: int
    is_cut: bool  # by the request's own limit


class Event(NamedTuple):
    """One event of a stream, and how many deltas have been sent with it."""

    data: bytes
    deltas: int


def tokens(script: Script, asked: Asked) -> Tokens:
    """The vendor's own count."""
    match asked.operation:
        case "embeddings":
            return Tokens(script.input_tokens * asked.inputs, 0, 0, 0, is_cut=False)
        case "moderations" | "models":
            return Tokens(0, 0, 0, 0, is_cut=False)
        case _:
            wanted = script.output_tokens
            one = wanted if asked.limit is None else min(wanted, asked.limit)
            return Tokens(
                script.input_tokens,
                script.cached_tokens,
                one * asked.choices,
                min(script.reasoning_tokens, one) * asked.choices,
                is_cut=one < wanted,
            )


def deltas(script: Script, asked: Asked) -> int:
    """The pieces of text of one choice."""
    if script.deltas is not None:
        return script.deltas
    count = tokens(script, asked)
    return (count.output - count.reasoning) // asked.choices


def sse(event: dict[str, Any]) -> bytes:
    """As chat completions frame it."""
    return b"data: " + orjson.dumps(event) + b"\n\n"


def error_object(script: Script, status: int) -> dict[str, Any]:
    """The error that OpenAI gives with a status, or the script's own."""
    kind, code, message = {
        400: ("invalid_request_error", "invalid_value", "Invalid value."),
        401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided: sk-inv*key"),
        404: ("invalid_request_error", "model_not_found", "The model does not exist."),
        429: ("requests", "rate_limit_exceeded", "Rate limit reached for requests."),
    }.get(status, ("server_error", None, "The server had an error processing your request."))
    error = {"message": message, "type": kind, "param": None, "code": code}
    return {"error": error if script.error is None else script.error}


def usage(script: Script, asked: Asked, *, output: int | None = None) -> dict[str, Any]:
    """The usage object; `output` when not all has been generated yet."""
    count = tokens(script, asked)
    done = count.output if output is None else output
    shown: dict[str, Any]
    if asked.operation == "embeddings":
        shown = {"prompt_tokens": count.input, "total_tokens": count.input}
    else:
        shown = {
            "prompt_tokens": count.input,
            "completion_tokens": done,
            "total_tokens": count.input + done,
            "prompt_tokens_details": {"cached_tokens": count.cached, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": count.reasoning,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }
    return shown | (script.usage_fields or {})


def _tool_call(number: int) -> dict[str, Any]:
    function = {"name": "lookup", "arguments": '{"key":"value"}'}
    return {"id": f"call_{number}_{ID}", "type": "function", "function": function}


def _finish(script: Script, asked: Asked) -> str:
    if script.tool_calls:
        return "tool_calls"
    return "length" if tokens(script, asked).is_cut else "stop"


def _envelope(script: Script, asked: Asked, kind: str) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "id": ("chatcmpl-" if asked.operation == "chat" else "cmpl-") + ID,
        "object": kind,
        "created": _CREATED,
        "model": script.model or asked.model,
    }
    if script.service_tier is not None:
        shown["service_tier"] = script.service_tier
    shown["system_fingerprint"] = "fp_44709d6fcb"
    return shown


def chat_body(script: Script, asked: Asked) -> bytes:
    """A chat completion that is no stream."""
    count = deltas(script, asked)
    message: dict[str, Any] = {"role": "assistant", "content": script.text * count}
    message |= {"refusal": None, "annotations": []}
    if script.tool_calls:
        message["content"] = None
        message["tool_calls"] = [_tool_call(number) for number in range(script.tool_calls)]
    finish = _finish(script, asked)
    shown = _envelope(script, asked, "chat.completion")
    shown["choices"] = [
        {"index": index, "message": message, "logprobs": None, "finish_reason": finish}
        for index in range(asked.choices)
    ]
    if script.usage != "never":
        shown["usage"] = usage(script, asked)
    return orjson.dumps(shown)


def completion_body(script: Script, asked: Asked) -> bytes:
    """A completion of the older kind."""
    text = script.text * deltas(script, asked)
    shown = _envelope(script, asked, "text_completion")
    shown["choices"] = [
        {"text": text, "index": index, "logprobs": None, "finish_reason": _finish(script, asked)}
        for index in range(asked.choices)
    ]
    if script.usage != "never":
        shown["usage"] = usage(script, asked)
    return orjson.dumps(shown)


def embeddings_body(script: Script, asked: Asked) -> bytes:
    """Vectors, as numbers or in base64."""
    vector = embedding(script.dimensions, is_base64=asked.is_base64)
    shown = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": vector}
            for index in range(asked.inputs)
        ],
        "model": script.model or asked.model,
        "usage": usage(script, asked),
    }
    return orjson.dumps(shown)


def moderations_body(script: Script, asked: Asked) -> bytes:
    """Nothing is ever flagged."""
    result = {"flagged": False, "categories": {"violence": False}}
    shown = {
        "id": "modr-" + ID,
        "model": script.model or asked.model or "omni-moderation-latest",
        "results": [result | {"category_scores": {"violence": 0.0003}}],
    }
    return orjson.dumps(shown)


def models_body(ids: list[str]) -> bytes:
    """The list of models."""
    data = [
        {"id": each, "object": "model", "created": _CREATED, "owned_by": "vendor"} for each in ids
    ]
    return orjson.dumps({"object": "list", "data": data})


class _ChatStream:
    """The events of one chat completion stream."""

    def __init__(self, script: Script, asked: Asked) -> None:
        self._script, self._asked = script, asked
        self._envelope = _envelope(script, asked, "chat.completion.chunk")
        self._says_null = script.usage in ("asked", "always") and (
            asked.wants_usage or script.usage == "always"
        )
        self._sent = 0

    def events(self) -> list[Event]:
        asked, script = self._asked, self._script
        pieces = deltas(script, asked)
        events = []
        for index in range(asked.choices):
            opening = {"role": "assistant", "content": "", "refusal": None}
            events.append(self._chunk(index, opening))
        for number in range(pieces):
            for index in range(asked.choices):
                self._sent += 1
                events.append(self._chunk(index, self._delta(number)))
        finish = _finish(script, asked)
        for index in range(asked.choices):
            is_last = index == asked.choices - 1
            events.append(self._chunk(index, {}, finish=finish, is_last=is_last))
        if self._says_null:
            closing = self._envelope | {"choices": [], "usage": usage(script, asked)}
            events.append(Event(sse(closing), self._sent))
        if script.done:
            events.append(Event(b"data: [DONE]\n\n", self._sent))
        return events

    def _delta(self, number: int) -> dict[str, Any]:
        if number >= self._script.tool_calls:
            return {"content": self._script.text}
        call = _tool_call(number)
        return {"tool_calls": [{"index": number} | call]}

    def _chunk(
        self, index: int, delta: dict[str, Any], *, finish: str | None = None, is_last: bool = False
    ) -> Event:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        event = self._envelope | {"choices": [choice]}
        if self._says_null:
            event["usage"] = None
        elif self._script.usage == "every":
            whole = tokens(self._script, self._asked).output
            total = max(deltas(self._script, self._asked) * self._asked.choices, 1)
            done = whole if is_last else whole * self._sent // total
            event["usage"] = usage(self._script, self._asked, output=done)
        elif self._script.usage == "last" and is_last:
            event["usage"] = usage(self._script, self._asked)
        event["obfuscation"] = "x7Qp2mKd"
        return Event(sse(event), self._sent)


def chat_events(script: Script, asked: Asked) -> list[Event]:
    """A chat completion as a stream."""
    return _ChatStream(script, asked).events()


def completion_events(script: Script, asked: Asked) -> list[Event]:
    """A completion of the older kind as a stream."""
    envelope = _envelope(script, asked, "text_completion")
    pieces = deltas(script, asked)
    events = []
    for number in range(pieces):
        is_last = number == pieces - 1
        finish = _finish(script, asked) if is_last else None
        choice = {"text": script.text, "index": 0, "logprobs": None, "finish_reason": finish}
        events.append(Event(sse(envelope | {"choices": [choice]}), number + 1))
    if script.usage == "always" or (script.usage == "asked" and asked.wants_usage):
        closing = envelope | {"choices": [], "usage": usage(script, asked)}
        events.append(Event(sse(closing), pieces))
    if script.done:
        events.append(Event(b"data: [DONE]\n\n", pieces))
    return events
