"""Calls that name no model, where there is one by default."""

import json

import pytest

from providers.adapter import BadCall, Operation
from providers.openai.calls import read_call

CHAT = Operation.CHAT
MESSAGES = [{"role": "user", "content": "Say hello."}]


@pytest.mark.parametrize("said", [{}, {"model": None}, {"model": ""}, {"model": "default"}])
def test_a_call_that_names_no_model_is_for_the_default(said: dict[str, object]) -> None:
    raw = json.dumps({"messages": MESSAGES, **said}).encode()

    assert read_call(CHAT, raw, "small").model == "small"


@pytest.mark.parametrize("raw", [b'{"model": "large"}', b'{"model": "Default"}'])
def test_a_call_that_names_a_model_is_for_that(raw: bytes) -> None:
    assert read_call(CHAT, raw, "small").model == json.loads(raw)["model"]


def test_without_a_default_a_call_names_its_model() -> None:
    with pytest.raises(BadCall) as caught:
        read_call(CHAT, b'{"messages": []}')
    assert caught.value.code == "missing_required_parameter"
    assert read_call(CHAT, b'{"model": "default"}').model == "default"
    with pytest.raises(BadCall):
        read_call(CHAT, b'{"model": 7}', "small")
