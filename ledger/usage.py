"""What a call consumed, in buckets that never overlap, so that a charge is one sum of products."""

from collections.abc import Mapping
from enum import StrEnum

import msgspec


class Unit(StrEnum):
    """The billable units. The token buckets are disjoint: a token is counted in exactly one."""

    INPUT = "input"  # uncached text tokens, and any input no other bucket names
    CACHE_READ = "cache_read"
    CACHE_WRITE_5M = "cache_write_5m"  # also vendors' writes without a stated lifetime
    CACHE_WRITE_1H = "cache_write_1h"
    OUTPUT = "output"  # every generated text token, reasoning included
    INPUT_AUDIO = "input_audio"
    CACHE_READ_AUDIO = "cache_read_audio"
    OUTPUT_AUDIO = "output_audio"
    INPUT_IMAGE = "input_image"
    CACHE_READ_IMAGE = "cache_read_image"
    OUTPUT_IMAGE = "output_image"
    INPUT_VIDEO = "input_video"
    REQUESTS = "requests"  # a fee per call
    WEB_SEARCHES = "web_searches"
    FILE_SEARCHES = "file_searches"
    CODE_SESSIONS = "code_sessions"
    IMAGES = "images"
    CHARACTERS = "characters"
    MILLISECONDS = "milliseconds"


INPUT_TOKENS = frozenset(
    {
        Unit.INPUT,
        Unit.CACHE_READ,
        Unit.CACHE_WRITE_5M,
        Unit.CACHE_WRITE_1H,
        Unit.INPUT_AUDIO,
        Unit.CACHE_READ_AUDIO,
        Unit.INPUT_IMAGE,
        Unit.CACHE_READ_IMAGE,
        Unit.INPUT_VIDEO,
    }
)
OUTPUT_TOKENS = frozenset({Unit.OUTPUT, Unit.OUTPUT_AUDIO, Unit.OUTPUT_IMAGE})
_TOKENS = INPUT_TOKENS | OUTPUT_TOKENS


class Source(StrEnum):
    """Where the numbers come from."""

    REPORTED = "reported"  # the vendor said so
    ESTIMATED = "estimated"  # the vendor said nothing, or not enough
    NONE = "none"  # nothing was consumed: the call failed before any output


class Usage(msgspec.Struct, frozen=True, gc=False):
    """The consumption of one call."""

    counts: Mapping[str, int]  # Unit -> count >= 0; a unit that is absent is 0
    source: Source = Source.REPORTED
    reasoning: int = 0  # of OUTPUT, tokens the client may not have seen; never added to it
    model: str | None = None  # the model the vendor says it served; None if it did not say
    tier: str | None = None  # the service tier the vendor says it billed; None if it did not say
    reported_nanos: int | None = None  # the vendor's own exact cost, in nano-USD, rounded up
    flags: tuple[str, ...] = ()  # what was odd: "cached_over_input", "unknown_field:x", ...

    def input_tokens(self) -> int:
        """Every prompt token, cached or not, as price tiers by length count them."""
        return sum([count for unit, count in self.counts.items() if unit in INPUT_TOKENS])

    def output_tokens(self) -> int:
        """Every generated token, reasoning included."""
        return sum([count for unit, count in self.counts.items() if unit in OUTPUT_TOKENS])

    def tokens(self) -> int:
        """Every token, as limits of tokens per minute count them."""
        total = 0
        for unit, count in self.counts.items():
            if unit in _TOKENS:
                total += count
        return total


NOTHING = Usage({}, source=Source.NONE)
