"""What a usage costs, by a price sheet that was compiled once. Pure: no clock, no I/O, no float.

A charge is one sum of counts times prices, rounded up once. A unit without a price of its own costs
what its nearest relative costs, and says so in `flags`: what was consumed is never silently free.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from ledger.money import NANOS_MAX, ZERO, Nanos
from ledger.price_data import FORMAT, Model, Override, Sheet, Step
from ledger.usage import INPUT_TOKENS, OUTPUT_TOKENS, Unit, Usage

PER_MILLION = 1_000_000

REASONING = "reasoning"
"""Priced apart by few vendors: then that part of the output costs this instead."""

LOOKUPS_MAX = 10_000  # model names are the clients' words: more of them than this start afresh
MODEL_NAME_MAX = 200  # no model has a longer name; matching takes time by length

_PLAIN_TIERS = frozenset({"", "default", "standard", "standard_only", "auto", "on_demand"})
"""What vendors call the tier that the standard prices are for."""

_RELATIVES: Mapping[str, tuple[str, ...]] = {
    Unit.CACHE_READ: (Unit.INPUT,),
    Unit.CACHE_WRITE_5M: (Unit.INPUT,),
    Unit.CACHE_WRITE_1H: (Unit.CACHE_WRITE_5M, Unit.INPUT),
    Unit.INPUT_AUDIO: (Unit.INPUT,),
    Unit.INPUT_IMAGE: (Unit.INPUT,),
    Unit.INPUT_VIDEO: (Unit.INPUT,),
    Unit.CACHE_READ_AUDIO: (Unit.INPUT_AUDIO, Unit.CACHE_READ, Unit.INPUT),
    Unit.CACHE_READ_IMAGE: (Unit.INPUT_IMAGE, Unit.CACHE_READ, Unit.INPUT),
    Unit.OUTPUT_AUDIO: (Unit.OUTPUT,),
    Unit.OUTPUT_IMAGE: (Unit.OUTPUT,),
}
"""Whose price a unit takes that has none: the first of these that has one."""


class Line(NamedTuple):
    """One item of a charge as it is shown."""

    unit: str
    quantity: int
    nanos_per_million: int
    nanos: int  # its part of the charge; see `Price.lines`


class PriceSheet:
    """The prices of every configured provider, at one version."""

    def __init__(self, sheet: Sheet, version: str) -> None:
        self.version = version
        self._models = sheet.models
        self._overrides: dict[str, list[Override]] = {}
        for override in sheet.overrides:
            self._overrides.setdefault(override.provider, []).append(override)
        self._found: dict[tuple[str, str], tuple[float, float, Price | None]] = {}

    @classmethod
    def load(cls, packed: bytes) -> "PriceSheet":
        """The sheet of these bytes, its version their hash; `ValueError` if they are none."""
        try:
            sheet = _decode(packed)
        except msgspec.DecodeError as error:
            raise ValueError(f"not a price sheet: {error}") from error
        if sheet.format != FORMAT:
            raise ValueError(f"a price sheet of format {sheet.format}, not {FORMAT}")
        return cls(sheet, hashlib.sha256(packed).hexdigest()[:16])

    def price(self, provider: str, model: str, at_s: float) -> "Price | None":
        """The price of the provider's model for a call admitted at this moment; None: it has none.

        The same object as long as nothing changes, so that it may be kept for the call's life.
        """
        found = self._found.get((provider, model))
        if found is not None and found[0] <= at_s < found[1]:
            return found[2]
        return self._find(provider, model, at_s)

    def _find(self, provider: str, model: str, at_s: float) -> "Price | None":
        if len(model) > MODEL_NAME_MAX:
            return None
        name = model.lower()
        overrides = [o for o in self._overrides.get(provider, ()) if o.model.is_match(name)]
        base = self._match(provider, name)
        edges = [edge for override in overrides for edge in override.when.edges(at_s)]
        edges += [] if base is None else base.edges(at_s)
        since = max((edge for edge in edges if edge <= at_s), default=float("-inf"))
        until = min((edge for edge in edges if edge > at_s), default=float("inf"))
        price = self._price(overrides, base, at_s)
        if len(self._found) >= LOOKUPS_MAX:
            self._found.clear()
        self._found[provider, model] = (since, until, price)
        return price

    def _price(self, overrides: list[Override], base: Model | None, at_s: float) -> "Price | None":
        for override in reversed(overrides):
            if override.when.is_active(at_s):
                return Price(self.version, override.steps, override.tiers)
        if base is None or not base.steps(at_s):
            return None
        return Price(self.version, base.steps(at_s), base.tiers(at_s), unmetered=base.unmetered)

    def _match(self, provider: str, name: str) -> Model | None:
        models = self._models.get(provider, ())
        found = next((model for model in models if model.match.is_match(name)), None)
        dashed = _COMPACT_DATE.sub(r"-\1-\2-\3", name)
        if found is None and dashed != name:
            found = next((model for model in models if model.match.is_match(dashed)), None)
        return found


class Price:
    """What one model costs, by service tier and length of input."""

    __slots__ = ("_bound", "_standard", "_tiers", "_unmetered", "is_free", "version")

    def __init__(
        self,
        version: str,
        steps: tuple[Step, ...],
        tiers: Mapping[str, tuple[Step, ...]],
        *,
        unmetered: tuple[str, ...] = (),
    ) -> None:
        self.version = version
        self._standard = _Rates(steps)
        self._bound = self._standard.only_bound
        self._tiers = {tier: _Rates(its_steps) for tier, its_steps in tiers.items()}
        self._unmetered = tuple(f"unmetered:{key}" for key in unmetered)
        rates = (self._standard, *self._tiers.values())
        self.is_free = not any(
            price for each in rates for step in each.tables for price in step.values()
        )

    def charge(self, usage: Usage) -> Nanos:
        """The charge, rounded up once. No usage makes it raise; a negative count counts nothing."""
        rates = self._tiers.get(usage.tier, self._standard) if usage.tier else self._standard
        table = rates.only or rates.table(usage)
        exact = rates.besides(usage, table) if rates.has_more else 0
        get = table.get
        for unit, count in usage.counts.items():
            if count > 0:
                exact += count * get(unit, 0)
        return Nanos(min(-(-exact // PER_MILLION), NANOS_MAX))

    def lines(self, usage: Usage) -> list[Line]:
        """The items of the charge; their sum is the charge.

        Rounding is shared out as the items add up: each shows by how much it raises the rounded
        sum of those before it, so none is negative or a nano-USD away from its exact part.
        """
        rates = self._tiers.get(usage.tier, self._standard) if usage.tier else self._standard
        table = rates.only or rates.table(usage)
        counts = {unit: count for unit, count in usage.counts.items() if count > 0}
        if usage.counts and Unit.REQUESTS in table and Unit.REQUESTS not in usage.counts:
            counts[Unit.REQUESTS] = 1
        reasoning = min(usage.reasoning, counts.get(Unit.OUTPUT, 0))
        if REASONING in table and reasoning > 0:
            counts[REASONING] = reasoning
            counts[Unit.OUTPUT] -= reasoning
            if not counts[Unit.OUTPUT]:
                del counts[Unit.OUTPUT]
        lines: list[Line] = []
        exact = shown = 0
        for unit, quantity in counts.items():
            price = table.get(unit, 0)
            exact += quantity * price
            rounded = min(-(-exact // PER_MILLION), NANOS_MAX)
            lines.append(Line(unit, quantity, price, rounded - shown))
            shown = rounded
        return lines

    def worst_case(self, *, input_tokens: int, output_tokens: int, tier: str | None) -> Nanos:
        """What a call of so many tokens at most can cost, whatever kinds of token they are.

        `tier` is what the client asked for. It may be served at the standard tier instead; a tier
        that no price is known for may turn out to be any. Fees for what a vendor does of itself
        (searches, code) are not in it.
        """
        if tier is None and self._bound is not None:  # nearly always
            fee, dearest_input, dearest_output = self._bound
            exact = fee + input_tokens * dearest_input + output_tokens * dearest_output
            return Nanos(-(-exact // PER_MILLION))
        possible = [self._standard]
        if tier in self._tiers:
            possible.append(self._tiers[tier])
        elif tier is not None and tier not in _PLAIN_TIERS:
            possible.extend(self._tiers.values())
        exact = max(rates.worst(input_tokens, output_tokens) for rates in possible)
        return Nanos(-(-exact // PER_MILLION))

    def flags(self, usage: Usage) -> tuple[str, ...]:
        """What of this usage is not priced by the sheet's own word, for the record. Mostly nothing.

        `unpriced:x` costs nothing, `assumed_price:x` what its nearest relative costs,
        `unmetered:x` is a fee of the vendor's that no usage report of its kind tells us.
        """
        if self.is_free:
            return ()
        tier = usage.tier
        rates = self._tiers.get(tier, self._standard) if tier else self._standard
        flags = self._unmetered
        if not usage.counts.keys() <= rates.own:
            flags += tuple(
                f"assumed_price:{unit}" if unit in rates.tables[0] else f"unpriced:{unit}"
                for unit, count in usage.counts.items()
                if count > 0 and unit not in rates.own
            )
        if tier and rates is self._standard and tier not in _PLAIN_TIERS:
            flags += (f"unpriced_tier:{tier[:40]}",)
        return flags


def charge_reported(usage: Usage, otherwise: Nanos) -> Nanos:
    """The vendor's own cost, where that is what is charged; `otherwise` if it gave none."""
    reported = usage.reported_nanos
    if reported is None:
        return otherwise
    return Nanos(min(max(reported, ZERO), NANOS_MAX))


class _Rates:
    """The prices of one service tier: a table for each length of input."""

    __slots__ = ("_above", "_bounds", "_fee", "has_more", "only", "only_bound", "own", "tables")

    def __init__(self, steps: tuple[Step, ...]) -> None:
        self._above = [step.above for step in steps]
        self.tables = [_completed(step.nanos_per_million) for step in steps]
        # Falsy when there is a choice, and the lookup by length then makes it.
        self.only = self.tables[0] if len(self.tables) == 1 else None
        self.own = frozenset(steps[0].nanos_per_million)
        self.has_more = bool(self.own & {REASONING, Unit.REQUESTS})
        self._fee = max(table.get(Unit.REQUESTS, 0) for table in self.tables)
        self._bounds = [
            (step.above, _dearest(step, INPUT_TOKENS), _dearest(step, (*OUTPUT_TOKENS, REASONING)))
            for step in steps
        ]
        # The fee, and the dearest input and output, where the length of the input is all one.
        self.only_bound = (self._fee, *self._bounds[0][1:]) if len(steps) == 1 else None

    def table(self, usage: Usage) -> Mapping[str, int]:
        """The prices for this length of input: of the whole call, not of what is above a limit."""
        tokens = usage.input_tokens()
        at = len(self._above) - 1
        while at > 0 and tokens <= self._above[at]:
            at -= 1
        return self.tables[at]

    def besides(self, usage: Usage, table: Mapping[str, int]) -> int:
        """What counts times prices leave out: the fee of a call, and reasoning priced apart."""
        if not usage.counts:
            return 0
        fee = 0 if Unit.REQUESTS in usage.counts else table.get(Unit.REQUESTS, 0)
        if REASONING not in table:
            return fee
        reasoning = max(0, min(usage.reasoning, usage.counts.get(Unit.OUTPUT, 0)))
        return fee + reasoning * (table[REASONING] - table.get(Unit.OUTPUT, 0))

    def worst(self, input_tokens: int, output_tokens: int) -> int:
        """The most that so many tokens cost, in millionths; a shorter input may be the dearer."""
        return self._fee + max(
            input_tokens * dearest_input + output_tokens * dearest_output
            for above, dearest_input, dearest_output in self._bounds
            if above < input_tokens or above == 0
        )


def _dearest(step: Step, units: Iterable[str]) -> int:
    return max(step.nanos_per_million.get(unit, 0) for unit in units)


def _completed(own: Mapping[str, int]) -> dict[str, int]:
    """The table with a price for every unit that has a relative with one."""
    table = dict(own)
    for unit, relatives in _RELATIVES.items():
        if unit not in own:
            price = next((own[each] for each in relatives if each in own), None)
            if price is not None:
                table[unit] = price
    # Vendors that charge 1.25 x input for a write charge 2 x for one that is kept for an hour
    # (docs.anthropic.com, prompt caching; checked 2026-11-20).
    plain = own.get(Unit.INPUT, 0)
    if Unit.CACHE_WRITE_1H not in own and own.get(Unit.CACHE_WRITE_5M, 0) * 4 == plain * 5 > 0:
        table[Unit.CACHE_WRITE_1H] = plain * 2
    return table


_COMPACT_DATE = re.compile(r"-(20\d\d)(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?=-|:|$)")
_decode = msgspec.msgpack.Decoder(Sheet).decode
