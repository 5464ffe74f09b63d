"""An ended call as the tables and the reports take it: a row, and what it adds to an hour.

Pure.
"""

from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from ledger.record import EndKind, Record
from ledger.stream import Ended, canonical_uuid
from ledger.usage import Source, Unit

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
CLOSED_AFTER_US = DAY_US  # a day's figures stand a day after it ended

_FREE = frozenset({EndKind.RELEASED, EndKind.EXPIRED})  # ends that nothing is charged for
_COLUMNS = frozenset({Unit.INPUT, Unit.CACHE_READ, Unit.CACHE_WRITE_5M, Unit.OUTPUT})
_json = msgspec.json.Encoder(order="sorted").encode


class Row(NamedTuple):
    """A row of usage_record, but for what the batch gives it."""

    call_id: str
    organization_id: str
    project_id: str
    key_id: str
    member_id: str
    wallet_id: str
    admitted_at: datetime
    kind: str
    outcome: str
    operation: str
    provider: str
    model_requested: str
    model_target: str
    model_served: str
    tier: str
    price_version: str
    held: int
    charge: int
    list_price: int
    reported_cost: int | None
    usage_source: str
    input: int
    cache_read: int
    cache_write: int
    output: int
    reasoning: int
    other_usage: str | None
    windows: list[str] | None
    moved: bool


class LogRow(NamedTuple):
    """A row of call_log: how the call went, besides money."""

    call_id: str
    organization_id: str
    finished_at: datetime | None
    first_byte_us: int
    status: int
    attempts: int
    stream: bool
    client: str
    flags: list[str] | None


class RollupKey(NamedTuple):
    """What the hourly figures are grouped by, besides the hour."""

    organization_id: str
    project_id: str
    key_id: str
    member_id: str
    provider: str
    model: str


class Figures(NamedTuple):
    """What one call adds to the hourly figures."""

    calls: int
    successes: int
    estimated: int
    input: int
    cache_read: int
    cache_write: int
    output: int
    reasoning: int
    charge: int
    list_price: int


def row_of(ended: Ended) -> Row:
    """The end as a row of usage_record."""
    record = ended.record
    # Their record may be the ticket, whose usage is what the call would have cost if it were lost.
    usage = {} if ended.kind in _FREE else record.usage
    count = usage.get
    other = None
    if not usage.keys() <= _COLUMNS:
        other = _json({unit: n for unit, n in usage.items() if unit not in _COLUMNS}).decode()
    return Row(
        ended.call_id.hex(),
        canonical_uuid(record.organization_id),
        canonical_uuid(record.project_id),
        canonical_uuid(record.key_id),
        canonical_uuid(record.member_id),
        ended.wallet,
        _moment(record.admitted_us),
        ended.kind,
        record.outcome,
        record.operation,
        record.provider,
        record.model_requested,
        record.model_target,
        record.model_served,
        record.tier,
        record.price_version,
        record.held,
        ended.charge,
        record.list_price,
        record.reported_cost,
        _source(ended.kind, record),
        count("input", 0),
        count("cache_read", 0),
        count("cache_write_5m", 0) + count("cache_write_1h", 0),
        count("output", 0),
        record.reasoning,
        other,
        [window.id for window in ended.windows] or None,
        ended.moved,
    )


def log_row_of(ended: Ended, row: Row) -> LogRow:
    """The end as a row of call_log."""
    record = ended.record
    return LogRow(
        row.call_id,
        row.organization_id,
        _moment(record.finished_us) if record.finished_us else None,
        record.first_byte_us,
        record.status,
        record.attempts,
        record.stream,
        record.client,
        record.flags or None,
    )


def report_hour_us(admitted_us: int, arrived_us: int) -> int:
    """The hour an end counts in: its admission's, or this one when that day is closed."""
    day_closed_us = admitted_us - admitted_us % DAY_US + DAY_US + CLOSED_AFTER_US
    dated_us = admitted_us if arrived_us < day_closed_us else arrived_us
    return dated_us - dated_us % HOUR_US


def rollup_key(row: Row) -> RollupKey:
    return RollupKey(
        row.organization_id,
        row.project_id,
        row.key_id,
        row.member_id,
        row.provider,
        row.model_target,
    )


def figures_of(row: Row) -> Figures:
    return Figures(
        1,
        int(row.outcome == "success"),
        int(row.usage_source == "estimated"),
        row.input,
        row.cache_read,
        row.cache_write,
        row.output,
        row.reasoning,
        row.charge,
        row.list_price,
    )


def _moment(at_us: int) -> datetime:
    """Exact: a double has a quarter of a microsecond there, and the conversion rounds."""
    return datetime.fromtimestamp(at_us / 1e6, UTC)


def _source(kind: str, record: Record) -> str:
    """A lost call is charged by its last known progress, which is an estimate."""
    return Source.ESTIMATED.value if kind == EndKind.LOST else record.usage_source
