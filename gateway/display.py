"""Money as people read it: whole nano-USD, shown in an organization's own unit. Pure.

What somebody has is rounded down and what is gone is rounded up, so nobody is shown more than there
is; amounts below zero are more than that. Programs go by the nano-USD beside it, which are exact.
"""

from collections.abc import Mapping
from typing import Annotated

import msgspec

from ledger.money import NANOS_PER_USD, Nanos

_NO_AMOUNTS: Mapping[str, int | None] = {}

UnitName = Annotated[
    str, msgspec.Meta(min_length=1, max_length=20, pattern=r"^[^\x00-\x20\x7f]([^\x00-\x1f\x7f]*)$")
]


class DisplayUnit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """In what money is shown: so many of it are a dollar."""

    name: UnitName
    per_usd: Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)]
    decimals: Annotated[int, msgspec.Meta(ge=0, le=9)]  # digits behind the point


class Display(msgspec.Struct, frozen=True, kw_only=True):
    """The amounts of the document that it stands in, for people."""

    unit: str
    amounts: dict[str, str | None]  # by the names of that document, without _nanos: "12,345"


USD = DisplayUnit(name="USD", per_usd=1, decimals=2)
CREDITS = DisplayUnit(name="credits", per_usd=1, decimals=2)


def display(
    unit: DisplayUnit,
    *,
    has: Mapping[str, int | None],
    gone: Mapping[str, int | None] = _NO_AMOUNTS,
) -> Display:
    """These nano-USD in the unit: what somebody `has`, and what is `gone` or held."""
    shown = {name: None if amount is None else text(amount, unit) for name, amount in has.items()}
    shown |= {
        name: None if amount is None else text(amount, unit, is_gone=True)
        for name, amount in gone.items()
    }
    return Display(unit=unit.name, amounts=shown)


def text(amount: int, unit: DisplayUnit, *, is_gone: bool = False) -> str:
    """The amount with all decimals of its unit: "12,345", "-0.50". `is_gone`: rounded up."""
    scaled = amount * unit.per_usd * 10**unit.decimals
    steps = -(-scaled // NANOS_PER_USD) if is_gone else scaled // NANOS_PER_USD
    whole, part = divmod(abs(steps), 10**unit.decimals)
    sign = "-" if steps < 0 else ""
    return f"{sign}{whole:,}.{part:0{unit.decimals}d}" if unit.decimals else f"{sign}{whole:,}"


def worth(count: int, unit: DisplayUnit) -> Nanos:
    """The least nano-USD that are shown as `count` of the unit or more.

    So what is below it is shown as less: a threshold of 10,000 GP means what people read.
    """
    return Nanos(-(-count * NANOS_PER_USD // unit.per_usd))
