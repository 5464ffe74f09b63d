"""`tollgate credit` and `tollgate usage`: what goes into an organization's wallet, and out."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar

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


@click.group()
def credit() -> None:
    """Give credit to organizations, and take it back."""


def _options(command: Command) -> Command:
    """What every command that moves money takes."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Answer in JSON."),
        click.option(
            "--idempotency-key",
            help="Running twice under the same key does it once. Without it, it is done twice.",
        ),
        click.option("--reason", required=True, help="Why; kept in the ledger for ever."),
    ):
        command = option(command)
    return command


@credit.command()
@click.argument("organization")
@click.argument("amount", type=Usd())
@_options
@click.pass_obj
def grant(
    config_path: str,
    *,
    organization: str,
    amount: Nanos,
    reason: str,
    idempotency_key: str | None,
    as_json: bool,
) -> None:
    """Give AMOUNT in USD to ORGANIZATION (its name or id)."""

    async def granted(stores: Stores) -> Granted:
        found = await organizations.resolve(stores.pool, organization)
        wanted = Grant(found.id, amount, reason, "operator", idempotency_key)
        return await credits_.grant(stores.pool, stores.redis, wanted)

    done = run(config_path, granted)
    _say(amount, done, "granted", as_json=as_json)


@credit.command(context_settings={"ignore_unknown_options": True})
@click.argument("organization")
@click.argument("amount", type=SignedUsd())
@_options
@click.pass_obj
def adjust(
    config_path: str,
    *,
    organization: str,
    amount: Nanos,
    reason: str,
    idempotency_key: str | None,
    as_json: bool,
) -> None:
    """Put the balance of ORGANIZATION right by AMOUNT in USD; below zero, -5, it loses.

    It loses no more than is free: what open calls hold stays theirs.
    """

    async def adjusted(stores: Stores) -> Granted:
        found = await organizations.resolve(stores.pool, organization)
        wanted = Grant(found.id, amount, reason, "operator", idempotency_key)
        return await credits_.adjust(stores.pool, stores.redis, wanted)

    _say(amount, run(config_path, adjusted), "adjusted", as_json=as_json)


@credit.command()
@click.argument("organization")
@click.argument("amount", type=Usd())
@_options
@click.pass_obj
def refund(
    config_path: str,
    *,
    organization: str,
    amount: Nanos,
    reason: str,
    idempotency_key: str | None,
    as_json: bool,
) -> None:
    """Take AMOUNT in USD out of the wallet of ORGANIZATION, for its payer.

    It takes no more than is free: what open calls hold stays theirs.
    """

    async def refunded(stores: Stores) -> Taken:
        found = await organizations.resolve(stores.pool, organization)
        wanted = Taking(found.id, amount, WithdrawalKind.REFUND, reason, "operator")
        keyed = wanted._replace(idempotency_key=idempotency_key)
        return await credits_.take(stores.pool, stores.redis, keyed)

    done = run(config_path, refunded)
    _say(amount, Granted(done.balance, done.is_new, done.is_told), "refunded", as_json=as_json)


@credit.command()
@click.argument("source")
@click.argument("target")
@click.argument("amount", type=Usd())
@_options
@click.pass_obj
def transfer(
    config_path: str,
    *,
    source: str,
    target: str,
    amount: Nanos,
    reason: str,
    idempotency_key: str | None,
    as_json: bool,
) -> None:
    """Move AMOUNT in USD from the organization SOURCE to the organization TARGET.

    It moves no more than is free: what open calls hold stays theirs.
    """

    async def transferred(stores: Stores) -> Taken:
        found = await organizations.resolve(stores.pool, source)
        gains = await organizations.resolve(stores.pool, target)
        wanted = Taking(found.id, amount, WithdrawalKind.TRANSFER, reason, "operator", gains.id)
        keyed = wanted._replace(idempotency_key=idempotency_key)
        return await credits_.take(stores.pool, stores.redis, keyed)

    done = run(config_path, transferred)
    _say(
        amount,
        Granted(done.balance, done.is_new, done.is_told),
        "transferred",
        as_json=as_json,
        target_balance=done.target_balance,
    )


def _say(
    amount: int,
    done: Granted,
    verb: str,
    *,
    as_json: bool,
    target_balance: Nanos | None = None,
) -> None:
    if as_json:
        row = {"amount_nanos": amount, "balance_nanos": done.balance, "is_new": done.is_new}
        if target_balance is not None:
            row["target_balance_nanos"] = target_balance
        print_rows([row], as_json=True)
    else:
        said = verb if done.is_new else f"was {verb} before under this key"
        text = f"{usd_text(amount)} {said}. Balance: {usd_text(done.balance)}"
        if target_balance is not None:
            text += f"; of the target: {usd_text(target_balance)}"
        click.echo(text)
    if not done.is_usable:
        click.echo("Redis did not take it yet; it will be usable within a minute.", err=True)


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
