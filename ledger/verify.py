"""Recompute everything Postgres says about money from its records, and name every difference.

What is kept as a sum is summed again: wallets, cap windows, postings per transaction, hourly
figures. Hash chains are walked to their end. Prices are applied again where their sheet is stored.
All of it is read in one snapshot, so a busy ledger can be verified as it is.
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from typing import NamedTuple
from uuid import UUID

import asyncpg
import msgspec

from ledger import verify_sql as sql
from ledger.batch import Known
from ledger.chain import Audited, Posted, audit_hash, transaction_hash
from ledger.known import corrected, known_of_row, replaced_something, windows_of
from ledger.postgres import Connection, one_row
from ledger.pricing import PriceSheet
from ledger.row import Figures, RollupKey, report_hour_us
from ledger.stream import Window
from ledger.usage import Usage

_PREFETCH = 2_000

Prices = Callable[[bytes], PriceSheet]


class Difference(NamedTuple):
    """Something that is not what it must be."""

    what: str  # "wallet base", "cap window spent", "hash chain", ...
    where: str
    expected: object
    found: object

    def __str__(self) -> str:
        return f"{self.what} of {self.where}: expected {self.expected}, found {self.found}"


async def verify(
    connection: asyncpg.Connection, *, load_sheet: Prices = PriceSheet.load
) -> list[Difference]:
    """Every difference there is; an empty list is the proof."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        found = [
            *await _queried(connection),
            *await _transaction_chains(connection),
            *await _audit_chains(connection),
        ]
        reports = _Reports()
        await _follow_corrections(connection, reports)
        found += await _windows(connection, reports.windows)
        found += await _hours(connection, reports.hours)
        found += await _prices(connection, load_sheet)
    return found


class AuditFollowed(NamedTuple):
    """How far one organization's audit log is as it was written."""

    lines: int  # as many as there must be
    whole_to: int  # the last line that is, as are all before it
    is_whole: bool


async def verify_audit(connection: Connection, organization_id: UUID) -> AuditFollowed:
    """Follow one organization's audit chain until something is wrong with it, or to its end."""
    chain, whole_to = _audit_chain(), 0
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        lines, hashed = await one_row(connection, sql.AUDIT_END, organization_id)
        async for row in _rows(connection, sql.AUDIT_LINES, organization_id):
            chain.follow(row["organization_id"], row, _audited_hash(row))
            if chain.found or row["number"] > lines:
                break
            whole_to = row["number"]
    ended = chain.ended([(str(organization_id), lines, hashed)])
    return AuditFollowed(lines, whole_to, is_whole=not ended)


async def _queried(connection: asyncpg.Connection) -> list[Difference]:
    """What a query alone can tell: its rows are differences."""
    found: list[Difference] = []
    for what, query in sql.DIFFERENCES.items():
        rows = await connection.fetch(query)
        found += (Difference(what, *row) for row in rows)
    return found


class _Chain:
    """Lines that each name the one before, followed from the first to the last."""

    def __init__(self, line: str, name: str, end: str) -> None:
        self._line, self._name, self._end = line, name, end
        self._last: dict[object, tuple[int, bytes]] = {}
        self.found: list[Difference] = []

    def follow(self, chain: object, row: asyncpg.Record, computed: bytes) -> None:
        """The next line of this chain; `computed`: its hash by what it says."""
        number, previous = self._last.get(chain, (0, b""))
        place = f"{self._line} {chain}/{row['number']}"
        if row["number"] != number + 1:
            told = Difference(f"{self._name} number", place, number + 1, row["number"])
            self.found.append(told)
        self.found += _linked(place, previous, row, computed)
        self._last[chain] = row["number"], row["hash"]

    def ended(
        self, ends: Iterable[asyncpg.Record | tuple[str, int, bytes]], where: str = "{}"
    ) -> list[Difference]:
        """Every difference; `ends` has the last line of each chain: its name, number and hash."""
        for chain, number, hashed in ends:
            last, end = self._last.get(chain, (0, b"")), (number, hashed)
            if last != end:
                place = where.format(chain)
                self.found.append(Difference(self._end, place, _shown(last), _shown(end)))
        return self.found


async def _transaction_chains(connection: asyncpg.Connection) -> list[Difference]:
    chain = _Chain("transaction", "transaction", "end of hash chain")
    async for row in _rows(connection, sql.TRANSACTIONS):
        posted = Posted(
            row["partition"],
            row["number"],
            row["kind"],
            row["reference"],
            row["actor"],
            row["reason"],
            row["at_us"],
            dict(zip(row["accounts"], row["amounts"], strict=True)),
        )
        chain.follow(row["partition"], row, transaction_hash(row["previous_hash"], posted))
    return chain.ended(await connection.fetch(sql.CHAIN_ENDS), "partition {}")


async def _audit_chains(connection: asyncpg.Connection) -> list[Difference]:
    chain = _audit_chain()
    async for row in _rows(connection, sql.AUDIT_LINES, None):
        chain.follow(row["organization_id"], row, _audited_hash(row))
    return chain.ended(await connection.fetch(sql.AUDIT_ENDS))


def _audit_chain() -> _Chain:
    return _Chain("audit line", "audit", "end of audit chain")


def _audited_hash(row: asyncpg.Record) -> bytes:
    """The hash of an audit line by what it says."""
    audited = Audited(
        row["organization_id"],
        row["number"],
        row["at_us"],
        row["actor"],
        row["action"],
        row["target"],
        None if row["before"] is None else msgspec.json.decode(row["before"]),
        None if row["after"] is None else msgspec.json.decode(row["after"]),
        row["address"],
    )
    return audit_hash(row["previous_hash"], audited)


def _linked(place: str, previous: bytes, row: asyncpg.Record, computed: bytes) -> list[Difference]:
    """What is wrong with one link of a chain."""
    found = []
    if row["previous_hash"] != previous:
        was = row["previous_hash"].hex()
        found.append(Difference("link to the line before", place, previous.hex(), was))
    if row["hash"] != computed:
        found.append(Difference("hash", place, computed.hex(), row["hash"].hex()))
    return found


class _Reports:
    """What corrections changed of the sums that records alone would give."""

    def __init__(self) -> None:
        self.windows: dict[str, Counter[str]] = {}  # id -> {"base", "spent"}
        self.hours: dict[tuple[int, RollupKey], list[int]] = {}

    def window(self, window: Window, *, base: int, spent: int) -> None:
        """Move a window."""
        moved = self.windows.setdefault(window.id, Counter())
        moved["base"] += base
        moved["spent"] += spent

    def hour(self, hour_us: int, key: RollupKey, figures: Figures, *, sign: int) -> None:
        """Move an hour's figures."""
        sums = self.hours.setdefault((hour_us, key), [0] * len(figures))
        for index, figure in enumerate(figures):
            sums[index] += sign * figure


async def _follow_corrections(connection: asyncpg.Connection, reports: _Reports) -> None:
    """Go through every corrected call in the order of its corrections."""
    known: Known | None = None
    current: bytes = b""
    async for row in _rows(connection, sql.CORRECTIONS):
        call_id = row["call_id"].bytes
        if known is None or call_id != current:
            record = await connection.fetchrow(sql.RECORD, row["call_id"])
            if record is None:
                continue  # reported by its own query
            known, current = known_of_row(record), call_id
        before = known
        known = corrected(before, row)
        replaces = replaced_something(row)
        taken = row["spent_delta"]
        for window in windows_of(row["windows"]):
            kept = row["charge"] if replaces else 0
            reports.window(window, base=taken - kept, spent=taken)
        if not replaces:
            continue
        for window in before.windows:
            reports.window(window, base=row["old_charge"], spent=0)
        hour_us = report_hour_us(before.admitted_us, row["arrived_us"])
        reports.hour(hour_us, before.key, before.figures, sign=-1)
        reports.hour(hour_us, known.key, known.figures, sign=1)


async def _windows(
    connection: asyncpg.Connection, corrections: dict[str, Counter[str]]
) -> list[Difference]:
    found = []
    async for row in _rows(connection, sql.WINDOWS):
        moved = corrections.pop(row["id"], Counter())
        for what in ("base", "spent"):
            expected = row[f"expected_{what}"] + moved[what]
            if expected != row[what]:
                found.append(Difference(f"cap window {what}", row["id"], expected, row[what]))
    for window_id, moved in corrections.items():
        if moved["base"] or moved["spent"]:
            found.append(Difference("cap window", window_id, dict(moved), None))
    return found


async def _hours(
    connection: asyncpg.Connection, corrections: dict[tuple[int, RollupKey], list[int]]
) -> list[Difference]:
    found = []
    nothing = [0] * len(Figures._fields)
    async for row in _rows(connection, sql.HOURS):
        key = RollupKey(*(row[name] for name in RollupKey._fields))
        moved = corrections.pop((row["hour_us"], key), nothing)
        recorded = [row[f"expected_{name}"] for name in Figures._fields]
        expected = [each + more for each, more in zip(recorded, moved, strict=True)]
        rolled = [row[name] for name in Figures._fields]
        if rolled != expected:
            place = f"hour {row['hour_us']} of {'/'.join(key)}"
            found.append(Difference("hourly figures", place, expected, rolled))
    for (hour_us, key), moved in corrections.items():
        if any(moved):
            place = f"hour {hour_us} of {'/'.join(key)}"
            found.append(Difference("hourly figures", place, moved, None))
    return found


async def _prices(connection: asyncpg.Connection, load_sheet: Prices) -> list[Difference]:
    """Apply the price sheets again to what was consumed."""
    sheets = {}
    for row in await connection.fetch(sql.SHEETS):
        sheets[row["version"]] = load_sheet(row["sheet"])
    found: list[Difference] = []
    if not sheets:
        return found
    async for row in _rows(connection, sql.PRICED):
        price = sheets[row["price_version"]].price(
            row["provider"], row["model_target"], row["admitted_us"] / 1e6
        )
        expected = None if price is None else price.charge(_usage(row))
        place = f"call {row['call_id']}"
        if expected != row["list_price"]:
            found.append(Difference("list price", place, expected, row["list_price"]))
        if row["charge"] not in {row["list_price"], row["reported_cost"]}:
            found.append(Difference("charge", place, row["list_price"], row["charge"]))
    return found


def _usage(row: asyncpg.Record) -> Usage:
    other: dict[str, int] = msgspec.json.decode(row["other_usage"] or "{}")
    counts = {
        "input": row["input"],
        "cache_read": row["cache_read"],
        "cache_write_5m": row["cache_write"] - other.get("cache_write_1h", 0),
        "output": row["output"],
        **other,
    }
    consumed = {unit: count for unit, count in counts.items() if count}
    return Usage(consumed, reasoning=row["reasoning"], tier=row["tier"] or None)


def _shown(end: tuple[int, bytes]) -> str:
    return f"{end[0]} {end[1].hex()}"


async def _rows(
    connection: Connection, query: str, *arguments: object
) -> AsyncIterator[asyncpg.Record]:
    async for row in connection.cursor(query, *arguments, prefetch=_PREFETCH):
        yield row
