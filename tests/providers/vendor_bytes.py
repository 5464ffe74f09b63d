"""What vendors send, written for these tests: small answers and streams of each kind."""

import json
from collections.abc import Iterable
from typing import Any

from ledger.usage import Usage
from providers.adapter import Call, Meter, Operation, Secret, Target
from providers.openai.calls import read_call
from providers.openai.dialect import OpenAI

DONE = b"data: [DONE]\n\n"
USAGE = {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17}


def body(**fields: Any) -> bytes:
    """A client's body."""
    return json.dumps({"model": "alias", **fields}).encode()


def call(operation: Operation = Operation.CHAT, *, asks_usage: bool = False, **fields: Any) -> Call:
    """A client's streamed call, as read from its body."""
    if asks_usage:
        fields["stream_options"] = {"include_usage": True}
    fields.setdefault("stream", operation is not Operation.EMBEDDINGS)
    return read_call(operation, body(**fields))


def target(quirks: str = "openai", **changes: Any) -> Target:
    """A model of a vendor."""
    given = {
        "provider": "vendor",
        "model": "vendor-model",
        "scheme": "https",
        "host": "vendor.example",
        "port": 443,
        "path": "/v1",
        "api_key": Secret("sk-vendor"),
        "quirks": quirks,
    }
    return Target(**{**given, **changes})


def meter(
    of: Call | None = None, quirks: str = "openai", *, streamed: bool = True, bound: int = 10_000
) -> Meter:
    """A meter as the gateway makes it."""
    return OpenAI().meter(of or call(), target(quirks), streamed=streamed, bound=bound)


def metered(of: Meter, stream: bytes) -> Usage:
    """The usage of a whole answer."""
    of.feed(stream)
    of.end()
    return of.usage()


def event(tree: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(tree).encode() + b"\n\n"


def named_event(tree: Any) -> bytes:
    """One event of a response's stream."""
    return f"event: {tree['type']}\n".encode() + event(tree)


def chunk(text: str | None = None, **fields: Any) -> bytes:
    """A chunk of a chat completion, with a delta if there is a text."""
    delta = {"content": text} if text is not None else {}
    choices = [{"index": 0, "delta": delta, "finish_reason": None}]
    common = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m-1"}
    return event({**common, "choices": choices, **fields})


def stop(**fields: Any) -> bytes:
    """The chunk with the finish reason."""
    choices = [{"index": 0, "delta": {}, "finish_reason": "stop"}]
    return chunk(**{"choices": choices, **fields})


def usage_chunk(usage: Any = None, **fields: Any) -> bytes:
    """The chunk that only tells the usage."""
    return chunk(choices=[], usage=USAGE if usage is None else usage, **fields)


def answer(usage: Any = None, text: str = "Hello there", **fields: Any) -> bytes:
    """A whole chat completion."""
    message = {"role": "assistant", "content": text}
    tree = {
        "id": "c1",
        "model": "m-1",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        **({} if usage is None else {"usage": usage}),
        **fields,
    }
    return json.dumps(tree).encode()


def response(kind: str, usage: Any = None, **fields: Any) -> bytes:
    """The event of a response that carries all of it."""
    status = kind.removeprefix("response.")
    shown = {"id": "r1", "model": "m-1", "status": status, "usage": usage, **fields}
    return named_event({"type": kind, "sequence_number": 9, "response": shown})


def delta_event(text: str, kind: str = "response.output_text.delta") -> bytes:
    """The event of a response that carries some text."""
    return named_event({"type": kind, "sequence_number": 3, "output_index": 0, "delta": text})


def cut(stream: bytes, size: int) -> Iterable[bytes]:
    """The stream in pieces of `size` bytes."""
    return (stream[at : at + size] for at in range(0, len(stream), size))
