"""What a setting may be: sizes, amounts, dates, bounds, and types that several settings share."""

from enum import StrEnum
from typing import Annotated, NamedTuple

KIB, MIB, GIB = 1024, 1024**2, 1024**3
CENT, USD_MAX = 10_000_000, 999_999 * 10**9  # nano-USD: what a card can be charged

# How a field differs from the key of config.yaml it is read from.
DERIVED = {"derived": True}  # worked out after reading; no key of its own
PER_MILLION = {"key": "usd_per_million"}


class Between(NamedTuple):
    """Bounds of a number or of a text's length, both ends included."""

    low: float
    high: float


class Format(StrEnum):
    """How the text of a setting is read, where its type alone does not say."""

    SIZE = "size"  # an integer of bytes, or one with KiB, MiB or GiB
    USD = "usd"  # a decimal number of USD, kept as integer nano-USD
    DATE = "date"  # YYYY-MM-DD or with a time, UTC; kept as unix seconds


class Endpoint(NamedTuple):
    """A vendor's base URL in parts."""

    scheme: str  # "http" | "https"
    host: str  # lower case; an IPv6 address without brackets
    port: int
    path: str  # what stands before the operation, without a slash at its end


Port = Annotated[int, Between(0, 65_535)]  # 0: any free one, for tests
Seconds = Annotated[float, Between(0.001, 86_400)]
Pause = Annotated[float, Between(0, 3_600)]  # seconds, where none at all makes sense too
Count = Annotated[int, Between(1, 10_000_000)]
Tokens = Annotated[int, Between(1, 100_000_000)]
Size = Annotated[int, Format.SIZE, Between(1, 1024 * GIB)]
Name = Annotated[str, Between(1, 200)]
