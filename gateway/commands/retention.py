"""`tollgate retention`: forget how calls went once nobody may keep it, as a job does every hour."""

import time

import click

from gateway.commands.stores import Stores, run
from gateway.days import forgotten
from ledger.retention import Forgotten


@click.command()
@click.option("--dry-run", is_flag=True, help="Say what would go; change nothing.")
@click.pass_obj
def retention(config_path: str, *, dry_run: bool) -> None:
    """Delete logs of calls that are over their organization's time. Money stays for ever.

    `serve` does it every hour. Exits with 1 if a day is in use all the time, or another process is
    at it.
    """

    async def done(stores: Stores) -> Forgotten | None:
        now_s = time.time()  # noqa: TID251 - a command is its own root
        async with stores.pool.acquire() as connection:
            return await forgotten(connection, stores.config.plans, now_s, is_dry=dry_run)

    found = run(config_path, done)
    if found is None:
        raise click.ClickException("another process is at it; ask again in a minute")
    would = "would be " if dry_run else ""
    for day in found.days:
        click.echo(f"{day} {would}dropped.")
    click.echo(f"{found.rows} logs of calls of other days {would}deleted.")
    for day in found.stuck:
        click.echo(f"{day} is in use all the time; it goes with the next turn.", err=True)
    if found.stuck:
        raise click.exceptions.Exit(1)
