"""The vendor's request for a call: the client's members, byte for byte, but for what must differ.

Differ do: the model's name; `stream_options.include_usage`, always asked of a stream; and the limit
of the output, which is written where the vendor reads it.
"""

from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import Raw

from providers.adapter import Call, Head, Operation, Target, UpstreamRequest
from providers.custom import QUIRKS, Quirks
from providers.openai.calls import LIMITS

_encode = msgspec.json.Encoder().encode
_decode_members = msgspec.json.Decoder(dict[str, Raw] | None).decode

_ASKED = Raw(b'{"include_usage":true}')
_TRUE = Raw(b"true")
_CHAT = Operation.CHAT
_COMPLETIONS = Operation.COMPLETIONS


def upstream_request(call: Call, target: Target) -> UpstreamRequest:
    """The request that asks `target` for what the client asked of us."""
    quirks = QUIRKS[target.quirks]
    members: dict[str, Any] = {**call.fields, "model": target.model}
    if call.stream and (call.operation is _CHAT or call.operation is _COMPLETIONS):
        _ask_usage(members, quirks)
    if call.output_limit is not None:
        _set_limit(members, call, quirks)
    head = target.heads.get((call.operation, call.stream)) or _new_head(call, target, quirks)
    return UpstreamRequest("POST", head.path, head.headers, _encode(members))


def _ask_usage(members: dict[str, Any], quirks: Quirks) -> None:
    options = members.get("stream_options")
    if not quirks.usage_asked:
        members.pop("stream_options", None)
    elif options is None:
        members["stream_options"] = _ASKED
    else:
        members["stream_options"] = {**(_decode_members(options) or {}), "include_usage": _TRUE}


def _set_limit(members: dict[str, Any], call: Call, quirks: Quirks) -> None:
    """Make every limit that is forwarded the one that money is held for, and leave at least one."""
    names = LIMITS[call.operation]
    if call.operation is _CHAT and quirks.old_limit:
        members.pop("max_completion_tokens", None)
        names = ("max_tokens",)
    is_set = False
    for name in names:
        # A null stays: where two spellings exist, some models refuse one of them.
        if name in members and bytes(members[name]) != b"null":
            members[name] = call.output_limit
            is_set = True
    if not is_set and names:
        members[names[0]] = call.output_limit


def _new_head(call: Call, target: Target, quirks: Quirks) -> Head:
    """The head of such requests, made and remembered."""
    head = Head(_path(call, target, quirks), _headers(call, target, quirks))
    target.heads[call.operation, call.stream] = head
    return head


def _path(call: Call, target: Target, quirks: Quirks) -> str:
    if "?" not in target.path and not quirks.deployments:
        return f"{target.path}/{call.operation.value}"
    path, mark, query = target.path.partition("?")
    if quirks.deployments:
        path = f"{path}/deployments/{quote(target.model, safe='')}"
    return f"{path}/{call.operation.value}{mark}{query}"


def _headers(call: Call, target: Target, quirks: Quirks) -> tuple[tuple[str, str], ...]:
    headers = [
        ("content-type", "application/json"),
        ("accept", "text/event-stream" if call.stream else "application/json"),
        *((name, value.reveal()) for name, value in target.headers.items()),
    ]
    if target.api_key:
        key = target.api_key.reveal()
        bearer = quirks.key_header == "authorization"
        headers.append((quirks.key_header, f"Bearer {key}" if bearer else key))
    return tuple(headers)
