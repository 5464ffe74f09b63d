"""Bring a database to this release's schema; any number of processes may try at once.

Each file of migrations/ runs once, in the order of its number, in a transaction of its own together
with the row that says so: killed anywhere, the next start goes on where the last commit was. An
advisory lock lets one process work while the others wait.

A migration must be safe under the previous release's code, which may still be running: what only
the new code survives ships one release later. And calls go on meanwhile: whatever asks for a table
after a migration waits behind it, so a migration gives up its place in the queue and tries again.
"""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import asyncpg

PARTITIONS_DEFAULT = 16
DAYS_AHEAD = 8  # a week of partitions survives a control process that is away

LOCK_WAIT_S = 1.0  # less than any wait for a table that ends in an error
_TRIES, _PAUSE_S = 60, 0.5
_LOCK = (
    0x746F6C6C67617465  # "tollgate" in ASCII: no other program on this server takes it by chance
)
_TABLE = """
    CREATE TABLE IF NOT EXISTS migration (
        number     integer PRIMARY KEY,
        name       text NOT NULL,
        digest     text NOT NULL,
        applied_at timestamptz NOT NULL DEFAULT now()
    )
"""
_PARTS = """
    INSERT INTO part (number)
    SELECT n FROM generate_series(0, $1::integer - 1) AS n
    WHERE NOT EXISTS (SELECT FROM part)
"""


_log = logging.getLogger(__name__)


class MigrationFailed(Exception):
    """The database could not be brought to this schema; it is as the last whole step left it."""


class Migration(NamedTuple):
    """One file of migrations/."""

    number: int
    name: str
    sql: str

    @property
    def digest(self) -> str:
        """Tells an applied migration that was edited afterwards."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations() -> tuple[Migration, ...]:
    """Every migration of this release, in order; numbers count up from 1 without a gap."""
    found = []
    for path in sorted((Path(__file__).parent / "migrations").glob("*.sql")):
        number, _, name = path.stem.partition("_")
        found.append(Migration(int(number), name, path.read_text("utf-8")))
    assert [one.number for one in found] == list(range(1, len(found) + 1)), found
    return tuple(found)


async def migrate(url: str, *, partitions: int = PARTITIONS_DEFAULT) -> int:
    """Apply what is missing and say how many files that were.

    `partitions`: how many there are, which is never changed once the database is made. Raises
    `MigrationFailed`; tables of a newer release are left alone, which a rollback needs.
    """
    connection = await asyncpg.connect(url, timeout=10, command_timeout=None)
    try:
        # Not a transaction's lock: it must outlive the transaction of each step.
        await connection.execute("SELECT pg_advisory_lock($1)", _LOCK)
        await connection.execute(f"SET lock_timeout = {LOCK_WAIT_S * 1000:.0f}")
        applied = await _apply_missing(connection, migrations())
        await connection.execute(_PARTS, partitions)
        made = await connection.fetchval("SELECT count(*) FROM part")
        if made != partitions:
            raise MigrationFailed(
                f"the database was made with {made} partitions, and ledger.partitions is"
                f" {partitions}: set it to {made}, it cannot be changed later"
            )
        await _in_gaps(lambda: make_days(connection), "the days' partitions")
    except (asyncpg.PostgresError, OSError) as error:
        raise MigrationFailed(f"migrating: {error}") from error
    finally:
        await connection.close(timeout=5)
    return applied


async def make_days(connection: asyncpg.Connection) -> None:
    """Make the day partitions of records that are soon needed. Safe to repeat, at any time."""
    await connection.execute(
        "SELECT make_day_partitions((now() AT TIME ZONE 'UTC')::date - 1, $1)", DAYS_AHEAD + 1
    )


async def _apply_missing(connection: asyncpg.Connection, wanted: Sequence[Migration]) -> int:
    await connection.execute(_TABLE)
    rows = await connection.fetch("SELECT number, digest FROM migration")
    digests = {row["number"]: row["digest"] for row in rows}
    applied = 0
    for migration in wanted:
        known = digests.get(migration.number)
        if known is None:
            what = f"migration {migration.number} ({migration.name})"
            await _in_gaps(partial(_apply, connection, migration), what)
            applied += 1
        elif known != migration.digest:
            raise MigrationFailed(
                f"migration {migration.number} ({migration.name}) was changed after it was applied"
            )
    return applied


async def _in_gaps(step: Callable[[], Awaitable[None]], what: str) -> None:
    """Do it where nobody holds a lock for long; tables are free in the pauses between the tries."""
    for _ in range(_TRIES):
        try:
            await step()
        except asyncpg.LockNotAvailableError:
            _log.warning("migration waits for a lock", extra={"reason": what})
            await asyncio.sleep(_PAUSE_S)
        else:
            return
    raise MigrationFailed(f"{what}: some session holds a lock for long; pg_locks says which")


async def _apply(connection: asyncpg.Connection, migration: Migration) -> None:
    try:
        async with connection.transaction():
            await connection.execute(migration.sql)
            await connection.execute(
                "INSERT INTO migration (number, name, digest) VALUES ($1, $2, $3)",
                migration.number,
                migration.name,
                migration.digest,
            )
    except asyncpg.LockNotAvailableError:
        raise
    except asyncpg.PostgresError as error:
        raise MigrationFailed(
            f"migration {migration.number} ({migration.name}): {error}"
        ) from error
