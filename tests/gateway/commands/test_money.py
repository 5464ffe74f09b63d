"""`tollgate credit` and `tollgate usage`, as an operator types them."""

from pathlib import Path

import pytest

from tests.gateway.command_line import CommandLine, operator
from tests.ledger.deployment import deployed


@pytest.fixture
async def terminal(tmp_path: Path, postgres_url: str, redis_url: str) -> CommandLine:
    made = operator(tmp_path, postgres_url, redis_url)
    await made.done("org", "create", "Acme")
    return made


async def test_a_grant_is_exact_and_says_the_balance(terminal: CommandLine) -> None:
    ran = await terminal.done("credit", "grant", "Acme", "$1,000.000000001", "--reason", "hi")
    assert ran.out == "$1,000.000000001 granted. Balance: $1,000.000000001\n"
    # No partition was activated: nothing serves here yet.
    assert ran.err == "Redis is not there; it will be usable within a second once it is.\n"
    (row,) = (await terminal.done("org", "list", "--json")).json()
    assert row["balance_nanos"] == 1_000_000_000_001


async def test_a_grant_under_the_same_key_is_done_once(terminal: CommandLine) -> None:
    command = ["credit", "grant", "Acme", "10", "--reason", "hi", "--idempotency-key", "a"]
    assert "granted." in (await terminal.done(*command)).out
    assert "was granted before under this key" in (await terminal.done(*command)).out
    (row,) = (await terminal.done(*command, "--json")).json()
    assert row == {"amount_nanos": 10**10, "balance_nanos": 10**10, "is_new": False}


async def test_the_same_key_for_another_amount_is_refused(terminal: CommandLine) -> None:
    rest = ["--reason", "hi", "--idempotency-key", "a"]
    await terminal.done("credit", "grant", "Acme", "10", *rest)
    ran = await terminal.run("credit", "grant", "Acme", "11", *rest)
    assert (ran.code, ran.out) == (1, "")
    assert "booked as something else" in ran.err


async def test_what_is_no_credit_is_refused(terminal: CommandLine) -> None:
    for amount in ("0", "-5", "1e-10", "ten", "9007199.3", "NaN"):
        ran = await terminal.run("credit", "grant", "--reason", "hi", "--", "Acme", amount)
        assert ran.code in (1, 2)
        assert ran.out == ""
        assert "Traceback" not in ran.err


@pytest.fixture
async def served(terminal: CommandLine, postgres_url: str, redis_url: str) -> CommandLine:
    """The terminal of a deployment that has $10 and whose partitions are loaded."""
    await terminal.done("org", "create", "Ada")
    await terminal.done("credit", "grant", "Acme", "10", "--reason", "hi")
    async with deployed(postgres_url, redis_url) as deployment:
        for number in range(2):
            assert await deployment.recovery.recover(number) is not None
    return terminal


async def test_a_refund_a_transfer_and_an_adjustment_say_the_balance(served: CommandLine) -> None:
    why = ("--reason", "unused")
    ran = await served.done("credit", "refund", "Acme", "$4", *why)
    assert ran == (0, "$4.00 refunded. Balance: $6.00\n", "")
    ran = await served.done("credit", "transfer", "Acme", "Ada", "1.5", *why)
    assert ran == (0, "$1.50 transferred. Balance: $4.50; of the target: $1.50\n", "")
    ran = await served.done("credit", "adjust", "Ada", "-0.5", *why)
    assert ran == (0, "-$0.50 adjusted. Balance: $1.00\n", "")
    ran = await served.done("credit", "adjust", "Ada", "0.25", *why)
    assert ran == (0, "$0.25 adjusted. Balance: $1.25\n", "")
    assert (await served.done("verify")).out == "No difference.\n"


async def test_what_leaves_under_the_same_key_leaves_once(served: CommandLine) -> None:
    command = ["credit", "refund", "Acme", "4", "--reason", "r", "--idempotency-key", "a"]
    assert "refunded." in (await served.done(*command)).out
    assert "was refunded before under this key" in (await served.done(*command)).out
    (row,) = (await served.done(*command, "--json")).json()
    assert row == {"amount_nanos": 4 * 10**9, "balance_nanos": 6 * 10**9, "is_new": False}


async def test_more_than_is_free_is_one_line_that_says_what_is(served: CommandLine) -> None:
    ran = await served.run("credit", "transfer", "Acme", "Ada", "11", "--reason", "r")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == "tollgate: $11.00 cannot leave: $10.00 can. Nothing was done.\n"


async def test_usage_without_any_calls_says_none(terminal: CommandLine) -> None:
    for options in (["--by", "model"], ["--by", "day"], ["--by", "key"], ["--recent", "5"]):
        assert (await terminal.done("usage", "Acme", *options)).err == "None.\n"
        assert (await terminal.done("usage", "Acme", *options, "--json")).json() == []


async def test_the_usage_of_nobody_is_one_line(terminal: CommandLine) -> None:
    ran = await terminal.run("usage", "Nobody")
    assert (ran.code, ran.err) == (1, "tollgate: there is no organization 'Nobody'\n")
