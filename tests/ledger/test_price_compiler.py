"""The compiled sheet charges what genai-prices works out, and what operators write above it."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal

import genai_prices
import pytest
from genai_prices.data import providers as package_providers
from genai_prices.types import ModelInfo, ModelPrice, TieredPrices
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from ledger.price_compiler import compile_sheet
from ledger.pricing import Price, PriceSheet
from ledger.usage import Unit, Usage
from tests.ledger.price_settings import Setting, Tier, sheet, usd

VENDORS = ("openai", "groq", "mistral", "deepseek", "x-ai", "openrouter", "together", "perplexity")
SHEET = PriceSheet.load(compile_sheet({vendor: vendor for vendor in VENDORS}, ()))
MODELS = [
    (provider.id, model)
    for provider in package_providers
    if provider.id in VENDORS
    for model in provider.models
]
NOW_S = datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp()
TIERS: tuple[tuple[str | None, dict[str, str] | None], ...] = (
    (None, None),
    ("default", {"service_tier": "default"}),
    ("flex", {"service_tier": "flex"}),
    ("priority", {"service_tier": "priority"}),
    ("batch", {"processing": "batch"}),
)


def price(provider: str, model: str, at_s: float = NOW_S) -> Price | None:
    return SHEET.price(provider, model, at_s)


def charge(found: Price | None, usage: Usage) -> int:
    assert found is not None
    return found.charge(usage)


# Agreement with the package


def package_usage(usage: Usage) -> genai_prices.Usage:
    """The same usage in the package's words, whose buckets contain each other."""
    count = {unit: usage.counts.get(unit, 0) for unit in Unit}
    cached = count[Unit.CACHE_READ] + count[Unit.CACHE_READ_AUDIO] + count[Unit.CACHE_READ_IMAGE]
    written = count[Unit.CACHE_WRITE_5M] + count[Unit.CACHE_WRITE_1H]
    return genai_prices.Usage(
        input_tokens=usage.input_tokens(),
        cache_read_tokens=cached,
        cache_write_tokens=written,
        cache_write_1h_tokens=count[Unit.CACHE_WRITE_1H],
        input_audio_tokens=count[Unit.INPUT_AUDIO] + count[Unit.CACHE_READ_AUDIO],
        cache_audio_read_tokens=count[Unit.CACHE_READ_AUDIO],
        input_image_tokens=count[Unit.INPUT_IMAGE] + count[Unit.CACHE_READ_IMAGE],
        cache_image_read_tokens=count[Unit.CACHE_READ_IMAGE],
        input_video_tokens=count[Unit.INPUT_VIDEO],
        output_tokens=usage.output_tokens(),
        output_reasoning_tokens=min(usage.reasoning, count[Unit.OUTPUT]),
        output_audio_tokens=count[Unit.OUTPUT_AUDIO],
        output_image_tokens=count[Unit.OUTPUT_IMAGE],
        web_searches=count[Unit.WEB_SEARCHES],
        storage_searches=count[Unit.FILE_SEARCHES],
        input_characters=count[Unit.CHARACTERS],
    )


def name_of(model: ModelInfo) -> str:
    """A name that the model goes by; some do not go by their id."""
    return next(name for name in (model.id, *_texts(model.match)) if model.is_match(name))


def _texts(clause: object) -> Iterator[str]:
    for value in vars(clause).values():
        if isinstance(value, str):
            yield value
        else:
            yield from (text for each in value for text in _texts(each))


def is_exact(model: ModelInfo) -> bool:
    """Whether its prices have nine decimals at most; a few carry the noise of a float."""
    prices = (
        [model.prices]
        if isinstance(model.prices, ModelPrice)
        else [each.prices for each in model.prices]
    )
    figures = [figure for each in prices for figure in vars(each).values()]
    flat = [f.base if isinstance(f, TieredPrices) else f for f in figures]
    flat += [tier.price for f in figures if isinstance(f, TieredPrices) for tier in f.tiers]
    return all((Decimal(f) * 10**9) % 1 == 0 for f in flat if f is not None)


def assert_agrees(
    provider: str, model: ModelInfo, usage: Usage, *, at_s: float, context: dict[str, str] | None
) -> None:
    name = name_of(model)
    theirs = genai_prices.calc_price(
        package_usage(usage),
        name,
        provider_id=provider,
        genai_request_timestamp=datetime.fromtimestamp(at_s, UTC),
        price_context=context,
    )
    ours = price(provider, name, at_s)
    if ours is None:
        assert theirs.total_price == 0
        return
    exact = theirs.total_price * 10**9
    rounded = int(exact.to_integral_value(rounding="ROUND_CEILING"))
    if is_exact(theirs.model):
        assert ours.charge(usage) == rounded
    else:
        assert abs(ours.charge(usage) - rounded) <= 1


AGREEING_UNITS = (
    Unit.INPUT,
    Unit.CACHE_READ,
    Unit.CACHE_WRITE_5M,
    Unit.OUTPUT,
    Unit.INPUT_AUDIO,
    Unit.CACHE_READ_AUDIO,
    Unit.OUTPUT_AUDIO,
    Unit.INPUT_IMAGE,
    Unit.CACHE_READ_IMAGE,
    Unit.OUTPUT_IMAGE,
    Unit.INPUT_VIDEO,
    Unit.WEB_SEARCHES,
    Unit.FILE_SEARCHES,
    Unit.CHARACTERS,
)
usages = st.builds(
    Usage,
    st.dictionaries(st.sampled_from(AGREEING_UNITS), st.integers(0, 300_000), min_size=1),
    reasoning=st.integers(0, 50_000),
)


@settings(deadline=None)
@given(
    st.sampled_from(MODELS),
    usages,
    st.sampled_from(TIERS),
    st.integers(int(NOW_S) - 600 * 86_400, int(NOW_S) + 60 * 86_400),
)
def test_any_usage_of_any_model_costs_what_the_package_says_rounded_up(
    which: tuple[str, ModelInfo],
    usage: Usage,
    tier: tuple[str | None, dict[str, str] | None],
    at_s: int,
) -> None:
    provider, model = which
    ours = replace(usage, tier=tier[0])
    assert_agrees(provider, model, ours, at_s=at_s, context=tier[1])


def test_every_model_costs_what_the_package_says_at_every_hour() -> None:
    rolled = random.Random(8)  # noqa: S311 - an even sample, and the same each time
    for provider, model in MODELS:
        for _ in range(1 if provider == "openrouter" else 4):
            units = rolled.sample(AGREEING_UNITS, 3)
            counts: dict[str, int] = {unit: rolled.randrange(400_000) for unit in units}
            tier, context = rolled.choice(TIERS)
            at_s = NOW_S + rolled.randrange(-400 * 24, 24) * 3_600
            assert_agrees(provider, model, Usage(counts, tier=tier), at_s=at_s, context=context)


# What the table says


def test_nine_decimals_of_a_dollar_are_kept() -> None:
    sonnet = sheet(anthropic="anthropic").price("anthropic", "claude-sonnet-4-5", NOW_S)
    usage = Usage({Unit.INPUT: 3, Unit.CACHE_WRITE_5M: 12_304, Unit.OUTPUT: 550})
    assert charge(sonnet, usage) == 54_399_000
    assert charge(sonnet, Usage({Unit.CACHE_WRITE_1H: 1})) == 6_000


def test_a_model_is_found_by_the_names_that_vendors_give_it() -> None:
    for name in ("gpt-4o-mini", "GPT-4o-mini", "gpt-4o-mini-2024-07-18", "gpt-4o-mini-20240718"):
        assert charge(price("openai", name), Usage({Unit.INPUT: 1_000_000})) == 150_000_000


def test_prices_of_a_time_of_day_change_at_their_hour() -> None:
    noon = datetime(2026, 1, 5, 12, tzinfo=UTC).timestamp()
    night = datetime(2026, 1, 5, 23, tzinfo=UTC).timestamp()
    usage = Usage({Unit.INPUT: 1_000})
    dear, cheap = (price("deepseek", "deepseek-chat", at_s) for at_s in (noon, night))
    assert (charge(dear, usage), charge(cheap, usage)) == (270_000, 135_000)
    for day in range(1, 4):
        assert charge(price("deepseek", "deepseek-chat", noon + day * 86_400), usage) == 270_000
        assert charge(price("deepseek", "deepseek-chat", night + day * 86_400), usage) == 135_000


def test_prices_change_on_their_date() -> None:
    before = datetime(2025, 6, 9, 23, 59, 59, tzinfo=UTC).timestamp()
    usage = Usage({Unit.INPUT: 1_000})
    assert charge(price("openai", "o3", before), usage) == 10_000_000
    assert charge(price("openai", "o3", before + 1), usage) == 2_000_000


def test_a_tier_of_the_response_decides() -> None:
    usage = Usage({Unit.INPUT: 1_000, Unit.OUTPUT: 100})
    gpt = price("openai", "gpt-4.1")
    assert charge(gpt, usage) == 2_800_000
    assert charge(gpt, replace(usage, tier="priority")) == 4_900_000
    assert charge(gpt, replace(usage, tier="batch")) == 1_400_000


def test_a_provider_that_offers_the_models_of_another_has_their_prices() -> None:
    azure = sheet(cloud="azure").price("cloud", "gpt-5.5-pro", NOW_S)
    openai = price("openai", "gpt-5.5-pro")
    usage = Usage({Unit.INPUT: 1_000, Unit.OUTPUT: 100})
    assert charge(azure, usage) == charge(openai, usage) > 0
    # The tiers are the original's own offer.
    batch = replace(usage, tier="batch")
    assert charge(azure, batch) == charge(azure, usage) > charge(openai, batch)


def test_a_model_without_figures_has_no_price_unless_its_name_says_free() -> None:
    assert price("openai", "omni-moderation-latest") is None
    free = [model.id for vendor, model in MODELS if vendor == "openrouter" and is_bare(model)]
    for name in free:
        found = price("openrouter", name)
        assert (found is not None and found.is_free) == name.endswith(":free")


def is_bare(model: ModelInfo) -> bool:
    return isinstance(model.prices, ModelPrice) and not vars(model.prices)


def test_the_noise_of_a_float_in_a_price_is_healed() -> None:
    together = sheet(hub="huggingface_together")
    found = together.price("hub", "deepseek-ai/DeepSeek-V4-Flash-0731", NOW_S)
    assert charge(found, Usage({Unit.INPUT: 1_000_000})) == 140_000_000  # 0.13999999999999999 USD


def test_hours_of_audio_are_priced_by_the_millisecond() -> None:
    whisper = price("openai", "whisper-1")
    assert charge(whisper, Usage({Unit.MILLISECONDS: 3_600_000})) == 360_000_000


def test_what_a_vendor_charges_beyond_our_units_is_flagged() -> None:
    found = price("perplexity", "sonar-deep-research")
    assert found is not None
    assert found.flags(Usage({Unit.INPUT: 1})) == ("unmetered:output_citation_mtok",)


def test_an_unknown_table_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match="no provider opnai"):
        compile_sheet({"openai": "opnai"}, ())


def test_the_same_input_gives_the_same_bytes() -> None:
    forward = {vendor: vendor for vendor in VENDORS}
    backward = {vendor: vendor for vendor in reversed(VENDORS)}
    assert compile_sheet(forward, ()) == compile_sheet(backward, ())


# What operators write above it


def test_an_override_stands_above_the_table_whole() -> None:
    above = sheet(Setting("openai", "gpt-4o*", usd(input="7", output="9")), openai="openai")
    usage = Usage({Unit.INPUT: 1, Unit.CACHE_READ: 1, Unit.OUTPUT: 1})
    found = above.price("openai", "gpt-4o-mini", NOW_S)
    assert charge(found, usage) == 7_000 + 7_000 + 9_000  # its cached tokens are not the table's
    assert charge(above.price("openai", "gpt-4.1", NOW_S), usage) == 2_000 + 500 + 8_000


def test_the_last_override_that_is_active_holds() -> None:
    above = sheet(
        Setting("openai", "gpt-*", usd(input="1")),
        Setting("openai", "gpt-4.1", usd(input="2"), from_s=100, until_s=200),
        Setting("openai", "gpt-4.1", usd(input="3"), from_s=150),
        openai="openai",
    )
    usage = Usage({Unit.INPUT: 1})
    found = [charge(above.price("openai", "gpt-4.1", at), usage) for at in (0, 100, 150, 200)]
    assert found == [1_000, 2_000, 3_000, 3_000]


def test_after_an_override_the_table_holds_again() -> None:
    above = sheet(Setting("openai", "gpt-4.1", usd(input="9"), until_s=100), openai="openai")
    usage = Usage({Unit.INPUT: 1})
    assert charge(above.price("openai", "gpt-4.1", 99), usage) == 9_000
    assert charge(above.price("openai", "gpt-4.1", 100), usage) == 2_000


def test_an_override_is_for_one_provider() -> None:
    above = sheet(Setting("proxy", "*", usd(input="9")), openai="openai", proxy="openai")
    usage = Usage({Unit.INPUT: 1})
    assert charge(above.price("proxy", "gpt-4.1", NOW_S), usage) == 9_000
    assert charge(above.price("openai", "gpt-4.1", NOW_S), usage) == 2_000


def test_a_pattern_matches_whole_names_and_nothing_in_it_but_stars_and_marks_is_special() -> None:
    above = sheet(
        Setting("v", "a*c", usd(input="1")),
        Setting("v", "x?z", usd(input="1")),
        Setting("v", "m.1[b]", usd(input="1")),
        Setting("v", "m.2[*]", usd(input="1")),
    )
    matched = {"ac", "abc", "a/b:c", "AbC", "xyz", "m.1[b]", "M.2[x]"}
    for name in (*matched, "abcd", "zabc", "xz", "xyyz", "mx1b", "m.1b", "m.2x"):
        assert (above.price("v", name, 0.0) is not None) == (name in matched), name


def test_a_longer_input_keeps_the_prices_its_tier_does_not_name() -> None:
    above = sheet(
        Setting(
            "v",
            "m",
            usd(input="1", output="5"),
            (Tier(10, usd(input="2")),),
            {"batch": usd(output="1")},
        )
    )
    found = above.price("v", "m", 0.0)
    assert charge(found, Usage({Unit.INPUT: 11, Unit.OUTPUT: 1})) == 22_000 + 5_000
    assert charge(found, Usage({Unit.INPUT: 11, Unit.OUTPUT: 1}, tier="batch")) == 22_000 + 1_000
    assert charge(found, Usage({Unit.INPUT: 10, Unit.OUTPUT: 1}, tier="batch")) == 10_000 + 1_000


def test_a_free_override_makes_a_priced_model_free() -> None:
    above = sheet(Setting("openai", "*", free=True), openai="openai")
    found = above.price("openai", "gpt-4.1", NOW_S)
    assert found is not None
    assert found.is_free
