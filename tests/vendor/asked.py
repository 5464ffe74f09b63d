"""Read of a request what decides about its answer."""

import base64
import struct
from typing import Any, NamedTuple

import msgspec


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


class _Body(msgspec.Struct):
    model: str = ""
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    n: int | None = 1
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    encoding_format: str | None = None
    input: msgspec.Raw = msgspec.Raw()
    vendor_script: msgspec.Raw = msgspec.Raw()


class Asked(NamedTuple):
    """A request, as far as the answer depends on it."""

    operation: str  # chat | completions | responses | embeddings | moderations | models | ...
    model: str
    stream: bool
    wants_usage: bool
    choices: int
    limit: int | None
    inputs: int
    is_base64: bool
    script: bytes | None  # the call's own script, as JSON


_DECODER = msgspec.json.Decoder(_Body)


def asked(path: str, body: bytes) -> Asked:
    """Raises `msgspec.DecodeError` for a body that is no request."""
    path = path.split("?", 1)[0]
    operation = "chat" if path.endswith("/chat/completions") else path.rsplit("/", 1)[-1]
    read = _DECODER.decode(body) if body else _Body()
    inputs = 1
    if operation == "embeddings" and bytes(read.input)[:1] == b"[":
        items = msgspec.json.decode(read.input)
        inputs = 1 if items and isinstance(items[0], int) else len(items)
    return Asked(
        operation,
        read.model,
        bool(read.stream),
        bool(read.stream_options and read.stream_options.include_usage),
        read.n or 1,
        read.max_completion_tokens or read.max_output_tokens or read.max_tokens,
        inputs,
        read.encoding_format == "base64",
        bytes(read.vendor_script) or None,
    )


def embedding(dimensions: int, *, is_base64: bool) -> Any:
    """A vector, always the same one."""
    vector = [(number + 1) / 64 for number in range(dimensions)]
    if not is_base64:
        return vector
    return base64.b64encode(struct.pack(f"<{dimensions}f", *vector)).decode()
