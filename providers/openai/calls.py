"""Reading a client's body in OpenAI's dialect: each of its top-level values stays bytes.

A body is split once, in C, into its top-level members. Whatever is forwarded is made of those very
bytes, so unknown fields survive; of a name given twice the last is kept and sent on, so the vendor
cannot read another one than we did.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta, Raw

from providers.adapter import BadCall, Call, Operation
from providers.openai.content import limit_elements, survey

MEMBERS_MAX = 1_000
"""Top-level members of a body. The dialect knows about sixty."""

LOOSE_BYTES_MAX = 256 * 1024
"""Of a body: what is not a value of `_Bulk`. A million members cost 0.4 s to split, so large bodies
are measured first; smaller ones cannot hold enough members to matter."""

CHOICES_MAX = 1_024
"""n, best_of; OpenAI allows 128."""

MODEL_CHARACTERS_MAX = 256
DEFAULT = "default"
"""The name by which a call asks for its key's own model."""

USER_CHARACTERS_MAX = 128

# Fields by which clients of other gateways choose the host. Where a call goes is configuration.
_HOST_FIELDS = frozenset(
    {
        "api_base",
        "api_base_url",
        "api_url",
        "azure_endpoint",
        "base_url",
        "custom_host",
        "custom_llm_provider",
        "endpoint_url",
    }
)
# Fields that make a vendor run tools of its own in a chat completion.
_SERVER_TOOL_FIELDS = frozenset(
    {"web_search_options", "search_parameters", "plugins", "compound_custom", "enable_search"}
)
# Tools that the client runs.
_CLIENT_TOOLS = frozenset(
    {
        "function",
        "custom",
        "local_shell",
        "apply_patch",
        "computer",
        "computer_use_preview",
    }
)
# Fields that name things kept at the vendor, and flags that make it keep an answer for later.
_VENDOR_FIELDS = ("previous_response_id", "conversation", "prompt")
_VENDOR_FLAGS = ("background", "deferred")
_TOOL_IDS = ("file_ids", "vector_store_ids", "container")
_UNSET = frozenset({b"null", b"false"})
_ASCII = bytes(range(128))
_SPACES = b" \t\r\n"

_CHAT = Operation.CHAT
_COMPLETIONS = Operation.COMPLETIONS
_RESPONSES = Operation.RESPONSES

LIMITS: Mapping[Operation, tuple[str, ...]] = MappingProxyType(
    {
        Operation.CHAT: ("max_completion_tokens", "max_tokens"),
        Operation.COMPLETIONS: ("max_tokens",),
        Operation.RESPONSES: ("max_output_tokens",),
        Operation.EMBEDDINGS: (),
        Operation.MODERATIONS: (),
    }
)
"""The fields that limit an operation's output. Others would be obeyed by nobody."""

# Fields that few calls have. Nothing but these makes a call more than model, messages and limit.
_SELDOM = (
    _HOST_FIELDS
    | _SERVER_TOOL_FIELDS
    | {*_VENDOR_FIELDS, *_VENDOR_FLAGS}
    | {"tools", "user", "safety_identifier", "service_tier", "n", "best_of"}
)


class _Bulk(msgspec.Struct, gc=False):
    """The members of a body that may be large."""

    messages: Raw = Raw()
    input: Raw = Raw()
    instructions: Raw = Raw()
    prompt: Raw = Raw()
    suffix: Raw = Raw()
    prediction: Raw = Raw()
    tools: Raw = Raw()
    functions: Raw = Raw()
    text: Raw = Raw()
    response_format: Raw = Raw()
    metadata: Raw = Raw()
    logit_bias: Raw = Raw()
    documents: Raw = Raw()
    images: Raw = Raw()
    chat_template: Raw = Raw()
    guided_grammar: Raw = Raw()
    guided_json: Raw = Raw()
    structured_outputs: Raw = Raw()
    grammar: Raw = Raw()
    json_schema: Raw = Raw()


class _StreamOptions(msgspec.Struct, gc=False):
    include_usage: bool | None = None


class _Tool(msgspec.Struct, gc=False):
    type: str = "function"
    vector_store_ids: Raw = Raw(b"null")
    file_ids: Raw = Raw(b"null")
    container: Raw = Raw(b"null")


_decode_members = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_bulk = msgspec.json.Decoder(_Bulk).decode
_decode_text = msgspec.json.Decoder(str | None).decode
_decode_flag = msgspec.json.Decoder(bool | None).decode
_decode_count = msgspec.json.Decoder(Annotated[int, Meta(ge=1, le=2**53 - 1)] | None).decode
_decode_options = msgspec.json.Decoder(_StreamOptions | None).decode
_decode_tools = msgspec.json.Decoder(list[_Tool] | None).decode
_decode_list = msgspec.json.Decoder(list[Raw]).decode

_UNREADABLE = (msgspec.MsgspecError, UnicodeError, RecursionError)


def read_call(operation: Operation, body: bytes, default: str | None = None) -> Call:
    """What the gateway must know of the body. `BadCall` if it cannot be read as a call.

    `default` is the model of a call that names none, or the one called "default".
    """
    fields = _members(body)
    is_plain = _SELDOM.isdisjoint(fields)
    if not is_plain:
        _refuse_hosts(fields)
    model = _text(fields, "model")
    if default is not None and (not model or model == DEFAULT):
        model = default
    if not model or len(model) > MODEL_CHARACTERS_MAX or not model.isprintable():
        raise BadCall(
            f"'model' must be a text of 1 to {MODEL_CHARACTERS_MAX} printable characters",
            param="model",
            code="invalid_value" if model else "missing_required_parameter",
        )
    outputs = operation is _CHAT or operation is _COMPLETIONS
    stream = "stream" in fields and (outputs or operation is _RESPONSES) and _flag(fields, "stream")
    found = survey(operation, fields)
    more = _NOTHING_MORE if is_plain else _read_more(operation, fields)
    return Call(
        operation,
        body,
        model,
        stream,
        outputs and stream and "stream_options" in fields and _usage_wanted(fields),
        text_bound(body, found.replaced) + found.tokens,
        _output_limit(operation, fields),
        more.choices,
        more.service_tier,
        more.user,
        more.vendor_ids + found.vendor_ids,
        more.tools,
        fields,
    )


class _More(NamedTuple):
    """What `_SELDOM` fields say; the names are those of `Call`."""

    choices: int = 1
    service_tier: str | None = None
    user: str | None = None
    vendor_ids: tuple[str, ...] = ()
    tools: bool = False


_NOTHING_MORE = _More()


def _read_more(operation: Operation, fields: Mapping[str, Raw]) -> _More:
    user = _text(fields, "user") or _text(fields, "safety_identifier")
    tools, ids = _tools(fields)
    if operation is _RESPONSES:
        ids += [n for n in _VENDOR_FIELDS if n in fields and bytes(fields[n]) != b"null"]
    ids += [n for n in _VENDOR_FLAGS if n in fields and bytes(fields[n]) not in _UNSET]
    return _More(
        _choices(operation, fields),
        _text(fields, "service_tier"),
        user[:USER_CHARACTERS_MAX] if user else None,
        tuple(ids),
        tools,
    )


def _refuse_hosts(fields: Mapping[str, Raw]) -> None:
    """Refuse a call that chooses its own host."""
    if not _HOST_FIELDS.isdisjoint(fields):
        name = min(_HOST_FIELDS.intersection(fields))
        raise BadCall(
            f"'{name}' is not accepted: where a call goes is configured, not asked for",
            param=name,
            code="unsupported_parameter",
        )


def text_bound(body: bytes, media_bytes: int = 0) -> int:
    """Tokens that the text in `body`, all but `media_bytes` of it, cannot exceed.

    0.75 tokens per ASCII byte and 1 per other byte was never under the count of OpenAI's o200k on
    3,323 distinct real request strings and 12 adversarial ones; bytes / 2 was, on a quarter of the
    long ones. Some 0.05 us per KB if all is ASCII, else 1 us.
    """
    others = 0 if body.isascii() else len(body.translate(None, _ASCII))
    return (3 * max(0, len(body) - others - media_bytes) + 3) // 4 + others


def _members(body: bytes) -> dict[str, Raw]:
    """The top-level members, each value as the bytes it came in."""
    try:
        if len(body) > LOOSE_BYTES_MAX:
            _refuse_loose(body)
        fields = _decode_members(body)
    except msgspec.ValidationError as error:
        raise BadCall("The body must be a JSON object", code="invalid_json") from error
    except RecursionError as error:
        raise BadCall("The body is nested too deeply", code="invalid_json") from error
    except (msgspec.DecodeError, UnicodeError) as error:
        raise BadCall(f"The body is not valid JSON: {error}", code="invalid_json") from error
    if len(fields) > MEMBERS_MAX:
        raise BadCall(f"The body has more than {MEMBERS_MAX} fields", code="too_many_fields")
    return fields


def _refuse_loose(body: bytes) -> None:
    bulk = _decode_bulk(body)
    known = sum(len(memoryview(getattr(bulk, name))) for name in bulk.__struct_fields__)
    if len(body) - known > LOOSE_BYTES_MAX:
        raise BadCall(
            f"Fields other than {', '.join(bulk.__struct_fields__)} may have"
            f" {LOOSE_BYTES_MAX} bytes together",
            code="too_many_fields",
        )


def _text(fields: Mapping[str, Raw], name: str) -> str | None:
    raw = fields.get(name)
    if raw is None:
        return None
    try:
        text: str | None = _decode_text(raw)
    except _UNREADABLE as error:
        raise BadCall(f"'{name}' must be a text", param=name, code="invalid_type") from error
    return text


def _flag(fields: Mapping[str, Raw], name: str) -> bool:
    raw = fields.get(name)
    if raw is None:
        return False
    try:
        return _decode_flag(raw) is True
    except _UNREADABLE as error:
        raise BadCall(f"'{name}' must be true or false", param=name, code="invalid_type") from error


def _count(fields: Mapping[str, Raw], name: str) -> int | None:
    raw = fields.get(name)
    if raw is None:
        return None
    try:
        count: int | None = _decode_count(raw)
    except _UNREADABLE as error:
        raise BadCall(
            f"'{name}' must be a whole number above 0", param=name, code="invalid_value"
        ) from error
    return count


def _usage_wanted(fields: Mapping[str, Raw]) -> bool:
    try:
        options = _decode_options(fields["stream_options"])
    except _UNREADABLE as error:
        raise BadCall(
            "'stream_options' must be an object, its 'include_usage' true or false",
            param="stream_options",
            code="invalid_type",
        ) from error
    return options is not None and options.include_usage is True


def _output_limit(operation: Operation, fields: Mapping[str, Raw]) -> int | None:
    """The smallest of the limits set; all of them are forwarded as this one."""
    limit = None
    for name in LIMITS[operation]:
        if name in fields:
            count = _count(fields, name)
            if count is not None and (limit is None or count < limit):
                limit = count
    return limit


def _choices(operation: Operation, fields: Mapping[str, Raw]) -> int:
    """How many outputs a call makes: it is charged for each of `best_of`, shown or not."""
    choices = 1
    if operation is not _CHAT and operation is not _COMPLETIONS:
        return choices
    for name in ("n", "best_of"):
        if name in fields:
            count = _count(fields, name) or 1
            if count > CHOICES_MAX:
                raise BadCall(
                    f"'{name}' must be at most {CHOICES_MAX}", param=name, code="invalid_value"
                )
            choices = max(choices, count)
    if operation is _COMPLETIONS and "prompt" in fields:
        choices *= _prompts(fields["prompt"])
    return choices


def _prompts(raw: Raw) -> int:
    """How many prompts a legacy completion has: a text or list of tokens is one, else a list."""
    text = bytes(raw)
    first = text[1:].lstrip(_SPACES)[:1]
    if text[:1] != b"[" or first not in {b'"', b"["}:
        return 1
    limit_elements(raw, first)
    try:
        return len(_decode_list(raw))
    except _UNREADABLE as error:
        raise BadCall("'prompt' cannot be read", param="prompt", code="invalid_type") from error


def _tools(fields: Mapping[str, Raw]) -> tuple[bool, list[str]]:
    """Whether the vendor may run tools of its own (true when in doubt), and the ids they name."""
    runs = not _SERVER_TOOL_FIELDS.isdisjoint(fields)
    if "tools" not in fields:
        return runs, []
    limit_elements(fields["tools"], b"{")
    try:
        tools = _decode_tools(fields["tools"]) or []
    except _UNREADABLE:
        return True, []
    ids = []
    for tool in tools:
        if tool.type not in _CLIENT_TOOLS:
            runs = True
            # A container may also be described by an object: then it is a new one.
            ids += [n for n in _TOOL_IDS if memoryview(getattr(tool, n))[0] in b'["']
    return runs, ids
