"""`tollgate dead-letters`: the entries that nobody could read whole, and resolving them."""

import click
import msgspec

from gateway.commands.stores import Stores, run
from gateway.commands.texts import Row, money_text, print_rows, when
from gateway.management import dead_letters
from gateway.management.dead_letters import Resolved, Resolving
from gateway.settings import Credits
from ledger.letters import Letter, Resolution

_FIELDS = {"k": "kind", "m": "moved", "i": "call", "w": "wallet", "c": "charge"}  # the readable


@click.group(name="dead-letters")
def dead_letters_() -> None:
    """See and resolve what could not be read on its way into the ledger."""


@dead_letters_.command(name="list")
@click.option("--all", "with_resolved", is_flag=True, help="Those that are resolved as well.")
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
@click.pass_obj
def listed(config_path: str, *, with_resolved: bool, as_json: bool) -> None:
    """Show the dead letters that wait, the oldest first."""

    async def letters(stores: Stores) -> tuple[list[Letter], Credits]:
        found = await dead_letters.listed(stores.pool, with_resolved=with_resolved)
        return found, stores.config.credits

    found, credits_shown = run(config_path, letters)
    shown = found[: dead_letters.LISTED_MAX]
    print_rows([_row(one) for one in shown], as_json=as_json, credits_=credits_shown)
    if len(found) > len(shown):
        click.echo(f"These are the oldest {len(shown)}; there are more.", err=True)


@dead_letters_.command()
@click.argument("letter", type=int)
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
@click.pass_obj
def show(config_path: str, *, letter: int, as_json: bool) -> None:
    """Show what is in LETTER, why it could not be read, and what resolving it would do."""

    async def one(stores: Stores) -> tuple[Letter, Credits]:
        return await dead_letters.one(stores.pool, letter), stores.config.credits

    found, credits_shown = run(config_path, one)
    row = {**_row(found), "entry": _entry(found), "resolving": _advice(found)}
    if as_json:
        print_rows([row], as_json=True)
        return
    for name, value in row.items():
        if value is not None and name != "posted_nanos":
            click.echo(f"{name}: {value}")
    if found.is_posted:
        click.echo(f"posted: {money_text(found.spent_delta, credits_shown)}")


@dead_letters_.command()
@click.argument("letter", type=int)
@click.option("--replay", is_flag=True, help="Read it again, as this release reads, and post it.")
@click.option("--write-off", is_flag=True, help="Leave it: what was posted of it stays posted.")
@click.option("--reason", required=True, help="Why; kept in the ledger for ever.")
@click.pass_obj
def resolve(config_path: str, *, letter: int, replay: bool, write_off: bool, reason: str) -> None:
    """Resolve LETTER, by --replay after a fix or by --write-off."""
    if replay == write_off:
        raise click.UsageError("say either --replay or --write-off")
    resolution = Resolution.REPLAYED if replay else Resolution.WRITTEN_OFF

    async def resolved(stores: Stores) -> Resolved:
        wanted = Resolving(letter, resolution, "operator", reason)
        return await dead_letters.resolve(stores.pool, stores.redis, wanted)

    done = run(config_path, resolved)
    said = resolution.value if done.is_new else f"was {resolution.value} before"
    click.echo(f"Dead letter {letter} {said}.")
    if not done.is_told:
        click.echo("Redis is not there; it will know within a second once it is.", err=True)


def _row(letter: Letter) -> Row:
    return {
        "letter": letter.id,
        "at": when(letter.at),
        "stream": f"p{letter.partition:02d}/{letter.generation}/{letter.stream_id}",
        "error": letter.error,
        "organization": letter.organization_id,
        "posted_nanos": letter.spent_delta if letter.is_posted else None,
        "resolution": letter.resolution,
        "resolved": when(letter.resolved_at),
        "by": letter.resolved_by,
        "reason": letter.resolution_reason,
    }


def _entry(letter: Letter) -> str:
    """The entry, with its bytes in hexadecimal; its record by its size alone."""
    shown = {}
    for key, value in letter.entry.items():
        name = key.decode("ascii", "backslashreplace")
        is_text = name in _FIELDS and name != "i"
        text = value.decode("ascii", "backslashreplace") if is_text else value.hex()
        shown[_FIELDS.get(name, name)] = f"{len(value)} bytes" if name == "r" else text
    return msgspec.json.encode(shown).decode()


def _advice(letter: Letter) -> str:
    if letter.resolution is not None:
        return f"nothing: it was {letter.resolution}"
    money = "its charge stays posted" if letter.is_posted else "nothing is posted for it"
    why_not = letter.reading()
    if why_not:
        return f"--write-off: {money}; --replay is refused: {why_not}"
    return f"--replay posts it as the end of its call, once; --write-off: {money}"
