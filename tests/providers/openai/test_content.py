"""Media and vendor-side ids in the input of a call."""

import json
from typing import Any

import msgspec
import pytest

from providers.adapter import BadCall, Operation
from providers.openai import content
from providers.openai.content import (
    IMAGE_TOKENS,
    PAGE_TOKENS,
    REMOTE_FILE_TOKENS,
    Survey,
    survey,
)

PICTURE = "data:image/png;base64," + "A" * 400


def of(operation: Operation, value: Any) -> Survey:
    name = "messages" if operation is Operation.CHAT else "input"
    return survey(operation, {name: msgspec.Raw(json.dumps(value).encode())})


def of_parts(*parts: Any) -> Survey:
    return of(Operation.CHAT, [{"role": "user", "content": list(parts)}])


def of_input(*items: Any) -> Survey:
    return of(Operation.RESPONSES, list(items))


def test_plain_text_holds_nothing() -> None:
    messages = [{"role": "user", "content": PICTURE}, {"role": "assistant", "content": None}]

    assert of(Operation.CHAT, messages) == Survey()
    assert of(Operation.RESPONSES, PICTURE) == Survey()
    assert survey(Operation.EMBEDDINGS, {"input": msgspec.Raw(b'"text"')}) == Survey()
    assert survey(Operation.CHAT, {}) == Survey()
    assert of_parts({"type": "text", "text": PICTURE}) == Survey()


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": PICTURE, "detail": "high"}},
        {"type": "image_url", "image_url": PICTURE},
        {"type": "input_image", "image_url": PICTURE},
        {"type": "input_image", "input_image": {"data": PICTURE}},
        {"type": "file", "file": {"file_data": PICTURE}},
    ],
)
def test_an_inline_picture_is_replaced_by_its_figure(part: Any) -> None:
    assert of_parts(part) == Survey(len(PICTURE), IMAGE_TOKENS)
    assert of_input({"role": "user", "content": [part]}) == Survey(len(PICTURE), IMAGE_TOKENS)


def test_a_picture_behind_a_url_has_the_same_figure() -> None:
    part = {"type": "image_url", "image_url": {"url": "HTTPS://host.example/p.png"}}

    assert of_parts(part, part) == Survey(0, 2 * IMAGE_TOKENS)


def test_a_picture_that_a_tool_made_or_took_counts_too() -> None:
    made = {"type": "image_generation_call", "id": "ig_1", "result": "A" * 400}
    taken = {
        "type": "computer_call_output",
        "output": {"type": "computer_screenshot", "image_url": PICTURE},
    }

    assert of_input(made).tokens == IMAGE_TOKENS
    assert of_input(taken) == Survey(len(PICTURE), IMAGE_TOKENS)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_audio", "input_audio": {"data": "B" * 1600, "format": "wav"}},
        {"type": "input_audio", "input_audio": "B" * 1600},
    ],
)
def test_sound_counts_by_its_length(part: Any) -> None:
    assert of_parts(part) == Survey(1600, 101)


def test_a_file_counts_as_text_and_a_page_more() -> None:
    data = "data:application/pdf;base64," + "C" * 800
    assert of_parts({"type": "file", "file": {"file_data": data}}) == Survey(0, PAGE_TOKENS)
    assert of_input({"content": [{"type": "input_file", "file_data": data}]}).tokens == PAGE_TOKENS


@pytest.mark.parametrize("name", ["file_url", "document_url", "video_url"])
def test_a_remote_file_has_a_flat_figure(name: str) -> None:
    part = {"type": name, name: "https://host.example/f"}

    assert of_parts(part).tokens == REMOTE_FILE_TOKENS


@pytest.mark.parametrize(
    ("survey", "names"),
    [
        (of_parts({"type": "file", "file": {"file_id": "file-1"}}), ("file_id",)),
        (of_parts({"type": "image_url", "image_url": {"file_id": "file-1"}}), ("file_id",)),
        (of_input({"content": [{"type": "input_image", "file_id": "file-1"}]}), ("file_id",)),
        (of_input({"content": [{"type": "input_image", "file_id": None}]}), ()),
        (of_input({"type": "item_reference", "id": "msg_1"}), ("item_reference",)),
        (of_input({"type": "message", "id": "msg_1", "content": "text"}), ()),
        (of(Operation.CHAT, [{"role": "assistant", "audio": {"id": "audio_1"}}]), ("audio.id",)),
        (of(Operation.CHAT, [{"role": "assistant", "audio": None}]), ()),
    ],
)
def test_ids_of_things_at_the_vendor_are_named(survey: Survey, names: tuple[str, ...]) -> None:
    assert survey.vendor_ids == names


def test_an_id_whose_key_is_written_with_escapes_is_found() -> None:
    raw = b'[{"content":[{"type":"file","file":{"f\\u0069le_id":"file-1"}}]}]'

    assert survey(Operation.CHAT, {"messages": msgspec.Raw(raw)}).vendor_ids == ("file_id",)


@pytest.mark.parametrize(
    "value", ["text", 7, [7], ["x"], [None], [[]], [{"content": [7]}], {"a": 1}]
)
def test_messages_of_no_known_shape_are_refused(value: Any) -> None:
    with pytest.raises(BadCall) as caught:
        of(Operation.CHAT, value)

    assert caught.value.param == "messages"


def test_null_is_no_input() -> None:
    assert of(Operation.CHAT, None) == Survey()
    assert of(Operation.RESPONSES, None) == Survey()


def test_media_nested_without_end_is_refused_and_costs_little() -> None:
    value: Any = "x" * 100_000
    for _ in range(200):
        value = {"content": [value]} if isinstance(value, dict) else {"content": value}

    with pytest.raises(BadCall, match="nested"):
        of_input(value)


def test_more_objects_than_any_model_reads_are_refused() -> None:
    many = b"[" + b"{}," * (content.OBJECTS_MAX + 1) + b"{}]"

    with pytest.raises(BadCall, match="elements"):
        survey(Operation.RESPONSES, {"input": msgspec.Raw(many)})
