"""The price sheet as data: which model, at what time, what per million units. Pure.

Made by `ledger.price_compiler`, read by `ledger.pricing`. Prices are integer nano-USD per million
units. Texts are lower case; so is what they are matched with.
"""

import re
from typing import NamedTuple

import msgspec

FORMAT = 1
"""A reader refuses a sheet of another format: it would misprice."""

_DAY_S = 86_400


class Step(NamedTuple):
    """The prices of the whole call once its input has more than `above` tokens."""

    above: int
    nanos_per_million: dict[str, int]


class Since(msgspec.Struct, array_like=True, frozen=True, tag="since"):
    """From this moment on, unix seconds."""

    from_s: int

    def is_active(self, at_s: float) -> bool:
        return at_s >= self.from_s

    def edges(self, _at_s: float) -> tuple[int, ...]:
        return (self.from_s,)


class Daily(msgspec.Struct, array_like=True, frozen=True, tag="daily"):
    """Every day between two times, in seconds of a day of UTC; the second may be the next day's."""

    start_s: int
    end_s: int

    def is_active(self, at_s: float) -> bool:
        time_s = at_s % _DAY_S
        if self.end_s < self.start_s:
            return time_s >= self.start_s or time_s < self.end_s
        return self.start_s <= time_s < self.end_s

    def edges(self, at_s: float) -> tuple[int, ...]:
        today_s = int(at_s // _DAY_S) * _DAY_S
        return tuple(
            today_s + day_s + time_s
            for day_s in (-_DAY_S, 0, _DAY_S)
            for time_s in (self.start_s, self.end_s)
        )


class Between(msgspec.Struct, array_like=True, frozen=True, tag="between"):
    """At or after the first moment and before the second; None is open."""

    from_s: int | None
    until_s: int | None

    def is_active(self, at_s: float) -> bool:
        begun = self.from_s is None or at_s >= self.from_s
        return begun and (self.until_s is None or at_s < self.until_s)

    def edges(self, _at_s: float) -> tuple[int, ...]:
        return tuple(edge for edge in (self.from_s, self.until_s) if edge is not None)


When = Since | Daily | Between


class Equals(msgspec.Struct, array_like=True, frozen=True, tag="="):
    text: str

    def is_match(self, model: str) -> bool:
        return model == self.text


class StartsWith(msgspec.Struct, array_like=True, frozen=True, tag="^"):
    text: str

    def is_match(self, model: str) -> bool:
        return model.startswith(self.text)


class EndsWith(msgspec.Struct, array_like=True, frozen=True, tag="$"):
    text: str

    def is_match(self, model: str) -> bool:
        return model.endswith(self.text)


class Contains(msgspec.Struct, array_like=True, frozen=True, tag="in"):
    text: str

    def is_match(self, model: str) -> bool:
        return self.text in model


class Matches(msgspec.Struct, array_like=True, frozen=True, tag="re"):
    pattern: str

    def is_match(self, model: str) -> bool:
        return re.search(self.pattern, model) is not None


class AnyOf(msgspec.Struct, array_like=True, frozen=True, tag="or"):
    clauses: tuple["Clause", ...]

    def is_match(self, model: str) -> bool:
        return any(clause.is_match(model) for clause in self.clauses)


class AllOf(msgspec.Struct, array_like=True, frozen=True, tag="and"):
    clauses: tuple["Clause", ...]

    def is_match(self, model: str) -> bool:
        return all(clause.is_match(model) for clause in self.clauses)


Clause = Equals | StartsWith | EndsWith | Contains | Matches | AnyOf | AllOf


class Period(msgspec.Struct, array_like=True, frozen=True):
    """Prices for a time; `when` None: always."""

    when: When | None
    steps: tuple[Step, ...]


class Variant(msgspec.Struct, array_like=True, frozen=True):
    """What a service tier changes of the prices."""

    tier: str
    when: When | None
    steps: tuple[Step, ...]


class Model(msgspec.Struct, array_like=True, frozen=True):
    """The prices of the models that match.

    Of the periods the last active one holds, or the first if none is. Of the variants of a tier
    the first active one that names a unit holds for it.
    """

    match: Clause
    periods: tuple[Period, ...]
    variants: tuple[Variant, ...] = ()
    unmetered: tuple[str, ...] = ()  # what else the vendor charges for, in the source's words

    def steps(self, at_s: float) -> tuple[Step, ...]:
        """The standard prices at this moment."""
        for period in reversed(self.periods):
            if period.when is None or period.when.is_active(at_s):
                return period.steps
        return self.periods[0].steps

    def tiers(self, at_s: float) -> dict[str, tuple[Step, ...]]:
        """The whole prices of every service tier that has its own at this moment."""
        found: dict[str, tuple[Step, ...]] = {}
        standard = self.steps(at_s)
        for variant in reversed(self.variants):
            if variant.when is None or variant.when.is_active(at_s):
                found[variant.tier] = overlaid(found.get(variant.tier, standard), variant.steps)
        return found

    def edges(self, at_s: float) -> list[int]:
        """Moments around this one at which prices may change."""
        whens = [period.when for period in self.periods]
        whens += [variant.when for variant in self.variants]
        return [edge for when in whens if when is not None for edge in when.edges(at_s)]


class Override(msgspec.Struct, array_like=True, frozen=True):
    """An operator's prices for a provider's models; the last that is active holds, whole."""

    provider: str
    model: Clause
    when: Between
    steps: tuple[Step, ...]
    tiers: dict[str, tuple[Step, ...]]


class Sheet(msgspec.Struct, array_like=True, frozen=True):
    """All prices: by the name of the provider in the configuration, in the order of matching."""

    format: int
    models: dict[str, tuple[Model, ...]]
    overrides: tuple[Override, ...]


def overlaid(steps: tuple[Step, ...], above: tuple[Step, ...]) -> tuple[Step, ...]:
    """The prices of `steps`, but for the units that `above` names."""
    starts = sorted({step.above for step in (*steps, *above)})
    return tuple(Step(at, {**_in_force(steps, at), **_in_force(above, at)}) for at in starts)


def _in_force(steps: tuple[Step, ...], above: int) -> dict[str, int]:
    """The prices that hold just above this number of tokens."""
    reached = [step.nanos_per_million for step in steps if step.above <= above]
    return reached[-1] if reached else {}
