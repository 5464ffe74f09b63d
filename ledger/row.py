"""An ended call as the tables and the reports take it: a row, and what it adds to an hour.

Pure.
"""

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from ledger.record import EndKind, Record
from ledger.stream import Ended, canonical_uuid
from ledger.usage import Source, Unit

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
CLOSED_AFTER_US = DAY_US  # a day's figures stand a day after it ended
SEPARATOR = "\x1f"  # between the elements of a list that travels as one text

_COLUMNS = frozenset({Unit.INPUT, Unit.CACHE_READ, Unit.CACHE_WRITE_5M, Unit.OUTPUT})
_json = msgspec.json.Encoder(order="sorted").encode


class Row(NamedTuple):
    """A usage record as the tables take it, column by column."""

    call_id: str
    organization_id: str
    project_id: str
    key_id: str
    member_id: str
    wallet_id: str
    admitted_us: int
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
    windows: str | None
    moved: bool
    finished_us: int
    first_byte_us: int
    status: int
    attempts: int
    stream: bool
    client: str
    flags: str | None


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


def report_hour_us(admitted_us: int, arrived_us: int) -> int:
    """The hour an end counts in: its admission's, or this one when that day is closed."""
    day_closed_us = admitted_us - admitted_us % DAY_US + DAY_US + CLOSED_AFTER_US
    dated_us = admitted_us if arrived_us < day_closed_us else arrived_us
    return dated_us - dated_us % HOUR_US


def joined(texts: Iterable[str]) -> str | None:
    """The list as one text; None if it is empty."""
    return SEPARATOR.join(texts) or None


def row_of(ended: Ended) -> Row:
    """The end as a row of usage_record and call_log."""
    record, usage = ended.record, ended.record.usage
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
        record.admitted_us,
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
        joined(window.id for window in ended.windows) if ended.windows else None,
        ended.moved,
        record.finished_us,
        record.first_byte_us,
        record.status,
        record.attempts,
        record.stream,
        record.client,
        joined(record.flags) if record.flags else None,
    )


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


def _source(kind: str, record: Record) -> str:
    """A lost call is charged by its last known progress, which is an estimate."""
    return Source.ESTIMATED.value if kind == EndKind.LOST else record.usage_source
