"""Forget how calls went once nobody may keep it any longer: rows of call_log, never money.

A day that no organization keeps is dropped as a table, which gives its disk back at once. Of the
days that some keep, the rows of the others are deleted, a few thousand at a time. Records, postings
and the sums by hour stay for ever, so that a call that ends twice is charged once, however late.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

import asyncpg

from ledger.postgres import Connection

_log = logging.getLogger(__name__)

DAYS_MIN = 1  # a day is over for its late ends a day after it
_LOCK = 0x746F6C6C666F7267  # "tollforg" in ASCII: one process at a time
_BATCH = 5_000  # rows looked at in a transaction: some 20 ms
_SWEPT_BATCH = 1_000
# A table can be dropped when no flush writes to its parent: each takes milliseconds. Flushes queue
# behind who waits, so that is for less than one of them may wait, and in a pause they go on.
_DROP_WAIT_MS = 100
_TRIES, _PAUSE_S = 20, 0.2
_SCAN_S = 600.0  # of a whole day, before it is dropped: nobody waits for it
_SLOWLY = f"SET LOCAL statement_timeout = {_SCAN_S * 1000:.0f}"

_DAYS = """
    SELECT to_date(right(c.relname, 8), 'YYYYMMDD') AS day
    FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'call_log_standard'::regclass AND c.relname ~ '_[0-9]{8}$'
    ORDER BY 1
"""
_KEEPERS = """
    CREATE TEMPORARY TABLE keeper (
        organization_id uuid PRIMARY KEY, keeps_from date NOT NULL, swept_to date NOT NULL
    )
"""
_IS_DUE = "SELECT EXISTS (SELECT FROM keeper WHERE keeps_from > $1 AND swept_to <= $1)"
# In the order of the key, so that each row of a day is looked at once; of what goes, it is kept
# that a call was let in by grace: `doctor` explains by it what is below zero.
_SWEEP = """
    WITH looked_at AS (
        SELECT call_id FROM call_log
        WHERE retention = 'standard' AND call_id > $2 AND call_id < $3
        ORDER BY call_id LIMIT $4
    ), edge AS (
        SELECT call_id AS last FROM looked_at ORDER BY call_id DESC LIMIT 1
    ), gone AS (
        DELETE FROM call_log AS c USING keeper AS k
        WHERE c.retention = 'standard' AND c.call_id > $2 AND c.call_id < $3
          AND c.call_id <= (SELECT last FROM edge)
          AND k.organization_id = c.organization_id AND k.keeps_from > $1 AND k.swept_to <= $1
        RETURNING c.call_id, c.flags
    ), noted AS (
        INSERT INTO grace_call (call_id) SELECT call_id FROM gone WHERE 'grace' = ANY (flags)
        ON CONFLICT DO NOTHING
    )
    SELECT (SELECT last FROM edge) AS last, (SELECT count(*) FROM gone) AS gone
"""
_SWEEPABLE = """
    SELECT count(*) FROM call_log AS c JOIN keeper AS k USING (organization_id)
    WHERE retention = 'standard' AND call_id > $2 AND call_id < $3
      AND k.keeps_from > $1 AND k.swept_to <= $1
"""
# What came for a day whose table was dropped, before the flusher could make it again.
_STRAYS = """
    WITH gone AS (
        DELETE FROM call_log_standard_default WHERE call_id IN (
            SELECT call_id FROM call_log_standard_default
            WHERE call_id < $1 ORDER BY call_id LIMIT $2
        )
        RETURNING call_id, flags
    ), noted AS (
        INSERT INTO grace_call (call_id) SELECT call_id FROM gone WHERE 'grace' = ANY (flags)
        ON CONFLICT DO NOTHING
    )
    SELECT count(*) FROM gone
"""
_SWEPT = """
    UPDATE organization AS o SET logs_swept_to = k.keeps_from FROM keeper AS k
    WHERE o.id = k.organization_id AND o.id IN (
        SELECT k.organization_id FROM keeper AS k WHERE k.keeps_from > k.swept_to
          AND k.organization_id > $1 ORDER BY k.organization_id LIMIT $2
    )
    RETURNING o.id
"""


class Keeper(NamedTuple):
    """How long one organization keeps how its calls went."""

    organization_id: UUID
    days: int  # whole days after the call's own, of UTC; at least `DAYS_MIN`
    swept_to: date | None  # its rows of the days before are gone; None: nobody looked yet


class Forgotten(NamedTuple):
    """What is gone now, or would be."""

    days: list[date]  # dropped whole
    rows: int  # deleted one by one
    stuck: list[date]  # to be dropped, but in use all the time: next time


async def forget(
    connection: Connection,
    keepers: Sequence[Keeper],
    *,
    today: date,
    is_dry: bool = False,
) -> Forgotten | None:
    """Forget what no keeper may keep on `today`, a day of UTC; `is_dry`: only tell what that is.

    None: another process is at it. Killed anywhere, it is taken up where it was by the next one.
    `keepers` are all organizations there are: what is nobody's goes with the last of them.
    """
    assert all(keeper.days >= DAYS_MIN for keeper in keepers), "a day takes late ends for a day"
    if not keepers:
        return Forgotten([], 0, [])
    async with _alone(connection) as is_alone:
        if not is_alone:
            return None
        horizon = today - timedelta(days=max(keeper.days for keeper in keepers))
        days = [row["day"] for row in await connection.fetch(_DAYS)]
        old = [day for day in days if day < horizon]
        await _write_keepers(connection, keepers, today)
        rest = [day for day in days if day >= horizon]
        if is_dry:
            counts = [await _sweepable(connection, day) for day in rest]
            return Forgotten(old, sum(counts), [])
        stuck = [day for day in old if not await _dropped(connection, day)]
        rows = await _strays(connection, horizon)
        for day in rest:
            rows += await _swept(connection, day)
        await _note_swept(connection)
        return Forgotten([day for day in old if day not in stuck], rows, stuck)


@asynccontextmanager
async def _alone(connection: Connection) -> AsyncIterator[bool]:
    """Whether nobody else is at it, until the block is left."""
    if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK):
        yield False
        return
    try:
        yield True
    finally:
        if not connection.is_closed():
            await connection.execute("DROP TABLE IF EXISTS pg_temp.keeper")
            await connection.execute("SELECT pg_advisory_unlock($1)", _LOCK)


async def _write_keepers(connection: Connection, keepers: Sequence[Keeper], today: date) -> None:
    await connection.execute(_KEEPERS)
    await connection.copy_records_to_table(
        "keeper",
        schema_name="pg_temp",
        records=[
            (one.organization_id, today - timedelta(days=one.days), one.swept_to or date.min)
            for one in keepers
        ],
        columns=("organization_id", "keeps_from", "swept_to"),
    )


async def _dropped(connection: Connection, day: date) -> bool:
    """Whether the day's table could be dropped, within some seconds.

    An end that comes in between the look for grace and the drop goes with the table, noted or not:
    days after its call there are none but those of a journal that was found again.
    """
    table = await connection.fetchval("SELECT quote_ident($1)", f"call_log_standard_{day:%Y%m%d}")
    async with connection.transaction():
        await connection.execute(_SLOWLY)
        await connection.execute(
            f"INSERT INTO grace_call (call_id) SELECT call_id FROM {table}"  # noqa: S608 - quoted by Postgres
            " WHERE 'grace' = ANY (flags) ON CONFLICT DO NOTHING",
            timeout=_SCAN_S,
        )
    for _ in range(_TRIES):
        try:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = {_DROP_WAIT_MS}")
                await connection.execute(f"DROP TABLE {table}")
        except asyncpg.LockNotAvailableError:
            await asyncio.sleep(_PAUSE_S)
        else:
            return True
    _log.warning("a day of call logs is in use and stays for now", extra={"day": str(day)})
    return False


async def _swept(connection: Connection, day: date) -> int:
    """Delete the day's rows of those who do not keep it; how many that were."""
    if not await connection.fetchval(_IS_DUE, day):
        return 0
    rows = 0
    after, end = first_id(day), first_id(day + timedelta(days=1))
    while True:
        row = await connection.fetchrow(_SWEEP, day, after, end, _BATCH)
        assert row is not None, "sums are one row"
        if row["last"] is None:
            return rows
        rows += int(row["gone"])
        after = row["last"]


async def _sweepable(connection: Connection, day: date) -> int:
    async with connection.transaction():
        await connection.execute(_SLOWLY)
        bounds = first_id(day), first_id(day + timedelta(days=1))
        count = await connection.fetchval(_SWEEPABLE, day, *bounds, timeout=_SCAN_S)
        assert isinstance(count, int), "a count is one number"
        return count


def first_id(day: date) -> UUID:
    """Below every call id of the day, and above all of the days before."""
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return UUID(int=round(midnight.timestamp() * 1000) << 80)


async def _strays(connection: Connection, horizon: date) -> int:
    rows = 0
    while gone := await connection.fetchval(_STRAYS, first_id(horizon), _BATCH):
        rows += int(gone)
    return rows


async def _note_swept(connection: Connection) -> None:
    after = UUID(int=0)
    while rows := await connection.fetch(_SWEPT, after, _SWEPT_BATCH):
        after = max(row["id"] for row in rows)
