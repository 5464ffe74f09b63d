"""Prices for the tests, written as an operator writes them: USD per million units."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from ledger.price_compiler import compile_sheet
from ledger.pricing import Price, PriceSheet
from ledger.usage import Unit


@dataclass(frozen=True)
class Tier:
    above_input_tokens: int
    nanos_per_million: Mapping[Unit, int]


@dataclass(frozen=True)
class Setting:
    """As `gateway.settings.PriceOverride`."""

    provider: str
    model: str
    nanos_per_million: Mapping[Unit, int] = field(default_factory=dict)
    tiers: tuple[Tier, ...] = ()
    service_tiers: Mapping[str, Mapping[Unit, int]] = field(default_factory=dict)
    from_s: int | None = None
    until_s: int | None = None
    free: bool = False


def usd(**prices: str) -> dict[Unit, int]:
    """`input="2.5"` -> the nano-USD per million units."""
    return {Unit(unit): int(Decimal(price) * 10**9) for unit, price in prices.items()}


def sheet(*settings: Setting, **providers: str) -> PriceSheet:
    return PriceSheet.load(compile_sheet(providers, settings))


def price(setting: Setting) -> Price:
    found = sheet(setting).price(setting.provider, setting.model, 0.0)
    assert found is not None
    return found


MODELS = (
    Setting(
        "vendor",
        "writer",  # cache writes of two lifetimes, dearer when long, half in batch
        usd(input="3", cache_read="0.3", cache_write_5m="3.75", cache_write_1h="6", output="15"),
        (
            Tier(
                200_000,
                usd(
                    input="6",
                    cache_read="0.6",
                    cache_write_5m="7.5",
                    cache_write_1h="12",
                    output="22.5",
                ),
            ),
        ),
        {
            "batch": usd(
                input="1.5",
                cache_read="0.15",
                cache_write_5m="1.875",
                cache_write_1h="3",
                output="7.5",
            )
        },
    ),
    Setting(
        "vendor",
        "thinker",  # service tiers, searches, a length from which all is dearer
        usd(
            input="1.25",
            cache_read="0.125",
            output="10",
            web_searches="10000",
            file_searches="2500",
        ),
        (Tier(272_000, usd(input="2.5", cache_read="0.25", output="15")),),
        {
            "flex": usd(input="0.625", cache_read="0.0625", output="5"),
            "priority": usd(input="2.5", cache_read="0.25", output="20"),
            "batch": usd(input="0.625", output="5"),
        },
    ),
    Setting(
        "vendor",
        "listener",
        usd(
            input="2.5",
            input_audio="40",
            cache_read="1.25",
            cache_read_audio="2.5",
            output="10",
            output_audio="80",
        ),
    ),
    Setting("vendor", "transcriber", usd(input="1.25", input_audio="2.5", output="10")),
    Setting("vendor", "embedder", usd(input="0.02"), (), {"batch": usd(input="0.01")}),
    Setting(
        "vendor",
        "painter",
        usd(
            input="5",
            input_image="10",
            cache_read="1.25",
            cache_read_image="2.5",
            output_image="40",
            images="42000",
        ),
    ),
    Setting(
        "vendor",
        "ranges",
        usd(input="0.4", output="1.2"),
        (
            Tier(32_000, usd(input="0.7", output="2.1")),
            Tier(128_000, usd(input="1.1", output="3.3")),
            Tier(256_000, usd(input="2")),  # its output costs what it cost before
        ),
    ),
    Setting("vendor", "searcher", usd(input="1", output="1", requests="12000")),
    Setting("vendor", "chat", usd(input="1.5", output="2")),
    Setting("vendor", "dust", usd(input="0.000000001", output="0.000000001")),
    Setting("vendor", "speaker", usd(characters="15", milliseconds="0.1", code_sessions="30000")),
    Setting("vendor", "gift", free=True),
)
