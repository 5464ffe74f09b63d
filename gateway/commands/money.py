"""`tollgate credit` and `tollgate usage`: what goes into an organization's wallet, and out."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TypedDict, TypeVar, Unpack

import click

from gateway.commands.stores import Stores, run
from gateway.commands.texts import Moment, Row, SignedUsd, Usd, print_rows, when
from gateway.management import credits as credits_
from gateway.management import organizations
from gateway.management import usage as usage_
from gateway.management.credits import Grant, Granted, Taken, Taking
from gateway.management.usage import RECENT_MAX, Call, Grouping, Line
from gateway.settings import Credits
from ledger.money import Nanos, usd_text
from ledger.withdrawals import WithdrawalKind

Command = TypeVar("Command", bound=Callable[..., None])


class Order(TypedDict):
    """What every command that moves money is told."""

    amount: Nanos
    reason: str
    idempotency_key: str | None
    as_json: bool


@click.group()
def credit() -> None:
    """Give credit to organizations, and take it back."""


def _order(amount: click.ParamType[Nanos]) -> Callable[[Command], Command]:
    """The parameters of an `Order`; the amount comes behind the organizations."""

    def taking(command: Command) -> Command:
        for parameter in (
            click.argument("amount", type=amount),
            click.option("--json", "as_json", is_flag=True, help="Answer in JSON."),
            click.option(
                "--idempotency-key",
                help="Running twice under the same key does it once. Without it, it is done twice.",
            ),
            click.option("--reason", required=True, help="Why; kept in the ledger for ever."),
        ):
            command = parameter(command)
        return command

    return taking


@credit.command()
@click.argument("organization")
@_order(Usd())
@click.pass_obj
def grant(config_path: str, organization: str, **order: Unpack[Order]) -> None:
    """Give AMOUNT in USD to ORGANIZATION (its name or id)."""

    async def granted(stores: Stores) -> Granted:
        wanted = await _grant(stores, organization, order)
        return await credits_.grant(stores.pool, stores.redis, wanted)

    _say("granted", run(config_path, granted), order)


@credit.command(context_settings={"ignore_unknown_options": True})
@click.argument("organization")
@_order(SignedUsd())
@click.pass_obj
def adjust(config_path: str, organization: str, **order: Unpack[Order]) -> None:
    """Put the balance of ORGANIZATION right by AMOUNT in USD; below zero, -5, it loses.

    It loses no more than is free: what open calls hold stays theirs.
    """

    async def adjusted(stores: Stores) -> Granted:
        wanted = await _grant(stores, organization, order)
        return await credits_.adjust(stores.pool, stores.redis, wanted)

    _say("adjusted", run(config_path, adjusted), order)


@credit.command()
@click.argument("organization")
@_order(Usd())
@click.pass_obj
def refund(config_path: str, organization: str, **order: Unpack[Order]) -> None:
    """Take AMOUNT in USD out of the wallet of ORGANIZATION, for its payer.

    It takes no more than is free: what open calls hold stays theirs.
    """
    done = run(config_path, lambda stores: _taken(stores, organization, order))
    _say("refunded", done, order)


@credit.command()
@click.argument("source")
@click.argument("target")
@_order(Usd())
@click.pass_obj
def transfer(config_path: str, source: str, target: str, **order: Unpack[Order]) -> None:
    """Move AMOUNT in USD from the organization SOURCE to the organization TARGET.

    It moves no more than is free: what open calls hold stays theirs.
    """
    done = run(config_path, lambda stores: _taken(stores, source, order, target=target))
    _say("transferred", done, order)


async def _grant(stores: Stores, organization: str, order: Order) -> Grant:
    found = await organizations.resolve(stores.pool, organization)
    return Grant(found.id, order["amount"], order["reason"], "operator", order["idempotency_key"])


async def _taken(
    stores: Stores, organization: str, order: Order, *, target: str | None = None
) -> Taken:
    """Take it out: for the organization `target`, or else for the payer."""
    found = await organizations.resolve(stores.pool, organization)
    gains = None if target is None else await organizations.resolve(stores.pool, target)
    wanted = Taking(
        found.id,
        order["amount"],
        WithdrawalKind.REFUND if gains is None else WithdrawalKind.TRANSFER,
        order["reason"],
        "operator",
        None if gains is None else gains.id,
        order["idempotency_key"],
    )
    return await credits_.take(stores.pool, stores.redis, wanted)


def _say(verb: str, done: Granted | Taken, order: Order) -> None:
    amount, gained = order["amount"], done.target_balance if isinstance(done, Taken) else None
    if order["as_json"]:
        row = {"amount_nanos": amount, "balance_nanos": done.balance, "is_new": done.is_new}
        if gained is not None:
            row["target_balance_nanos"] = gained
        print_rows([row], as_json=True)
    else:
        said = verb if done.is_new else f"was {verb} before under this key"
        text = f"{usd_text(amount)} {said}. Balance: {usd_text(done.balance)}"
        if gained is not None:
            text += f"; of the target: {usd_text(gained)}"
        click.echo(text)
    if not done.is_usable:
        moved = "it will be usable" if isinstance(done, Granted) else "it will be told"
        click.echo(f"Redis is not there; {moved} within a second once it is.", err=True)


@click.command()
@click.argument("organization")
@click.option(
    "--by",
    "grouping",
    type=click.Choice([grouping.value for grouping in Grouping]),
    default=Grouping.MODEL.value,
    show_default=True,
    help="What each line stands for.",
)
@click.option("--days", type=click.IntRange(1, 3_650), default=30, show_default=True)
@click.option("--since", type=Moment(), help="From this moment on, instead of --days; UTC.")
@click.option("--until", type=Moment(), help="Up to this moment.  [now]")
@click.option("--recent", type=click.IntRange(1, RECENT_MAX), help="Show the newest calls instead.")
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
@click.pass_obj
def usage(
    config_path: str,
    *,
    organization: str,
    grouping: str,
    days: int,
    since: datetime | None,
    until: datetime | None,
    recent: int | None,
    as_json: bool,
) -> None:
    """Show what ORGANIZATION (its name or id) used and what it was charged."""
    now = datetime.now(UTC)  # noqa: TID251 - a command is its own root
    # The hour that has begun is part of what was used up to now.
    end = until or now + timedelta(hours=1)
    start = since or (until or now) - timedelta(days=days)

    async def rows(stores: Stores) -> tuple[list[Row], Credits]:
        found = await organizations.resolve(stores.pool, organization)
        if recent is not None:
            calls = await usage_.recent(stores.pool, found.id, limit=recent)
            return [_call(one) for one in calls], stores.config.credits
        by = Grouping(grouping)
        lines = await usage_.report(stores.pool, found.id, by=by, since=start, until=end)
        return [_line(one, by) for one in lines], stores.config.credits

    found, credits_shown = run(config_path, rows)
    print_rows(found, as_json=as_json, credits_=credits_shown)


def _line(one: Line, by: Grouping) -> Row:
    return {
        by.value: one.label,
        "calls": one.calls,
        "failed": one.calls - one.successes,
        "estimated": one.estimated,
        "input": one.input,
        "cache_read": one.cache_read,
        "cache_write": one.cache_write,
        "output": one.output,
        "reasoning": one.reasoning,
        "charge_nanos": one.charge,
    }


def _call(one: Call) -> Row:
    return {
        "call": str(one.call_id),
        "admitted": when(one.admitted_at),
        "key": one.key,
        "operation": one.operation,
        "model": one.model,
        "provider": one.provider,
        "outcome": one.outcome,
        "input": one.input,
        "cache_read": one.cache_read,
        "cache_write": one.cache_write,
        "output": one.output,
        "usage": one.usage_source,
        "charge_nanos": one.charge,
    }
