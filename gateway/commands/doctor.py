"""`tollgate doctor`: one line per check, ok, warning or problem, and what to do."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import click

from gateway.commands.stores import CONNECT_S, explained, store_urls
from gateway.commands.texts import print_rows
from gateway.config import ConfigErrors, load
from gateway.embedded import urls
from gateway.management.doctor import Patient, examine
from gateway.settings import Config
from ledger.clients import open_redis
from ledger.doctor import Finding, Grade

_COLOURS = {Grade.OK: "green", Grade.WARNING: "yellow", Grade.PROBLEM: "red"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
@click.pass_obj
def doctor(config_path: str, *, as_json: bool) -> None:
    """Check servers, settings, files and the whole ledger, and say what to do.

    Changes nothing, and may be run at any time; it reads every record, as `verify` does. Exits with
    1 if there is a problem. A warning is something that will need somebody.
    """
    found = asyncio.run(_findings(Path(config_path), is_silent=as_json))
    if as_json:
        print_rows([finding._asdict() for finding in found], as_json=True)
    count = {grade: sum(finding.grade is grade for finding in found) for grade in Grade}
    summary = f"Problems: {count[Grade.PROBLEM]}, warnings: {count[Grade.WARNING]}."
    click.echo(summary, err=True)
    if count[Grade.PROBLEM]:
        raise click.exceptions.Exit(1)


async def _findings(path: Path, *, is_silent: bool) -> list[Finding]:
    found = []
    async for finding in _examined(path):
        found.append(finding)
        if not is_silent:
            _print(finding)
    return found


async def _examined(path: Path) -> AsyncIterator[Finding]:
    try:
        config = load(path)
    except ConfigErrors as errors:
        said = f"{path} has mistakes: {len(errors.mistakes)}"
        yield Finding(Grade.PROBLEM, "configuration", said, "`tollgate check-config` lists them")
        return
    yield Finding(Grade.OK, "configuration", f"{path} can be read")
    async with _patient(config) as patient:
        async for finding in examine(patient):
            yield finding


@asynccontextmanager
async def _patient(config: Config) -> AsyncIterator[Patient]:
    where = store_urls(config)
    admin_url = config.redis.admin_url or config.redis.url
    admin_text = urls(config.data_dir).redis_admin if admin_url is None else admin_url.reveal()
    with explained(config, where.postgres):
        # The whole ledger is read, so no statement has a limit.
        connection = await asyncpg.connect(where.postgres, timeout=CONNECT_S)
    redis, admin = (open_redis(url, answer_s=CONNECT_S) for url in (where.redis, admin_text))
    try:
        yield Patient(config, connection, redis, admin, time.time)  # noqa: TID251 - its own root
    finally:
        connection.terminate()
        await redis.aclose()
        await admin.aclose()


def _print(finding: Finding) -> None:
    grade = click.style(f"{finding.grade:<8}", fg=_COLOURS[finding.grade])
    todo = f" -> {finding.todo}" if finding.todo else ""
    click.echo(f"{grade} {finding.check:<19} {finding.said}{todo}")
