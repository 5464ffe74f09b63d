"""Money is an integer of nano-USD, and this is the only file that knows its scale.

Nothing here takes or gives a float. Amounts that a Redis function must compare stay below
`NANOS_MAX`, because a Lua number counts exactly only that far.
"""

from decimal import Decimal, InvalidOperation
from typing import NewType

Nanos = NewType("Nanos", int)
"""Nano-USD: one token at $0.001 per million tokens costs exactly 1."""

NANOS_PER_USD = 1_000_000_000
NANOS_MAX = 2**53 - 1
"""The largest single amount and the most free money in one wallet: 9,007,199 USD."""

ZERO = Nanos(0)


def nanos(usd: str | int | Decimal) -> Nanos:
    """The amount in nano-USD, exactly; `ValueError` if it is no amount or finer than a nano-USD."""
    try:
        exact = Decimal(usd) * NANOS_PER_USD
        whole = int(exact)
    except (InvalidOperation, OverflowError, ValueError) as error:
        raise ValueError(f"{usd!r} is not an amount in USD") from error
    if whole != exact:
        raise ValueError(f"{usd!r} USD is finer than a nano-USD")
    if abs(whole) > NANOS_MAX:
        raise ValueError(f"{usd!r} USD is above the largest amount, 9,007,199 USD")
    return Nanos(whole)


def usd_text(amount: int) -> str:
    """The amount in dollars, with every digit that is no trailing zero, and at least two."""
    sign = "-" if amount < 0 else ""
    dollars, rest = divmod(abs(amount), NANOS_PER_USD)
    digits = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{sign}${dollars:,}.{digits}"
