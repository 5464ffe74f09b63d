"""A chunk of a chat completion's stream, as a meter reads it, and the form most of a stream shares.

Hundreds of chunks of a stream differ in nothing but the text of their delta. Such a form is learned
from one chunk; the others then need not be decoded to be counted.
"""

import re
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec

from providers.openai.tally import name_said, text_bytes
from providers.sse import Block


class Delta(msgspec.Struct, gc=False):
    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: Any = None
    tool_calls: Any = None
    function_call: Any = None
    audio: Any = None


class Choice(msgspec.Struct, gc=False):
    index: Any = 0
    delta: Delta | None = None
    text: Any = None
    finish_reason: Any = None


class Chunk(msgspec.Struct, gc=False):
    """A chunk of a chat completion or of a legacy one."""

    choices: list[Choice] | None = None
    usage: Any = None
    error: Any = None
    model: Any = None
    service_tier: Any = None
    x_groq: Any = None
    cost: Any = None


class Form(NamedTuple):
    """What chunks of a stream have in common: they are these bytes, with text in the gaps.

    The first text is what the model said. The second, if there is one, means nothing: OpenAI fills
    each chunk up with `obfuscation`, so that its length does not tell the words.
    """

    before: bytes
    between: bytes
    after: bytes  # empty if there is no second text
    model: str | None
    tier: str | None


decode_chunk = msgspec.json.Decoder(Chunk, float_hook=Decimal).decode

_PREFIX, _SUFFIX = b"data: ", b"\n\n"

# What means itself inside a JSON string: no quote, no backslash, no control character.
_TEXT = re.compile(rb"[ !#-\[\]-~\x80-\xff]+")
_FILLING = re.compile(rb"[ !#-\[\]-~]*")
_TEXT_MEMBER = re.compile(
    rb'("(?:content|reasoning_content|reasoning|text)": ?")[ !#-\[\]-~\x80-\xff]+(?=")'
)
_FILLING_MEMBER = re.compile(rb'("obfuscation": ?")[ !#-\[\]-~]*(?=")')
_PROBE = b"a text that is longer than what a model says in one chunk, or no form is learned"


def words(choice: Choice) -> int:
    """How many bytes of the model's own words are in a choice."""
    delta = choice.delta
    size = text_bytes(choice.text) if choice.text else 0
    if delta is not None:
        if delta.content:
            size += text_bytes(delta.content)
        if delta.reasoning_content:
            size += text_bytes(delta.reasoning_content)
        elif delta.reasoning:
            size += text_bytes(delta.reasoning)
        if delta.tool_calls:
            size += text_bytes(delta.tool_calls)
        if delta.refusal or delta.function_call or delta.audio:
            size += text_bytes([delta.refusal, delta.function_call, delta.audio])
    return size


def text_length(form: Form, event: bytes) -> int:
    """How many bytes of text are in an event of this form; 0 if it is not of this form."""
    before, between, after, _, _ = form
    if not event.startswith(before):
        return 0
    start = len(before)
    found = _TEXT.match(event, start)
    if found is None:
        return 0
    end = found.end()
    if not event.startswith(between, end):
        return 0
    rest = end + len(between)
    if after:
        filling = _FILLING.match(event, rest)
        rest = filling.end() if filling else rest
        if not event.startswith(after, rest):
            return 0
        rest += len(after)
    if rest != len(event) or not _is_utf8(event[start:end]):
        return 0
    return end - start


def _is_utf8(text: bytes) -> bool:
    if text.isascii():
        return True
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def form_of(block: Block, chunk: Chunk) -> Form | None:
    """The form of an event that says some text and nothing else; None if it has none.

    It is proved by decoding the form with another text in it. If what is counted then changes from
    the length of the one text to that of the other, it is this text and nothing else; and whatever
    stands there without a quote or backslash is the same string of the same JSON.
    """
    data = block.data
    if data is None or b"\r" in data or block.raw != _PREFIX + data + _SUFFIX:
        return None
    text = _TEXT_MEMBER.search(data)
    if text is None:
        return None
    start, end = text.end(1), text.end()
    before, between, after = data[:start], data[end:], b""
    probe = before + _PROBE + between
    filling = _FILLING_MEMBER.search(between)
    if filling is not None:
        between, after = between[: filling.end(1)], between[filling.end() :]
        probe = before + _PROBE + between + _PROBE * 2 + after
    if not end - start == _plain_length(chunk) != len(_PROBE):
        return None
    probed = decode_chunk(probe)  # `chunk` was decoded, so this can be
    if _plain_length(probed) != len(_PROBE):
        return None
    if after:
        after += _SUFFIX
    else:
        between += _SUFFIX
    return Form(
        _PREFIX + before, between, after, name_said(chunk.model), name_said(chunk.service_tier)
    )


def _plain_length(chunk: Chunk) -> int:
    """The length of the words of a chunk that has words of one choice and nothing else; else 0."""
    if chunk.usage is not None or chunk.cost is not None or chunk.x_groq is not None:
        return 0
    if chunk.error or not chunk.choices or len(chunk.choices) != 1:
        return 0
    choice = chunk.choices[0]
    return words(choice) if choice.finish_reason is None else 0
