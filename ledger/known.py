"""What Postgres has of calls that ended before: the record, as its corrections leave it.

Asked only for the few calls of a batch whose record was there already.
"""

from collections.abc import Sequence

import asyncpg

from ledger.batch import Known
from ledger.postgres import Connection
from ledger.row import Figures, RollupKey
from ledger.stream import Window

_RECORDS = """
    SELECT call_id, kind, charge, wallet_id::text, windows,
           (extract(epoch FROM admitted_at) * 1000000)::bigint AS admitted_us,
           organization_id::text, project_id::text, key_id::text, member_id::text, provider,
           model_target, outcome, usage_source, input, cache_read, cache_write, output, reasoning,
           list_price
    FROM usage_record
    WHERE call_id = ANY ($1::uuid[])
"""
_CORRECTIONS = """
    SELECT call_id, number, old_kind, old_charge, kind, charge, windows, outcome, provider,
           model_target, usage_source, input, cache_read, cache_write, output, reasoning,
           list_price
    FROM correction WHERE call_id = ANY ($1::uuid[]) ORDER BY call_id, number
"""


async def known_calls(connection: Connection, call_ids: Sequence[bytes]) -> dict[bytes, Known]:
    """What is known of those of the calls that have a record."""
    ids = [call_id.hex() for call_id in call_ids]
    rows = await connection.fetch(_RECORDS, ids)
    known = {row["call_id"].bytes: known_of_row(row) for row in rows}
    for row in await connection.fetch(_CORRECTIONS, [call_id.hex() for call_id in known]):
        call_id = row["call_id"].bytes
        known[call_id] = corrected(known[call_id], row)
    return known


def corrected(before: Known, correction: asyncpg.Record) -> Known:
    """What is known of the call after one more of its corrections."""
    if not replaced_something(correction):
        return before._replace(corrections=correction["number"])  # it only paid money back
    return Known(
        correction["kind"],
        correction["charge"],
        before.wallet,
        windows_of(correction["windows"]),
        before.admitted_us,
        before.key._replace(provider=correction["provider"], model=correction["model_target"]),
        _figures(correction),
        correction["number"],
    )


def replaced_something(correction: asyncpg.Record) -> bool:
    """Whether its entry knew more of the call; else what Redis took again was paid back."""
    before = correction["old_kind"], correction["old_charge"]
    return before != (correction["kind"], correction["charge"])


def windows_of(ids: Sequence[str] | None) -> tuple[Window, ...]:
    """The windows of these ids. Their rows exist, so the limit is no longer asked of them."""
    windows = []
    for window_id in ids or ():
        cap_id, _, starts_ms = window_id.rpartition("@")
        windows.append(Window(cap_id, int(starts_ms), 0))
    return tuple(windows)


def known_of_row(row: asyncpg.Record) -> Known:
    """What is known of a call by its record alone."""
    key = RollupKey(
        row["organization_id"],
        row["project_id"],
        row["key_id"],
        row["member_id"],
        row["provider"],
        row["model_target"],
    )
    return Known(
        row["kind"],
        row["charge"],
        row["wallet_id"],
        windows_of(row["windows"]),
        row["admitted_us"],
        key,
        _figures(row),
        0,
    )


def _figures(row: asyncpg.Record) -> Figures:
    return Figures(
        1,
        int(row["outcome"] == "success"),
        int(row["usage_source"] == "estimated"),
        row["input"],
        row["cache_read"],
        row["cache_write"],
        row["output"],
        row["reasoning"],
        row["charge"],
        row["list_price"],
    )
