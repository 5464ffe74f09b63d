"""What an outsider knows of keys: which secret works, since when not, and whose calls are whose.

All of it is what the API answered, and when it was asked; the system's own word decides nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tests.scenarios.deployment import Key

_HEARD_S = 1.0  # what gateways may take to obey


class Span(NamedTuple):
    """When something was asked for and when it was answered, monotonic seconds."""

    sent_s: float
    told_s: float


class Switch:
    """What can be put off and on: a secret, a key, an organization."""

    def __init__(self) -> None:
        self._off: list[Span] = []
        self._on: list[Span] = []

    def off(self, span: Span) -> None:
        """It is off from the answer on; `told_s` may lie ahead."""
        self._off.append(span)

    def on(self, span: Span) -> None:
        """It may be on again from the moment when that was asked for."""
        self._on.append(span)

    def off_since(self, at_s: float) -> float:
        """Since when it has been off without a doubt; infinity: it may be on."""
        return min(
            (
                off.told_s
                for off in self._off
                if off.told_s <= at_s
                and not any(on.told_s > off.sent_s and on.sent_s < at_s for on in self._on)
            ),
            default=math.inf,
        )


@dataclass(kw_only=True)
class Card:
    """One secret of one key, and whose calls it makes."""

    key: Key
    switches: Sequence[Switch]  # each of them ends it: its own comes first
    # Member ids, each from then on; the key's, so all its cards have the same list.
    owners: list[tuple[Span, str]]

    @property
    def own(self) -> Switch:
        """The switch of this secret alone."""
        return self.switches[0]

    @property
    def member(self) -> str:
        """Whose it is now."""
        return self.owners[-1][1]

    def off_since(self, at_s: float) -> float:
        """Since when it lets nobody in without a doubt; infinity: it may."""
        return min(switch.off_since(at_s) for switch in self.switches)

    def late_s(self, at_s: float) -> float:
        """How long after its end that is; zero or less: it may have been none yet."""
        return at_s - self.off_since(at_s)

    def members(self, began_s: float, ended_s: float) -> set[str]:
        """Whose a call of that time may be."""
        until = [span.told_s + _HEARD_S for span, _ in self.owners[1:]] + [math.inf]
        return {
            member
            for (span, member), until_s in zip(self.owners, until, strict=True)
            if span.sent_s <= ended_s and began_s <= until_s
        }
