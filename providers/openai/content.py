"""What the input of a call holds beside text: media, and ids of things kept at the vendor.

Only lists of parts are looked into; nearly every message is a plain string and costs 0.2 us. The
structure is read and not the bytes, so no text passes for a picture and no escape hides a key.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw
from msgspec.structs import astuple

from providers.adapter import BadCall, Operation

IMAGE_TOKENS = 5_000
"""The vendors' formulas reach 1,500 (OpenAI's tiles and patches) to 4,800 (the newest Claude);
recorded: 256 to 2,334. gpt-4o-mini alone counts up to 48,000, at a price as much lower."""

SOUND_BYTES_PER_TOKEN = 16
"""Of base64. The most tokens a second are Mistral's 75 for audio (recorded) and Gemini's 300 for
video; speech below 9 kbit/s and video below 30 kbit/s is not understood any more."""

PAGE_TOKENS = 3_000
"""A PDF page's cap. A file's base64 counts as text beside it: compressed text is shorter."""

REMOTE_FILE_TOKENS = 50_000
"""What is behind a URL cannot be known: a video of three minutes, a paper of twenty pages."""

OBJECTS_MAX = 200_000
"""Braces in one field, above 256 KiB. Each object takes up to 200 bytes of memory, if empty."""

DEPTH_MAX = 6
"""Input, item, content, part, media object, its URL. Each level is read once more."""

_COUNTED_BYTES = 256 * 1024
_CHAT, _RESPONSES = Operation.CHAT, Operation.RESPONSES
_QUOTE, _LIST, _OBJECT = b'"[{'

_ABSENT = Raw()


class Survey(NamedTuple):
    """What was found."""

    replaced: int = 0  # bytes of the body that are media and no text
    tokens: int = 0  # what the table says of them
    vendor_ids: tuple[str, ...] = ()


NOTHING = Survey()


class _Message(msgspec.Struct, gc=False):
    content: Raw = _ABSENT
    audio: Raw = _ABSENT


class _Node(msgspec.Struct, gc=False):
    """A part, an item, or an object inside one."""

    type: Any = None
    id: Raw = _ABSENT
    content: Raw = _ABSENT
    output: Raw = _ABSENT
    image_url: Raw = _ABSENT
    input_image: Raw = _ABSENT
    result: Raw = _ABSENT  # of an image_generation_call
    audio: Raw = _ABSENT
    input_audio: Raw = _ABSENT
    audio_url: Raw = _ABSENT
    video_url: Raw = _ABSENT
    input_video: Raw = _ABSENT
    file: Raw = _ABSENT
    file_data: Raw = _ABSENT
    file_url: Raw = _ABSENT
    document_url: Raw = _ABSENT
    url: Raw = _ABSENT
    data: Raw = _ABSENT
    file_id: Raw = _ABSENT


# What a string below such a name is; None: as the name above it says.
_KIND = {
    "image_url": "image",
    "input_image": "image",
    "result": "image",
    "audio": "sound",
    "input_audio": "sound",
    "audio_url": "sound",
    "video_url": "sound",
    "input_video": "sound",
    "file": "file",
    "file_data": "file",
    "file_url": "file",
    "document_url": "file",
    "url": None,
    "data": None,
    "content": None,
    "output": None,
}

_FIELDS = len(_Node.__struct_fields__) - 1  # all but its type

_decode_messages = msgspec.json.Decoder(list[_Message] | None).decode
_decode_node = msgspec.json.Decoder(_Node).decode
_decode_nodes = msgspec.json.Decoder(list[_Node]).decode


def survey(operation: Operation, fields: Mapping[str, Raw]) -> Survey:
    """The media and ids in the messages of a chat or the input of a response.

    `BadCall` if they have no shape that could be read.
    """
    if operation is _CHAT:
        name = "messages"
    elif operation is _RESPONSES:
        name = "input"
    else:
        return NOTHING
    raw = fields.get(name)
    if raw is None:
        return NOTHING
    try:
        return _of_messages(raw) if name == "messages" else _of_input(raw)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise BadCall(
            f"'{name}' must be a list of objects", param=name, code="invalid_type"
        ) from error


def _of_messages(raw: Raw) -> Survey:
    if len(memoryview(raw)) > _COUNTED_BYTES:
        limit_elements(raw, b"{")
    found = None
    for message in _decode_messages(raw) or ():
        content = message.content
        if content is not _ABSENT and memoryview(content)[0] != _QUOTE:
            found = found or _Finder()
            found.look(content, None)
        if message.audio is not _ABSENT:
            found = found or _Finder()
            found.look(message.audio, "sound")
    return found.survey() if found else NOTHING


def _of_input(raw: Raw) -> Survey:
    if memoryview(raw)[0] == _QUOTE:
        return NOTHING
    limit_elements(raw, b"{")
    found = _Finder()
    found.look(raw, None)
    return found.survey()


def limit_elements(raw: Raw, sign: bytes) -> None:
    """Refuse a list before it is read, if by its signs it might have too many elements."""
    if len(memoryview(raw)) > _COUNTED_BYTES and bytes(raw).count(sign) > OBJECTS_MAX:
        raise BadCall(f"A list has more than {OBJECTS_MAX} elements", code="too_many_elements")


class _Finder:
    """Adds up what is found while looking."""

    def __init__(self) -> None:
        self.replaced = self.tokens = 0
        self.ids: dict[str, None] = {}

    def survey(self) -> Survey:
        return Survey(self.replaced, self.tokens, tuple(self.ids))

    def look(self, raw: Raw, kind: str | None, depth: int = 0) -> None:
        """Count the value `raw`, which stands below a name that means `kind`."""
        if depth > DEPTH_MAX:
            raise BadCall("The input is nested too deeply", code="invalid_type")
        view = memoryview(raw)
        if view[0] == _OBJECT:
            self._look_into(_decode_node(raw), kind, depth + 1)
        elif view[0] == _LIST:
            for node in _decode_nodes(raw):
                self._look_into(node, None, depth + 1)
        elif view[0] == _QUOTE and kind:
            self._count(kind, bytes(view[1:32]).replace(b"\\/", b"/").lower(), len(view) - 2)

    def _look_into(self, node: _Node, kind: str | None, depth: int) -> None:
        if node.type == "item_reference":
            self.ids["item_reference"] = None
        if astuple(node).count(_ABSENT) == _FIELDS:
            return
        if node.file_id is not _ABSENT and memoryview(node.file_id)[0] == _QUOTE:
            self.ids["file_id"] = None
        if kind == "sound" and node.id is not _ABSENT:
            self.ids["audio.id"] = None
        for name, own in _KIND.items():
            raw = getattr(node, name)
            if raw is not _ABSENT:
                self.look(raw, own or kind, depth)

    def _count(self, kind: str, head: bytes, length: int) -> None:
        """One string that is media: `head` is how it begins."""
        if head.startswith((b"http://", b"https://")):
            self.tokens += IMAGE_TOKENS if kind == "image" else REMOTE_FILE_TOKENS
        elif kind == "image" or head.startswith(b"data:image/"):
            self.replaced += length
            self.tokens += IMAGE_TOKENS
        elif kind == "sound":
            self.replaced += length
            self.tokens += length // SOUND_BYTES_PER_TOKEN + 1
        else:
            self.tokens += PAGE_TOKENS
