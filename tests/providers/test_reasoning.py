"""Who thinks unseen is known by name, and in doubt is thought to."""

import json
from typing import Any

import pytest

from providers.adapter import Operation
from providers.openai.calls import read_call
from providers.reasoning import grows_unseen, reasons


@pytest.mark.parametrize(
    "model",
    [
        "o1",
        "o3-mini",
        "o4-mini-2025-04-16",
        "gpt-5",
        "gpt-5.2-codex",
        "openai/gpt-oss-120b",
        "deepseek-reasoner",
        "deepseek-ai/DeepSeek-R1",
        "deepseek-r1-distill-llama-70b",
        "grok-4-fast-reasoning",
        "grok-3-mini",
        "magistral-medium-latest",
        "google/gemini-2.5-pro",
        "Qwen/Qwen3-235B-A22B-Thinking-2507",
        "qwq-32b",
        "kimi-k2-thinking",
        "glm-4.6",
    ],
)
def test_a_model_that_reasons_is_known_by_its_name(model: str) -> None:
    assert reasons(model)


@pytest.mark.parametrize(
    "model",
    [
        "gpt-4.1",
        "gpt-4o-mini",
        "chatgpt-4o-latest",
        "mistral-large-latest",
        "llama-3.3-70b-versatile",
        "grok-3",
        "gemini-2.0-flash",
        "claude-3-5-haiku",
        "deepseek-chat",
        "smollm2",
        "o",
    ],
)
def test_a_model_that_shows_all_it_generates_is_not_taken_for_one(model: str) -> None:
    assert not reasons(model)


@pytest.mark.parametrize(
    ("more", "unseen"),
    [
        ({}, False),
        ({"temperature": 1, "max_tokens": 10}, False),
        ({"n": 2}, True),
        ({"reasoning_effort": "high"}, True),
        ({"modalities": ["text", "audio"]}, True),
        ({"prediction": {"type": "content", "content": "x"}}, True),
        ({"tools": [{"type": "web_search"}]}, True),
        ({"tools": [{"type": "function"}]}, False),
    ],
)
def test_a_call_that_generates_more_than_its_stream_shows_is_recognised(
    more: dict[str, Any], *, unseen: bool
) -> None:
    body = json.dumps({"model": "m", "messages": [], **more}).encode()

    assert grows_unseen(read_call(Operation.CHAT, body)) is unseen
