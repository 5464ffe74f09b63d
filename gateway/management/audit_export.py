"""The audit log as a file: every line up to now, for other programs and for spreadsheets.

It is read a page at a time as the reader takes it: a long log and a slow reader cost little.
"""

import csv
import io
from collections.abc import AsyncIterator, Iterable, Sequence
from enum import StrEnum
from typing import Any

import asyncpg
import msgspec

from gateway.management.desk import Desk
from gateway.policy import Permission
from gateway.rest.caller import Scope, member
from gateway.rest.route import Answer, Asked, Download, Nothing, Route

_PAGE = 1_000
_END = "SELECT audit_number FROM organization WHERE id = $1"
_LINES = """
    SELECT number, at, actor, action, target, before, after, address,
           encode(previous_hash, 'hex') AS previous_hash, encode(hash, 'hex') AS hash
    FROM audit_log WHERE organization_id = $1 AND number > $2 AND number <= $3
    ORDER BY number LIMIT $4
"""
_COLUMNS = (
    *("number", "at", "actor", "action", "target", "before", "after", "address"),
    *("previous_hash", "hash"),
)
# With one of these a spreadsheet begins a formula, and what people are called is theirs to choose.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class ExportFormat(StrEnum):
    """How the file is written."""

    NDJSON = "ndjson"  # one JSON object per line
    CSV = "csv"  # with a head; text that a spreadsheet would compute has a ' before it


class ExportWanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which file."""

    format: ExportFormat = ExportFormat.NDJSON


_MEDIA = {ExportFormat.NDJSON: "application/x-ndjson", ExportFormat.CSV: "text/csv"}


async def export(desk: Desk, asked: Asked[ExportWanted, Nothing]) -> Answer:
    """Every line up to now, the oldest first."""
    form = asked.query.format
    organization_id = asked.caller.place.organization_id
    end = await desk.pool.fetchval(_END, organization_id)

    async def chunks() -> AsyncIterator[bytes]:
        if form is ExportFormat.CSV:
            yield _csv([_COLUMNS])
        after = 0
        while rows := await desk.pool.fetch(_LINES, organization_id, after, end, _PAGE):
            after = rows[-1]["number"]
            yield _csv(map(_cells, rows)) if form is ExportFormat.CSV else _ndjson(rows)

    name = f"audit-log-{organization_id}.{form.value}"
    return Answer(download=Download(_MEDIA[form], name, chunks()))


def _ndjson(rows: Sequence[asyncpg.Record]) -> bytes:
    lines = []
    for row in rows:
        said: dict[str, Any] = dict(row)
        for name in ("before", "after"):
            said[name] = msgspec.Raw((said[name] or "null").encode())
        lines.append(msgspec.json.encode(said) + b"\n")
    return b"".join(lines)


def _cells(row: asyncpg.Record) -> list[str]:
    return [_cell(row[name]) for name in _COLUMNS]


def _cell(value: object) -> str:
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _csv(rows: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


ROUTES = (
    Route(
        method="GET",
        path="/audit-log/export",
        name="audit.export",
        says="Every line up to now as a file, the oldest first, with the hashes of the chain.",
        access=member(Permission.AUDIT_READ, Scope.AUDIT_READ),
        handle=export,
        query=ExportWanted,
        media=tuple(_MEDIA.values()),
    ),
)
