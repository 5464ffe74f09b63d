"""What commands read and write: amounts in USD, moments, and rows as a table or as JSON.

In rows, an amount is an integer under a name that ends in `_nanos`: JSON has it as it is, a table
as dollars with every digit, and beside them as customers see it where that is told.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial

import click

from gateway.addresses import range_in
from gateway.settings import Credits
from ledger.money import NANOS_PER_USD, Nanos, nanos, usd_text

_PIPE_COLUMNS = 1_000  # of a table that no terminal shows: nothing is cut or wrapped
_NANOS = "_nanos"

Row = Mapping[str, object]


class Usd(click.ParamType[Nanos]):
    """An amount in USD, exact to the nano-USD and not negative."""

    name = "USD"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Nanos:
        """`25`, `$25` or `0.000000001`."""
        if isinstance(value, int):
            return Nanos(value)
        try:
            amount = nanos(str(value).removeprefix("$").replace(",", ""))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if amount < 0:
            self.fail(f"{value} is negative", param, ctx)
        return amount


class SignedUsd(Usd):
    """An amount in USD, exact to the nano-USD, above or below zero."""

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Nanos:
        """`25`, `-$25` or `-0.000000001`."""
        text = str(value)
        if isinstance(value, int) or not text.startswith("-"):
            return super().convert(value, param, ctx)
        return Nanos(-super().convert(text[1:], param, ctx))


class Moment(click.ParamType[datetime]):
    """A date or a moment; UTC unless it names another offset."""

    name = "DATE"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """`2030-12-31`, `2030-12-31 18:00` or `2030-12-31T18:00+02:00`."""
        if isinstance(value, datetime):
            return value
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is no date like 2030-12-31", param, ctx)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


class IpRange(click.ParamType[str]):
    """A range of addresses."""

    name = "RANGE"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        """`10.0.0.0/8`, `2001:db8::/32` or a single address."""
        try:
            return range_in(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def when(moment: datetime | None) -> str | None:
    """The moment as text, UTC."""
    return None if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def money_text(amount: int, credits_: Credits) -> str:
    """The amount in dollars and, exactly, in the unit in which customers see it."""
    scaled = Decimal(amount) * credits_.per_usd / NANOS_PER_USD
    digits = f"{scaled:,f}"
    shown = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return f"{usd_text(amount)} ({shown} {credits_.unit})"


def print_rows(rows: Sequence[Row], *, as_json: bool, credits_: Credits | None = None) -> None:
    """Print rows with the same columns; a table shows amounts in `credits_`, too."""
    if as_json:
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    elif rows:
        _print_table(rows, usd_text if credits_ is None else partial(money_text, credits_=credits_))
    else:
        click.echo("None.", err=True)


def _print_table(rows: Sequence[Row], money: Callable[[int], str]) -> None:
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415 - slow to import; most output needs no table
    from rich.console import Console  # noqa: PLC0415 - slow to import; most output needs no table
    from rich.table import Table  # noqa: PLC0415 - slow to import; most output needs no table
    from rich.text import Text  # noqa: PLC0415 - slow to import; most output needs no table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in rows[0]:
        is_number = any(type(row[column]) is int for row in rows)
        title = column.removesuffix(_NANOS).replace("_", " ")
        table.add_column(title, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        # As `Text`: a name in square brackets is no markup.
        table.add_row(*[Text(_cell(column, value, money)) for column, value in row.items()])
    width = None if sys.stdout.isatty() else _PIPE_COLUMNS
    Console(width=width, highlight=False).print(table)


def _cell(column: str, value: object, money: Callable[[int], str]) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else ""
        case int() if column.endswith(_NANOS):
            return money(value)
        case int():
            return f"{value:,}"
        case list():
            return ", ".join(str(part) for part in value)
        case _:
            return str(value)
