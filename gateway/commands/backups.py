"""`tollgate backup` and `tollgate restore`: the Postgres that Tollgate runs itself."""

import time
from pathlib import Path

import click

from gateway.backups import BackupFailed, back_up
from gateway.backups import restore as restored
from gateway.config import load
from gateway.settings import Config

_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command()
@click.argument("folder", type=_FOLDER)
@click.pass_obj
def backup(config_path: str, *, folder: Path) -> None:
    """Back up Postgres and its secrets into FOLDER, a new one, while `serve` runs.

    Keep it as safe as the data folder: it opens the database. config.yaml is not in it.
    """
    data = _data_of(load(Path(config_path)))
    began_s = time.monotonic()
    back_up(data, folder.absolute(), now_s=time.time())  # noqa: TID251 - its own root
    click.echo(f"Backed up into {folder} in {time.monotonic() - began_s:.1f} s.")


@click.command()
@click.argument("folder", type=_FOLDER)
@click.pass_obj
def restore(config_path: str, *, folder: Path) -> None:
    """Put Postgres back as it is in FOLDER, made by `tollgate backup`; `serve` must be stopped.

    Redis and the journals stay: what has happened since comes back from them at the next start, as
    far as they reach. The Postgres that is replaced is kept aside.
    """
    data = _data_of(load(Path(config_path)))
    aside = restored(data, folder.absolute(), now_s=time.time())  # noqa: TID251 - its own root
    kept = f" What was there is in {aside}." if aside else ""
    click.echo(f"Restored {folder}.{kept}")
    click.echo("Now: `tollgate serve`, then `tollgate doctor` and `tollgate dead-letters list`.")
    click.echo(
        "Keys revoked since the backup work again: revoke them. docs/operations.md has more."
    )


def _data_of(config: Config) -> Path:
    if config.postgres.url is not None:
        raise BackupFailed(
            "Postgres is your own: back it up and restore it with its own tools, such as"
            " pg_basebackup with a WAL archive. docs/operations.md says what to do around it."
        )
    return config.data_dir
