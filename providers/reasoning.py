"""Which models think in tokens that their stream does not show, by the names vendors give them."""

import re

from providers.adapter import Call

# By the last part of a name, so that "openai/gpt-5" of a reseller is one, too. A model that is
# taken for one by mistake only has more money held for it.
_REASONS = re.compile(
    r"""
    reason | think | magistral | qwq | deepseek-r\d | [-_]r1\b
    | ^o\d | ^gpt-(?:[5-9]|oss) | ^codex | ^computer-use
    | ^grok-(?:3-mini|[4-9]|code) | ^gemini-(?:2\.5|[3-9]) | ^qwen-?3 | ^glm-(?:4\.[5-9]|[5-9])
    | ^kimi-k2 | ^minimax-m | ^sonar-deep | ^seed | ^deepseek-v(?:3\.[1-9]|[4-9])
    | ^claude-(?:fable|mythos|opus-4-[6-9]|sonnet-4-[6-9])
    """,
    re.VERBOSE,
)

# Fields that make a model generate what its stream does not show, or shows as something else.
_UNSEEN = frozenset(
    {
        "audio",
        "enable_thinking",
        "include_reasoning",
        "modalities",
        "prediction",
        "reasoning",
        "reasoning_effort",
        "reasoning_format",
        "thinking",
    }
)


def reasons(model: str) -> bool:
    """Whether the model of this name reasons, by all that is known of such names."""
    return _REASONS.search(model.lower().rpartition("/")[2]) is not None


def grows_unseen(call: Call) -> bool:
    """Whether the call itself asks for more than its stream shows, whatever its model."""
    return call.tools or call.choices > 1 or not _UNSEEN.isdisjoint(call.fields)
