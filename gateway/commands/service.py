"""`tollgate serve`, `migrate`, `check-config`, `verify`: the deployment itself."""

import asyncio
import os
import sys
import time
from pathlib import Path

import asyncpg
import click

from gateway.commands.stores import CONNECT_S, explained, store_urls
from gateway.config import check_config as checked
from gateway.config import load


@click.command()
@click.option("--workers", type=click.IntRange(1, 256), help="Data-plane processes.")
@click.pass_obj
def serve(config_path: str, workers: int | None) -> None:
    """Serve calls until SIGTERM or Ctrl-C; starts Postgres and Valkey if none are configured."""
    from gateway.logs import Lines, LineWriter, install  # noqa: PLC0415 - other commands log nothing
    from gateway.serve import serve as served  # noqa: PLC0415 - only this command needs it

    path = Path(config_path)
    level = load(path).logging.level
    with LineWriter(sys.stderr.fileno()) as writer:
        lines = Lines(writer.write, process="supervisor", wall_s=time.time)  # noqa: TID251 - a root
        install(lines, level=level)
        environ = dict(os.environ)  # noqa: TID251 - handed on to the children as it is
        asyncio.run(served(path, workers=workers, environ=environ))


@click.command()
@click.pass_obj
def migrate(config_path: str) -> None:
    """Bring the database to this release's schema. `serve` does it too; safe to repeat."""
    from ledger.migrate import migrate as migrated  # noqa: PLC0415 - only this command needs it

    config = load(Path(config_path))
    url = store_urls(config).postgres
    with explained(config, url):
        applied = asyncio.run(migrated(url, partitions=config.ledger.partitions))
    click.echo(f"{applied} migrations applied." if applied else "Nothing to do.")


@click.command()
@click.pass_obj
def verify(config_path: str) -> None:
    """Recompute every wallet from its records and postings, and check the hash chains.

    Prints every difference and exits with 1 if there is one.
    """
    from ledger.verify import Difference  # noqa: PLC0415 - only this command needs it
    from ledger.verify import verify as verified  # noqa: PLC0415 - as above

    async def differences(url: str) -> list[Difference]:
        # The whole ledger is read, so no statement has a limit.
        connection = await asyncpg.connect(url, timeout=CONNECT_S)
        try:
            return await verified(connection)
        finally:
            await connection.close()

    config = load(Path(config_path))
    url = store_urls(config).postgres
    with explained(config, url):
        found = asyncio.run(differences(url))
    for difference in found:
        click.echo(difference)
    if found:
        click.echo(f"{len(found)} differences.", err=True)
        raise click.exceptions.Exit(1)
    click.echo("No difference.")


@click.command()
@click.pass_obj
def check_config(config_path: str) -> None:
    """Say OK and what is in use, or list every mistake and exit with 1."""
    report = checked(Path(config_path))
    click.echo(report.text, err=report.exit_code != 0)
    if report.exit_code:
        raise click.exceptions.Exit(report.exit_code)
