"""A charge is exact to the nano-USD, rounded up once, and never silently nothing."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from ledger.money import NANOS_MAX, Nanos
from ledger.price_compiler import compile_sheet
from ledger.pricing import LOOKUPS_MAX, Price, PriceSheet, charge_reported
from ledger.usage import INPUT_TOKENS, NOTHING, OUTPUT_TOKENS, Source, Unit, Usage
from tests.ledger.price_rows import ROWS
from tests.ledger.price_settings import MODELS, Setting, Tier, price, sheet, usd

SHEET = sheet(*MODELS)


def price_of(model: str, at_s: float = 0.0) -> Price:
    found = SHEET.price("vendor", model, at_s)
    assert found is not None
    return found


# What a usage costs


@pytest.mark.parametrize(("model", "tier", "counts", "nanos"), ROWS)
def test_the_golden_table(model: str, tier: str | None, counts: dict[str, int], nanos: int) -> None:
    assert price_of(model).charge(Usage(counts, tier=tier)) == nanos


def test_a_million_requests_of_one_token_at_20_nanos_cost_20_million() -> None:
    one = Usage({Unit.INPUT: 1})
    assert sum(price_of("embedder").charge(one) for _ in range(1_000_000)) == 20_000_000


def test_reasoning_is_part_of_the_output_and_costs_its_own_price_where_it_has_one() -> None:
    usage = Usage({Unit.OUTPUT: 100}, reasoning=40)
    assert price_of("chat").charge(usage) == 100 * 2_000
    searcher = price_with_reasoning()
    assert searcher.charge(usage) == 60 * 8_000 + 40 * 3_000
    assert searcher.charge(structs.replace(usage, reasoning=0)) == 100 * 8_000


def price_with_reasoning() -> Price:
    """Perplexity's sonar-deep-research is one of the few that price reasoning apart."""
    found = sheet(perplexity="perplexity").price("perplexity", "sonar-deep-research", 0.0)
    assert found is not None
    return found


@pytest.mark.parametrize(
    "usage",
    [
        NOTHING,
        Usage({}),
        Usage({Unit.INPUT: 0, Unit.OUTPUT: 0}),
        Usage({Unit.INPUT: -5, Unit.OUTPUT: -1}, reasoning=-7),
        Usage({"a unit of the next release": 5}),
        Usage({}, tier="a tier of the next release", reasoning=9),
    ],
)
def test_odd_usages_cost_nothing_and_raise_nothing(usage: Usage) -> None:
    for model in ("chat", "writer", "thinker", "gift"):
        assert price_of(model).charge(usage) == 0
        assert sum(line.nanos for line in price_of(model).lines(usage)) == 0
        price_of(model).flags(usage)


def test_more_reasoning_than_output_is_all_of_the_output() -> None:
    assert price_with_reasoning().charge(Usage({Unit.OUTPUT: 10}, reasoning=99)) == 10 * 3_000


def test_a_usage_beyond_all_reason_costs_the_largest_amount() -> None:
    usage = Usage({Unit.INPUT: 10**18})
    assert price_of("writer").charge(usage) == NANOS_MAX
    assert sum(line.nanos for line in price_of("writer").lines(usage)) == NANOS_MAX


def test_a_call_that_consumed_nothing_pays_no_fee() -> None:
    assert price_of("searcher").charge(NOTHING) == 0


# A unit without a price


def test_a_unit_without_a_price_costs_what_its_nearest_relative_costs_and_is_flagged() -> None:
    chat = price_of("chat")
    for unit in INPUT_TOKENS - {Unit.INPUT}:
        usage = Usage({unit: 10})
        assert chat.charge(usage) == 10 * 1_500
        assert chat.flags(usage) == (f"assumed_price:{unit}",)
    for unit in OUTPUT_TOKENS - {Unit.OUTPUT}:
        usage = Usage({unit: 10})
        assert chat.charge(usage) == 10 * 2_000
        assert chat.flags(usage) == (f"assumed_price:{unit}",)


def test_cached_audio_costs_what_audio_costs_rather_than_what_text_costs() -> None:
    model = price(Setting("v", "m", usd(input="1", input_audio="40", cache_read="0.1", output="2")))
    assert model.charge(Usage({Unit.CACHE_READ_AUDIO: 1})) == 40_000


def test_a_write_for_an_hour_costs_twice_the_input_where_writes_cost_a_quarter_more() -> None:
    writes = price(Setting("v", "m", usd(input="4", cache_write_5m="5", output="1")))
    assert writes.charge(Usage({Unit.CACHE_WRITE_1H: 1})) == 8_000
    assert writes.flags(Usage({Unit.CACHE_WRITE_1H: 1})) == ("assumed_price:cache_write_1h",)
    other = price(Setting("v", "m", usd(input="4", cache_write_5m="6", output="1")))
    assert other.charge(Usage({Unit.CACHE_WRITE_1H: 1})) == 6_000


def test_what_nothing_is_like_costs_nothing_and_is_flagged() -> None:
    usage = Usage({Unit.WEB_SEARCHES: 2, Unit.INPUT: 1})
    assert price_of("chat").charge(usage) == 1_500
    assert price_of("chat").flags(usage) == ("unpriced:web_searches",)
    assert price_of("embedder").flags(Usage({Unit.OUTPUT: 1})) == ("unpriced:output",)


def test_a_usage_that_is_priced_by_the_sheet_has_no_flags() -> None:
    usage = Usage({Unit.INPUT: 5, Unit.CACHE_READ: 5, Unit.OUTPUT: 5}, tier="flex")
    assert price_of("thinker").flags(usage) == ()
    assert price_of("chat").flags(Usage({Unit.INPUT: 5, Unit.CACHE_READ: 0})) == ()


def test_a_tier_without_prices_costs_the_standard_price_and_is_flagged() -> None:
    usage = Usage({Unit.INPUT: 5}, tier="scale")
    assert price_of("thinker").flags(usage) == ("unpriced_tier:scale",)
    for plain in ("default", "standard", "on_demand", "auto", None):
        assert price_of("thinker").flags(structs.replace(usage, tier=plain)) == ()


def test_a_free_model_is_free_of_everything() -> None:
    gift = price_of("gift")
    assert gift.is_free
    assert gift.flags(Usage({Unit.WEB_SEARCHES: 1}, tier="scale")) == ()
    assert gift.worst_case(input_tokens=10**9, output_tokens=10**9, tier=None) == 0
    assert not price_of("dust").is_free


# The lines of a charge


def test_lines_say_what_was_counted_at_which_price() -> None:
    lines = price_of("thinker").lines(
        Usage({Unit.INPUT: 1_000, Unit.CACHE_READ: 7, Unit.OUTPUT: 100}, tier="flex")
    )
    assert [tuple(line) for line in lines] == [
        ("input", 1_000, 625_000_000, 625_000),
        ("cache_read", 7, 62_500_000, 438),  # 437.5, and the half that the rounding adds
        ("output", 100, 5_000_000_000, 500_000),
    ]


def test_the_fee_of_a_call_and_its_reasoning_have_lines() -> None:
    assert price_of("searcher").lines(Usage({Unit.INPUT: 1}))[1] == (
        "requests",
        1,
        12_000_000_000_000,
        12_000_000,
    )
    lines = price_with_reasoning().lines(Usage({Unit.OUTPUT: 10}, reasoning=10))
    assert [(line.unit, line.quantity) for line in lines] == [("reasoning", 10)]


counts = st.dictionaries(st.sampled_from([*Unit, "unknown"]), st.integers(-2, 400_000), max_size=6)
usages = st.builds(
    Usage,
    counts,
    reasoning=st.integers(-1, 10_000),
    tier=st.sampled_from([None, "default", "flex", "batch", "priority", "scale"]),
)
prices = st.sampled_from([price_of(setting.model) for setting in MODELS] + [price_with_reasoning()])


@settings(deadline=None)
@given(prices, usages)
def test_the_lines_add_up_to_the_charge(price: Price, usage: Usage) -> None:
    lines = price.lines(usage)
    assert sum(line.nanos for line in lines) == price.charge(usage)
    for line in lines:
        exact = line.quantity * line.nanos_per_million / 1_000_000
        assert line.nanos >= 0
        assert abs(line.nanos - exact) < 1 + 1e-6


@settings(deadline=None)
@given(prices, usages)
def test_a_charge_is_the_sum_of_its_parts_rounded_up_once(price: Price, usage: Usage) -> None:
    parts = [line.quantity * line.nanos_per_million for line in price.lines(usage)]
    assert price.charge(usage) == -(-sum(parts) // 1_000_000)


# The worst case


@settings(deadline=None)
@given(
    prices,
    st.dictionaries(st.sampled_from(sorted(INPUT_TOKENS)), st.integers(0, 300_000)),
    st.dictionaries(st.sampled_from(sorted(OUTPUT_TOKENS)), st.integers(0, 100_000)),
    st.sampled_from([None, "flex", "batch", "priority"]),
    st.booleans(),
    st.integers(0, 1_000),
)
def test_no_usage_within_the_bounds_costs_more_than_the_worst_case(
    price: Price,
    inputs: dict[str, int],
    outputs: dict[str, int],
    tier: str | None,
    is_downgraded: bool,  # noqa: FBT001 - hypothesis passes by name
    slack: int,
) -> None:
    usage = Usage({**inputs, **outputs}, tier=None if is_downgraded else tier, reasoning=slack)
    worst = price.worst_case(
        input_tokens=usage.input_tokens() + slack,
        output_tokens=usage.output_tokens() + slack,
        tier=tier,
    )
    if not any(flag == "assumed_price:cache_write_1h" for flag in price.flags(usage)):
        assert price.charge(usage) <= worst


@pytest.mark.parametrize(
    ("model", "tokens", "tier", "nanos"),
    [
        ("embedder", (1_000, 0), None, 20_000),
        ("chat", (100, 50), None, 250_000),
        ("writer", (1_000, 100), None, 1_000 * 6_000 + 100 * 15_000),  # all of it written for 1 h
        ("writer", (200_000, 0), None, 200_000 * 6_000),
        ("writer", (200_001, 0), None, 200_001 * 12_000),
        ("thinker", (1_000, 100), None, 1_000 * 1_250 + 100 * 10_000),
        ("thinker", (1_000, 100), "flex", 1_000 * 1_250 + 100 * 10_000),  # may be served as default
        ("thinker", (1_000, 100), "priority", 1_000 * 2_500 + 100 * 20_000),
        ("thinker", (1_000, 100), "ultra", 1_000 * 2_500 + 100 * 20_000),  # may be any
        ("listener", (10, 10), None, 10 * 40_000 + 10 * 80_000),
        ("searcher", (1, 1), None, 12_002_000),
    ],
)
def test_the_worst_case_is_the_dearest_that_may_be_reached_and_no_more(
    model: str, tokens: tuple[int, int], tier: str | None, nanos: int
) -> None:
    price = price_of(model)
    assert price.worst_case(input_tokens=tokens[0], output_tokens=tokens[1], tier=tier) == nanos


def test_a_shorter_input_may_be_the_dearer() -> None:
    odd = price(
        Setting("v", "m", usd(input="5", output="9"), (Tier(1_000, usd(input="1", output="1")),))
    )
    assert odd.worst_case(input_tokens=2_000, output_tokens=0, tier=None) == 2_000 * 5_000


# A vendor's own figure


def test_a_reported_cost_is_charged_as_it_is() -> None:
    usage = Usage({Unit.INPUT: 1}, reported_nanos=123)
    assert charge_reported(usage, Nanos(5)) == 123
    assert charge_reported(structs.replace(usage, reported_nanos=0), Nanos(5)) == 0


def test_without_a_reported_cost_the_price_is_charged() -> None:
    assert charge_reported(Usage({}, source=Source.REPORTED), Nanos(5)) == 5


def test_a_reported_cost_that_cannot_be_is_kept_within_bounds() -> None:
    assert charge_reported(Usage({}, reported_nanos=-4), Nanos(5)) == 0
    assert charge_reported(Usage({}, reported_nanos=10**30), Nanos(5)) == NANOS_MAX


# The sheet


def test_an_unknown_model_or_provider_has_no_price() -> None:
    for provider, model in (("vendor", "unknown"), ("unknown", "chat"), ("vendor", "chat" * 100)):
        assert SHEET.price(provider, model, 0.0) is None


def test_the_version_is_the_content() -> None:
    again = sheet(*MODELS)
    assert again.version == SHEET.version == price_of("chat").version
    assert len(again.version) == 16
    changed = sheet(replace(MODELS[0], model="another"), *MODELS[1:])
    assert changed.version != SHEET.version


def test_what_is_no_sheet_is_refused() -> None:
    packed = compile_sheet({}, MODELS)
    for damaged in (b"", b"\x93", packed[:-1], b"\x93\x02\x80\x90"):
        with pytest.raises(ValueError, match="price sheet"):
            PriceSheet.load(damaged)


def test_a_price_is_the_same_object_until_it_changes() -> None:
    until = sheet(
        Setting("v", "m", usd(input="1"), until_s=1_000), Setting("v", "x", usd(input="1"))
    )
    first = until.price("v", "m", 10.0)
    assert first is until.price("v", "m", 999.0)
    assert until.price("v", "m", 1_000.0) is None
    assert until.price("v", "m", 999.9) is not None


def test_a_price_taken_before_a_change_goes_on_to_charge_as_before() -> None:
    old, new = (
        Setting("v", "m", usd(input="1"), until_s=100),
        Setting("v", "m", usd(input="9"), from_s=100),
    )
    changing = sheet(old, new)
    before = changing.price("v", "m", 99.0)
    after = changing.price("v", "m", 100.0)
    assert before is not None
    assert after is not None
    usage = Usage({Unit.INPUT: 1})
    assert (before.charge(usage), after.charge(usage)) == (1_000, 9_000)


def test_names_that_clients_make_up_do_not_fill_the_memory() -> None:
    small = sheet(Setting("v", "m", usd(input="1")))
    for number in range(LOOKUPS_MAX + 10):
        assert small.price("v", f"made-up-{number}", 0.0) is None
    assert len(small._found) <= LOOKUPS_MAX
    assert small.price("v", "m", 0.0) is not None
