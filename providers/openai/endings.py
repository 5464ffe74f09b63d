"""The events that end a client's stream at its limit, in the form its vendor would have used."""

from collections.abc import Iterable
from typing import Any

import msgspec

from ledger.usage import Usage
from providers.adapter import Operation

DONE = b"data: [DONE]\n\n"


def length_chunks(
    operation: Operation, last: bytes, choices: Iterable[int], usage: Usage | None
) -> bytes:
    """The end of a chat or legacy completion at its limit: every open choice stops for `length`.

    `last` is the data of any of its chunks, whose id the new ones must have; `usage` is for a
    client that asked for it.
    """
    like = _fields(last, ("id", "object", "created", "model", "system_fingerprint"))
    content: dict[str, Any] = {"delta": {}} if operation is Operation.CHAT else {"text": ""}
    stopped = [
        {"index": index, **content, "logprobs": None, "finish_reason": "length"}
        for index in choices
    ]
    events = _event({**like, "choices": stopped}) if stopped else b""
    if usage is not None:
        sent, got = usage.input_tokens(), usage.output_tokens()
        counts = {"prompt_tokens": sent, "completion_tokens": got, "total_tokens": sent + got}
        events += _event({**like, "choices": [], "usage": counts})
    return events + DONE


def length_response(first: bytes, usage: Usage, *, sequence: int) -> bytes:
    """The end of a response at its limit. `first` is the data of its first event."""
    sent, got = usage.input_tokens(), usage.output_tokens()
    response: dict[str, Any] = {
        **_fields(_response(first), ("id", "object", "created_at", "model")),
        "status": "incomplete",
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"},
        "output": [],
        "usage": {"input_tokens": sent, "output_tokens": got, "total_tokens": sent + got},
    }
    event = {
        "type": "response.incomplete",
        "sequence_number": sequence,
        "response": response,
    }
    return b"event: response.incomplete\n" + _event(event)


def _event(tree: Any) -> bytes:
    return b"data: " + msgspec.json.encode(tree) + b"\n\n"


def _fields(data: bytes, names: tuple[str, ...]) -> dict[str, msgspec.Raw]:
    try:
        tree = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return {}
    return {name: tree[name] for name in names if name in tree}


def _response(data: bytes) -> bytes:
    return bytes(_fields(data, ("response",)).get("response", b"{}"))
