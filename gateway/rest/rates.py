"""How often somebody may ask: a bucket for each caller, in this process alone.

Who signs in or shows a code is limited by address and by account, so that neither one machine nor
many can try out passwords.
"""

from collections.abc import Callable
from typing import NamedTuple

from gateway.errors import TooMany

_BUCKETS_MAX = 50_000  # addresses are the callers' to invent; the longest unused goes first


class Rate(NamedTuple):
    """So many at once, and so many a second for ever."""

    burst: float
    per_s: float


ASKING = Rate(100, 20)
WRITING = Rate(40, 5)
GUESSING = Rate(10, 10 / 600)


class Rates:
    """The buckets."""

    def __init__(self, monotonic_s: Callable[[], float]) -> None:
        self._clock = monotonic_s
        self._left: dict[tuple[str, str], tuple[float, float]] = {}  # what, who -> left, at

    def take(self, what: str, who: str, rate: Rate) -> None:
        """One of them; `TooMany` says when there is another."""
        now_s, key = self._clock(), (what, who)
        left, at_s = self._left.pop(key, (rate.burst, now_s))
        left = min(rate.burst, left + (now_s - at_s) * rate.per_s)
        is_short = left < 1
        if len(self._left) >= _BUCKETS_MAX:
            del self._left[next(iter(self._left))]
        self._left[key] = (left if is_short else left - 1, now_s)
        if is_short:
            wait_ms = int((1 - left) / rate.per_s * 1000) + 1
            raise TooMany(
                f"Too many requests. Try again in {-(-wait_ms // 1000)} s.",
                code="rate_limit_exceeded",
                retry_after_ms=wait_ms,
                scope=what,
            )
