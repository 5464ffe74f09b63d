"""Makes the price sheet: the table of the genai-prices package, and the operator's prices above it.

Run by the control process, for the package takes memory and time that no worker has to spend.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, time
from decimal import ROUND_HALF_UP, Decimal
from typing import Protocol

import msgspec
from genai_prices import types
from genai_prices.data import providers as package_providers

from ledger.money import NANOS_PER_USD
from ledger.price_data import (
    FORMAT,
    AllOf,
    AnyOf,
    Between,
    Clause,
    Contains,
    Daily,
    EndsWith,
    Equals,
    Matches,
    Model,
    Override,
    Period,
    Sheet,
    Since,
    StartsWith,
    Step,
    Variant,
    When,
)
from ledger.pricing import PER_MILLION, REASONING
from ledger.usage import Unit

# The package's price keys: our unit, and how many of our units one price is for. Of two keys for
# one unit the later holds.
_UNITS: Mapping[str, tuple[str, int]] = {
    "input_mtok": (Unit.INPUT, 1_000_000),
    "cache_read_mtok": (Unit.CACHE_READ, 1_000_000),
    "cache_write_mtok": (Unit.CACHE_WRITE_5M, 1_000_000),
    "cache_write_5m_mtok": (Unit.CACHE_WRITE_5M, 1_000_000),
    "cache_write_1h_mtok": (Unit.CACHE_WRITE_1H, 1_000_000),
    "output_mtok": (Unit.OUTPUT, 1_000_000),
    "output_reasoning_mtok": (REASONING, 1_000_000),
    "input_audio_mtok": (Unit.INPUT_AUDIO, 1_000_000),
    "cache_audio_read_mtok": (Unit.CACHE_READ_AUDIO, 1_000_000),
    "output_audio_mtok": (Unit.OUTPUT_AUDIO, 1_000_000),
    "input_image_mtok": (Unit.INPUT_IMAGE, 1_000_000),
    "cache_image_read_mtok": (Unit.CACHE_READ_IMAGE, 1_000_000),
    "output_image_mtok": (Unit.OUTPUT_IMAGE, 1_000_000),
    "input_video_mtok": (Unit.INPUT_VIDEO, 1_000_000),
    "requests_kcount": (Unit.REQUESTS, 1_000),
    "web_searches_kcount": (Unit.WEB_SEARCHES, 1_000),
    "storage_searches_kcount": (Unit.FILE_SEARCHES, 1_000),
    "input_mchars": (Unit.CHARACTERS, 1_000_000),
    "audio_hours": (Unit.MILLISECONDS, 3_600_000),
    "input_audio_hours": (Unit.MILLISECONDS, 3_600_000),
}

# What a variant's condition is called in the package; the value is the name of the tier.
_TIER_KEYS = frozenset({"service_tier", "processing", "speed"})

_FREE_SUFFIX = ":free"  # OpenRouter's own word for a model that costs nothing


class TierSetting(Protocol):
    """Prices of the whole call once its input has more than so many tokens."""

    @property
    def above_input_tokens(self) -> int: ...
    @property
    def nanos_per_million(self) -> Mapping[Unit, int]: ...


class PriceSetting(Protocol):
    """One entry of `prices` in the configuration."""

    @property
    def provider(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def from_s(self) -> int | None: ...
    @property
    def until_s(self) -> int | None: ...
    @property
    def free(self) -> bool: ...
    @property
    def nanos_per_million(self) -> Mapping[Unit, int]: ...
    @property
    def tiers(self) -> Sequence[TierSetting]: ...
    @property
    def service_tiers(self) -> Mapping[str, Mapping[Unit, int]]: ...


def compile_sheet(providers: Mapping[str, str], overrides: Sequence[PriceSetting]) -> bytes:
    """The sheet's bytes; the same input gives the same bytes.

    `providers`: the name of each in the configuration -> its id in genai-prices. `ValueError` names
    the ids that the package does not know.
    """
    known = {provider.id: provider for provider in package_providers}
    unknown = sorted(set(providers.values()) - known.keys())
    if unknown:
        raise ValueError(f"genai-prices has no provider {', '.join(unknown)}")
    sheet = Sheet(
        FORMAT,
        {name: tuple(_models(known[its_id], known)) for name, its_id in sorted(providers.items())},
        tuple(_override(setting) for setting in overrides),
    )
    return msgspec.msgpack.encode(sheet, order="deterministic")


def _models(provider: types.Provider, known: Mapping[str, types.Provider]) -> list[Model]:
    """The provider's models, then those of others that it also offers, without their tiers."""
    models = [_model(model, with_variants=True) for model in provider.models]
    for its_id in provider.fallback_model_providers or ():
        models += [_model(model, with_variants=False) for model in known[its_id].models]
    return models


def _model(model: types.ModelInfo, *, with_variants: bool) -> Model:
    prices = model.prices
    conditional = prices if isinstance(prices, list) else [types.ConditionalPrice(prices=prices)]
    variants = [
        Variant(tier, _when(variant.constraint), _steps(variant.prices))
        for variant in (model.price_variants or ())
        if with_variants
        for key, tier in variant.when.items()
        if len(variant.when) == 1 and key in _TIER_KEYS and _steps(variant.prices)
    ]
    free = (Step(0, {Unit.INPUT: 0, Unit.OUTPUT: 0}),) if model.id.endswith(_FREE_SUFFIX) else ()
    return Model(
        _clause(model.match),
        tuple(Period(_when(each.constraint), _steps(each.prices) or free) for each in conditional),
        tuple(variants),
        tuple(
            sorted({key for each in conditional for key in _prices(each.prices)} - _UNITS.keys())
        ),
    )


def _prices(price: types.ModelPrice) -> dict[str, Decimal | types.TieredPrices]:
    return {key: value for key, value in vars(price).items() if value is not None}


def _steps(price: types.ModelPrice) -> tuple[Step, ...]:
    """The price as whole tables, one for each length of input; none if nothing in it is ours."""
    prices = _prices(price)
    ours = [(prices[key], *_UNITS[key]) for key in _UNITS if key in prices]
    tiered = [each for each, _, _ in ours if isinstance(each, types.TieredPrices)]
    starts = sorted({0, *(tier.start for each in tiered for tier in each.tiers)}) if ours else []
    return tuple(
        Step(start, {unit: _nanos(_in_force(each, start), units) for each, unit, units in ours})
        for start in starts
    )


def _in_force(price: Decimal | types.TieredPrices, above: int) -> Decimal:
    if isinstance(price, Decimal):
        return price
    reached = [tier.price for tier in price.tiers if tier.start <= above]
    return reached[-1] if reached else price.base


def _nanos(usd: Decimal, units: int) -> int:
    """Nano-USD per million units, of a price for so many units.

    Prices have nine decimals at most, so this is exact, but for figures with the noise of a float
    (0.19999999999999998), which it heals, and for hours of audio, which three does not divide.
    """
    exact = usd * NANOS_PER_USD * PER_MILLION / units
    return int(exact.to_integral_value(rounding=ROUND_HALF_UP))


def _when(constraint: types.StartDateConstraint | types.TimeOfDateConstraint | None) -> When | None:
    if constraint is None:
        return None
    if isinstance(constraint, types.StartDateConstraint):
        midnight = datetime.combine(constraint.start_date, time(), UTC)
        return Since(int(midnight.timestamp()))
    return Daily(_second_of_day(constraint.start_time), _second_of_day(constraint.end_time))


def _second_of_day(at: time) -> int:
    offset = at.utcoffset()
    seconds = at.hour * 3600 + at.minute * 60 + at.second
    return (seconds - (int(offset.total_seconds()) if offset else 0)) % 86_400


def _clause(clause: types.MatchLogic) -> Clause:  # noqa: PLR0911 - one for each kind of clause
    match clause:
        case types.ClauseEquals():
            return Equals(clause.equals.lower())
        case types.ClauseStartsWith():
            return StartsWith(clause.starts_with.lower())
        case types.ClauseEndsWith():
            return EndsWith(clause.ends_with.lower())
        case types.ClauseContains():
            return Contains(clause.contains.lower())
        case types.ClauseRegex():
            return Matches(clause.regex)
        case types.ClauseOr():
            return AnyOf(tuple(_clause(each) for each in clause.or_))
        case types.ClauseAnd():
            return AllOf(tuple(_clause(each) for each in clause.and_))


def _override(setting: PriceSetting) -> Override:
    base = {str(unit): price for unit, price in setting.nanos_per_million.items()}
    steps = [Step(0, {Unit.INPUT: 0, Unit.OUTPUT: 0} if setting.free else base)]
    for tier in setting.tiers:
        named = {str(unit): price for unit, price in tier.nanos_per_million.items()}
        steps.append(Step(tier.above_input_tokens, {**steps[-1].nanos_per_million, **named}))
    tiers = {
        name: tuple(
            Step(step.above, {**step.nanos_per_million, **{str(u): p for u, p in prices.items()}})
            for step in steps
        )
        for name, prices in setting.service_tiers.items()
    }
    when = Between(setting.from_s, setting.until_s)
    return Override(setting.provider, _glob(setting.model.lower()), when, tuple(steps), tiers)


def _glob(pattern: str) -> Clause:
    """`*` stands for any text, `?` for one character."""
    if "*" not in pattern and "?" not in pattern:
        return Equals(pattern)
    parts = (
        {"*": ".*", "?": "."}.get(part, re.escape(part)) for part in re.split(r"([*?])", pattern)
    )
    return Matches(f"(?s)^{''.join(parts)}\\Z")
