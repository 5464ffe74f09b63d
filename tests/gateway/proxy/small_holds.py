"""Holds as small as streams may have at first, and what a stream has said of its end."""

from typing import Any

from tests.gateway.proxy.gatehouse import events

ASK = {"messages": [{"role": "user", "content": "hello"}], "stream": True}
FIRST = 100  # tokens held for a stream whose like is not known
OUTPUT_NANOS = 15_000
INPUT_NANOS = 3_000
LIMITS: dict[str, Any] = {
    "timeouts": {"connect_s": 2, "first_byte_s": 5, "idle_s": 5},
    "stream_output_tokens": FIRST,
    "clamped_output_tokens_min": 50,
}


def changed(**model: object) -> dict[str, Any]:
    """Streams hold little at first; `model`: settings of every model."""
    everything = {"targets": [{"provider": "vendor", "model": "*"}], **model}
    return {"limits": LIMITS, "models": {"*": everything}}


def text_of(body: bytes) -> str:
    """What a stream of a chat completion has said."""
    choices = [event.get("choices") for event in events(body)]
    return "".join(one[0]["delta"].get("content") or "" for one in choices if one)


def finish_of(body: bytes) -> Any:
    """Why its only choice ended."""
    reasons = [c.get("finish_reason") for event in events(body) for c in event["choices"]]
    return [reason for reason in reasons if reason is not None]
