"""`tollgate key`, as an operator types it."""

from pathlib import Path

import pytest

from gateway.credential import AuthError
from gateway.keys import is_well_formed
from tests.gateway.command_line import CommandLine, operator
from tests.gateway.tenancy import Lookups, Tenancy, authenticating, tenancy


@pytest.fixture
async def terminal(tmp_path: Path, postgres_url: str, redis_url: str) -> CommandLine:
    made = operator(tmp_path, postgres_url, redis_url)
    await made.done("org", "create", "Acme")
    return made


async def test_the_key_alone_is_on_stdout_and_the_warning_beside_it(
    terminal: CommandLine,
) -> None:
    made = await terminal.done("key", "create", "Acme", "production")
    assert is_well_formed(made.out.strip())
    assert "the only time it is shown" in made.err
    assert made.out.strip() not in made.err
    listed = await terminal.done("key", "list", "Acme")
    assert made.out.strip() not in listed.out
    assert made.out[47:51] in listed.out


async def test_a_key_has_the_limits_it_was_given(terminal: CommandLine) -> None:
    limits = {"budget": "$12.50", "period": "weekly", "rpm": "60", "tpm": "100000"}
    limits |= {"concurrency": "4", "project": "Search", "expires": "2100-01-01"}
    options = [word for name, value in limits.items() for word in (f"--{name}", value)]
    options += ["--model", "gpt-4o", "--model", "small", "--default-model", "small"]
    options += ["--ip-range", "10.0.0.0/8", "--ip-range", "192.0.2.7"]
    (made,) = (await terminal.done("key", "create", "Acme", "k", *options, "--json")).json()
    (row,) = (await terminal.done("key", "list", "Acme", "--json")).json()
    assert {**row, "key": made["key"]} == made
    assert (row["budget_nanos"], row["period"]) == (12_500_000_000, "weekly")
    assert (row["rpm"], row["tpm"], row["concurrency"]) == (60, 100_000, 4)
    assert (row["models"], row["default_model"]) == (["gpt-4o", "small"], "small")
    assert row["ip_ranges"] == ["10.0.0.0/8", "192.0.2.7/32"]
    assert (row["project"], row["expires"]) == ("Search", "2100-01-01 00:00:00Z")


async def test_a_budget_without_a_period_is_a_monthly_one(terminal: CommandLine) -> None:
    options = ["--budget", "5", "--json"]
    (row,) = (await terminal.done("key", "create", "Acme", "k", *options)).json()
    assert row["period"] == "monthly"


async def test_flawed_options_are_exit_code_2(terminal: CommandLine) -> None:
    for option in (
        "--period=daily",
        "--budget=-1",
        "--budget=0.0000000001",
        "--budget=lots",
        "--rpm=0",
        "--ip-range=10.0.0.1/8",
        "--expires=tomorrow",
    ):
        ran = await terminal.run("key", "create", "Acme", "k", option)
        assert (ran.code, ran.out) == (2, "")
    assert (await terminal.done("key", "list", "Acme", "--json")).json() == []


async def test_a_key_made_here_works_at_a_gateway_until_it_is_revoked_here(
    terminal: CommandLine, postgres_url: str, redis_url: str
) -> None:
    text = (await terminal.done("key", "create", "Acme", "k")).out.strip()
    async with tenancy(postgres_url, redis_url) as stage:
        assert await _works(stage, text)
        ran = await terminal.done("key", "revoke", "k")
        assert ran.out == "Revoked k. No gateway takes it any more.\n"
        assert not await _works(stage, text)


async def test_an_organization_or_key_nobody_knows_is_one_line(terminal: CommandLine) -> None:
    for arguments in (["create", "Nobody", "k"], ["list", "Nobody"], ["revoke", "none"]):
        ran = await terminal.run("key", *arguments)
        assert (ran.code, ran.out) == (1, "")
        assert ran.err.startswith("tollgate: there is no ")
        assert len(ran.err.splitlines()) == 1


async def _works(stage: Tenancy, text: str) -> bool:
    async with authenticating(stage, Lookups(stage.pool)) as authenticator:
        try:
            await authenticator.principal(text)
        except AuthError:
            return False
        return True
