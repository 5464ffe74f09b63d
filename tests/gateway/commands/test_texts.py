"""Amounts and moments as operators type them, rows as they read them."""

import json
from datetime import UTC, datetime, timedelta, timezone

import click
import pytest

from gateway.commands.texts import Moment, Usd, print_rows, when
from gateway.settings import Credits


@pytest.mark.parametrize(
    ("text", "amount"),
    [("25", 25 * 10**9), ("$25.10", 25_100_000_000), ("0.000000001", 1), ("$1,000", 10**12)],
)
def test_an_amount_is_exact(text: str, amount: int) -> None:
    assert Usd().convert(text, None, None) == amount


@pytest.mark.parametrize("text", ["", "$", "-1", "0.0000000001", "1e400", "inf", "nan", "10 EUR"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Usd().convert(text, None, None)


def test_a_moment_is_utc_unless_it_says_otherwise() -> None:
    assert Moment().convert("2030-12-31", None, None) == datetime(2030, 12, 31, tzinfo=UTC)
    east = timezone(timedelta(hours=2))
    moment = Moment().convert("2030-12-31T18:00+02:00", None, None)
    assert moment == datetime(2030, 12, 31, 18, tzinfo=east)
    assert when(moment) == "2030-12-31 16:00:00Z"


def test_what_is_no_moment_is_refused() -> None:
    with pytest.raises(click.BadParameter):
        Moment().convert("tomorrow", None, None)


ROW = {
    "name": "[red]x[/red]",
    "spent_nanos": 12_500_000_000,
    "calls": 1234,
    "models": ["a", "b"],
    "ok": True,
}


def test_a_table_shows_dollars_and_leaves_names_alone(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows([ROW, {**ROW, "name": "n" * 300, "models": None}], as_json=False)
    out = capsys.readouterr().out
    for cell in ("[red]x[/red]", "n" * 300, "spent ", "$12.50", "1,234", "a, b", "yes"):
        assert cell in out
    assert "nanos" not in out


@pytest.mark.parametrize(
    ("amount", "shown"),
    [
        (12_500_000_000, "$12.50 (12,500 GP)"),
        (1, "$0.000000001 (0.000001 GP)"),
        (-(10**9), "-$1.00 (-1,000 GP)"),
        (0, "$0.00 (0 GP)"),
    ],
)
def test_a_table_shows_what_customers_see_beside_the_dollars(
    capsys: pytest.CaptureFixture[str], amount: int, shown: str
) -> None:
    print_rows([{"charge_nanos": amount}], as_json=False, credits_=Credits())
    assert shown in capsys.readouterr().out


def test_json_keeps_every_value(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows([ROW], as_json=True)
    assert json.loads(capsys.readouterr().out) == [ROW]


def test_no_rows_are_said_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows([], as_json=False)
    assert capsys.readouterr() == ("", "None.\n")
