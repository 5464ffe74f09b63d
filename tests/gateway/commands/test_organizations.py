"""`tollgate org`, as an operator types it."""

from pathlib import Path

import pytest

from tests.gateway.command_line import CommandLine, operator


@pytest.fixture
def terminal(tmp_path: Path, postgres_url: str, redis_url: str) -> CommandLine:
    return operator(tmp_path, postgres_url, redis_url)


async def test_an_organization_is_made_and_its_id_is_all_that_is_printed(
    terminal: CommandLine,
) -> None:
    made = await terminal.done("org", "create", "Acme [bold]")
    (row,) = (await terminal.done("org", "list", "--json")).json()
    assert made.out == row["id"] + "\n"
    assert row["name"] == "Acme [bold]"
    assert (row["balance_nanos"], row["kind"], row["time_zone"]) == (0, "organization", "UTC")


async def test_its_kind_zone_and_policy_can_be_chosen(terminal: CommandLine) -> None:
    options = ["--kind", "personal", "--time-zone", "Asia/Tokyo", "--allow-unpriced", "--json"]
    (row,) = (await terminal.done("org", "create", "Ada", *options)).json()
    assert (row["kind"], row["time_zone"], row["unpriced"]) == ("personal", "Asia/Tokyo", True)


async def test_the_table_shows_names_as_they_are(terminal: CommandLine) -> None:
    await terminal.done("org", "create", "Acme [bold] ünïcode")
    table = (await terminal.done("org", "list")).out
    assert "Acme [bold] ünïcode" in table
    assert "$0.00" in table


async def test_a_time_zone_nobody_knows_is_one_line(terminal: CommandLine) -> None:
    ran = await terminal.run("org", "create", "Ada", "--time-zone", "Mars")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == "tollgate: 'Mars' is no time zone like Europe/Berlin\n"


async def test_a_grace_is_given_shown_and_ended(terminal: CommandLine) -> None:
    await terminal.done("org", "create", "Acme")
    given = await terminal.done("org", "grace", "Acme", "2.50")
    assert given.out == "Acme may use $2.50 while Redis is away.\n"
    (row,) = (await terminal.done("org", "list", "--json")).json()
    assert row["grace_nanos"] == 2_500_000_000
    assert (await terminal.done("org", "grace", "Acme", "0")).out.startswith("Acme may use nothing")
    (row,) = (await terminal.done("org", "list", "--json")).json()
    assert row["grace_nanos"] == 0
    assert (await terminal.done("verify")).out == "No difference.\n"


async def test_a_grace_is_never_negative(terminal: CommandLine) -> None:
    await terminal.done("org", "create", "Acme")
    assert (await terminal.run("org", "grace", "Acme", "--", "-1")).code == 2
