"""Whether a process may be sent calls, and if not, why: what its loops last saw, never a new probe.

Each loop says how it fares under its own name. One that must say so regularly, and stops, counts as
failed: silence is no good news.
"""

from collections.abc import Callable

import msgspec

OK = "ok"


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to /readyz. `checks` says "ok" or why not; only required ones decide `ready`."""

    ready: bool
    checks: dict[str, str] = {}


class _Check(msgspec.Struct, kw_only=True):
    said: str
    at_s: float
    within_s: float | None
    is_required: bool


class Readiness:
    """The checks of one process."""

    def __init__(self, monotonic_s: Callable[[], float]) -> None:
        self._monotonic_s = monotonic_s
        self._checks: dict[str, _Check] = {}

    def expect(
        self,
        name: str,
        *,
        within_s: float | None = None,
        is_required: bool = True,
        said: str = "starting",
    ) -> None:
        """Adds a check, which fails until it is `good`, and again whenever it is silent for long.

        One that is not required is shown, and changes nothing: calls go on without Postgres.
        """
        self._checks[name] = _Check(
            said=said, at_s=self._monotonic_s(), within_s=within_s, is_required=is_required
        )

    def good(self, name: str) -> None:
        """All is well with it, now."""
        self._say(name, OK)

    def bad(self, name: str, why: str) -> None:
        """It has failed; `why` is for an operator and holds no secret."""
        self._say(name, why)

    def _say(self, name: str, said: str) -> None:
        check = self._checks[name]
        check.said, check.at_s = said, self._monotonic_s()

    def state(self) -> Ready:
        """What all the checks together say."""
        now_s = self._monotonic_s()
        said: dict[str, str] = {}
        is_ready = True
        for name, check in self._checks.items():
            silent_s = now_s - check.at_s
            if check.said == OK and check.within_s is not None and silent_s > check.within_s:
                said[name] = f"not heard of for {silent_s:.0f} s"
            else:
                said[name] = check.said
            is_ready &= said[name] == OK or not check.is_required
        return Ready(ready=is_ready, checks=said)
