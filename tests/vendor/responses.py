"""OpenAI's Responses API, whole and as a stream of named events."""

from typing import Any

import orjson

from tests.vendor.asked import Asked
from tests.vendor.dialect import ID, Event, deltas, error_object, tokens
from tests.vendor.script import Script


def usage(script: Script, asked: Asked) -> dict[str, Any]:
    """The usage object of a response."""
    count = tokens(script, asked)
    shown = {
        "input_tokens": count.input,
        "input_tokens_details": {"cached_tokens": count.cached},
        "output_tokens": count.output,
        "output_tokens_details": {"reasoning_tokens": count.reasoning},
        "total_tokens": count.input + count.output,
    }
    return shown | (script.usage_fields or {})


def _response(script: Script, asked: Asked, status: str) -> dict[str, Any]:
    """The response object at one moment; only a final one has output and usage."""
    is_over = status != "in_progress"
    has_output = status in ("completed", "incomplete")
    reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
    failure = None
    if status == "failed":
        failure = script.error or {"code": "server_error", "message": "The model failed."}
    return {
        "id": "resp_" + ID,
        "object": "response",
        "created_at": 1_754_000_000,
        "status": status,
        "background": False,
        "error": failure,
        "incomplete_details": reason,
        "instructions": None,
        "max_output_tokens": asked.limit,
        "model": script.model or asked.model,
        "output": _output(script, asked) if has_output else [],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": script.service_tier if is_over else "auto",
        "store": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": usage(script, asked) if is_over and script.usage != "never" else None,
        "user": None,
        "metadata": {},
    }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}


def _output(script: Script, asked: Asked) -> list[dict[str, Any]]:
    if script.tool_calls:
        return [
            {
                "id": f"fc_{number}_{ID}",
                "type": "function_call",
                "status": "completed",
                "arguments": '{"key":"value"}',
                "call_id": f"call_{number}_{ID}",
                "name": "lookup",
            }
            for number in range(script.tool_calls)
        ]
    text = script.text * deltas(script, asked)
    return [_message("completed", [_part(text)])]


def _message(status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": "msg_" + ID,
        "type": "message",
        "status": status,
        "content": content,
        "role": "assistant",
    }


def response_body(script: Script, asked: Asked) -> bytes:
    """A response that is no stream."""
    return orjson.dumps(_response(script, asked, _status(script, asked)))


def _status(script: Script, asked: Asked) -> str:
    is_cut = tokens(script, asked).is_cut and script.terminal == "completed"
    return "incomplete" if is_cut else script.terminal


def _sse(kind: str, number: int, fields: dict[str, Any]) -> bytes:
    event = {"type": kind, "sequence_number": number} | fields
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps(event))


def response_events(script: Script, asked: Asked) -> list[Event]:
    """A response as a stream; `terminal` chooses its last event."""
    pieces = deltas(script, asked)
    text = script.text * pieces
    at = {"item_id": "msg_" + ID, "output_index": 0, "content_index": 0}
    status = _status(script, asked)
    plan: list[tuple[str, int, dict[str, Any]]] = [
        ("response.created", 0, {"response": _response(script, asked, "in_progress")}),
        ("response.in_progress", 0, {"response": _response(script, asked, "in_progress")}),
        ("response.output_item.added", 0, {"output_index": 0, "item": _message("in_progress", [])}),
        ("response.content_part.added", 0, at | {"part": _part("")}),
    ]
    for number in range(pieces):
        delta = at | {"delta": script.text, "logprobs": [], "obfuscation": "x7Qp2mKd"}
        plan.append(("response.output_text.delta", number + 1, delta))
    done = _message("completed", [_part(text)])
    plan += [
        ("response.output_text.done", pieces, at | {"text": text, "logprobs": []}),
        ("response.content_part.done", pieces, at | {"part": _part(text)}),
        ("response.output_item.done", pieces, {"output_index": 0, "item": done}),
    ]
    if status != "none":
        final = {"response": _response(script, asked, status)}
        plan.append((f"response.{status}", pieces, final))
    return [
        Event(_sse(kind, number, fields), sent) for number, (kind, sent, fields) in enumerate(plan)
    ]


def error_event(script: Script) -> bytes:
    """What breaks a stream off."""
    error = error_object(script, 500)["error"]
    fields = {"code": error.get("code"), "message": error.get("message"), "param": None}
    return _sse("error", 3, fields)
