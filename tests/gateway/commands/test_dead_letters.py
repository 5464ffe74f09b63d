"""`tollgate dead-letters`, as an operator types it."""

from pathlib import Path

import pytest

from ledger.record import EndKind
from tests.gateway.command_line import CommandLine, operator
from tests.ledger.deployment import Line, deployed, new_call_id


@pytest.fixture
async def terminal(tmp_path: Path, postgres_url: str, redis_url: str) -> CommandLine:
    """Of a deployment with one dead letter, $0.06 of which is posted."""
    async with deployed(postgres_url, redis_url) as deployment:
        acme = await deployment.active(10**9)
        end = Line(new_call_id(), acme, EndKind.SETTLED, 6 * 10**7)
        await deployment.write(acme, [{**end.fields(), b"i": b""}])
    return operator(tmp_path, postgres_url, redis_url)


async def test_a_letter_is_listed_shown_and_written_off(terminal: CommandLine) -> None:
    (row,) = (await terminal.done("dead-letters", "list", "--json")).json()
    assert (row["letter"], row["error"], row["posted_nanos"]) == (1, "no call id", 6 * 10**7)
    shown = (await terminal.done("dead-letters", "show", "1")).out
    assert "posted: $0.06" in shown
    assert "--write-off: its charge stays posted; --replay is refused: no call id" in shown
    command = ("dead-letters", "resolve", "1", "--write-off", "--reason", "seen")
    assert (await terminal.done(*command)).out == "Dead letter 1 written off.\n"
    assert (await terminal.done(*command)).out == "Dead letter 1 was written off before.\n"
    assert (await terminal.done("dead-letters", "list")).err == "None.\n"
    (row,) = (await terminal.done("dead-letters", "list", "--all", "--json")).json()
    assert (row["resolution"], row["by"], row["reason"]) == ("written off", "operator", "seen")
    assert (await terminal.done("verify")).out == "No difference.\n"


async def test_what_cannot_be_replayed_is_one_line(terminal: CommandLine) -> None:
    ran = await terminal.run("dead-letters", "resolve", "1", "--replay", "--reason", "r")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == ("tollgate: it still cannot be read: no call id. Nothing was done.\n")
    for flags in ((), ("--replay", "--write-off")):
        ran = await terminal.run("dead-letters", "resolve", "1", "--reason", "r", *flags)
        assert (ran.code, ran.out) == (2, "")
