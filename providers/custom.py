"""Vendors that speak OpenAI's dialect, each with its own accent: the differences, as data.

Facts are from recorded traffic unless marked otherwise; tests/providers replays it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from providers.adapter import Operation


class UsageIn(StrEnum):
    """Where a stream of chat completions carries its usage."""

    OWN_CHUNK = "own chunk"  # `choices: []`, and only if `include_usage` was asked
    LAST_CHOICE = "last choice"  # inside the chunk with the finish reason, asked or not
    EVERY_CHUNK = "every chunk"  # cumulative
    EITHER = "either"  # depends on the model behind


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Where an answer tells what the call cost: a path of keys, and how many make one USD."""

    path: tuple[str, ...]
    per_usd: int = 1
    beside_usage: bool = False  # the path starts at the answer and not at its usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Quirks:
    """One vendor's accent."""

    usage_in: UsageIn = UsageIn.OWN_CHUNK
    usage_asked: bool = True  # False: `stream_options` is refused, and usage reported without
    reasoning_outside: frozenset[Operation] = frozenset()  # where reasoning is not in completion
    audio_outside: bool = False  # prompt_tokens leaves out the audio
    thoughts_in_total: bool = False  # total_tokens alone has the reasoning, with no detail
    cost: Cost | None = None
    request_fee: bool = False  # each call costs a fee beside its tokens
    searches: bool = False  # a chat call with web_search_options costs one search, untold
    old_limit: bool = False  # knows `max_tokens` and not `max_completion_tokens`
    key_header: str = "authorization"  # "authorization": as a bearer token
    deployments: bool = False  # the model stands in the path


_CHAT = frozenset({Operation.CHAT})
_USD = Cost(path=("cost",))
_TICKS = Cost(path=("cost_in_usd_ticks",), per_usd=10_000_000_000)

QUIRKS: Mapping[str, Quirks] = MappingProxyType(
    {
        "openai": Quirks(searches=True),
        # .../openai/v1 and Foundry's /models: OpenAI's own but for the header.
        "azure": Quirks(key_header="api-key", searches=True),
        # /openai/deployments/<model>/<operation>?api-version=...
        "azure-deployments": Quirks(key_header="api-key", searches=True, deployments=True),
        "bedrock-mantle": Quirks(),
        "chatgpt": Quirks(),
        "copilot": Quirks(usage_in=UsageIn.LAST_CHOICE),
        "deepseek": Quirks(usage_in=UsageIn.LAST_CHOICE, old_limit=True),
        "doubleword": Quirks(usage_in=UsageIn.EITHER),
        # Google's OpenAI-compatible path: 35 + 12 = 109 - 62 thoughts.
        "gemini": Quirks(usage_in=UsageIn.EITHER, thoughts_in_total=True),
        # The same usage three times: `x_groq`, the last choice and a chunk of its own.
        "groq": Quirks(usage_in=UsageIn.EITHER),
        "llamacpp": Quirks(old_limit=True),
        "mistral": Quirks(
            usage_in=UsageIn.LAST_CHOICE,
            usage_asked=False,  # 422 extra_forbidden (openai-agents-python#442)
            audio_outside=True,
            old_limit=True,
        ),
        "mistralrs": Quirks(usage_in=UsageIn.LAST_CHOICE),
        "moonshot": Quirks(usage_in=UsageIn.EITHER, old_limit=True),
        "ollama": Quirks(old_limit=True),
        "openrouter": Quirks(usage_in=UsageIn.LAST_CHOICE, cost=_USD),
        "perplexity": Quirks(
            usage_in=UsageIn.EVERY_CHUNK,
            cost=Cost(path=("cost", "total_cost")),
            request_fee=True,
            old_limit=True,
        ),
        "qwen": Quirks(old_limit=True),
        "together": Quirks(usage_in=UsageIn.LAST_CHOICE, old_limit=True),
        "venice": Quirks(
            usage_in=UsageIn.EITHER, cost=Cost(path=("cost", "usd"), beside_usage=True)
        ),
        "vllm": Quirks(),
        # Reasoning is outside completion_tokens in chat, inside output_tokens in responses.
        "xai": Quirks(reasoning_outside=_CHAT, cost=_TICKS),
    }
)
"""Every name that `quirks:` of a provider in config.yaml may have. What is not here is "openai"."""
