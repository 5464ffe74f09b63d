"""Rules of the rows and figures of an ended call."""

import json
from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.book import Organization
from ledger.money import Nanos
from ledger.record import EndKind, Record
from ledger.row import (
    DAY_US,
    HOUR_US,
    figures_of,
    log_row_of,
    report_hour_us,
    rollup_key,
    row_of,
)
from ledger.stream import Ended, Window
from tests.ledger.deployment import new_call_id, record_of

ACME = Organization(str(UUID(int=1)), "Acme", "organization", 0, str(UUID(int=2)), Nanos(0))
NOBODY = str(UUID(int=0))


def ended(record: Record, kind: EndKind = EndKind.SETTLED) -> Ended:
    windows = (Window("key-1", 0, 9),)
    return Ended("1-0", record.call_id, kind, True, ACME.id, 100, windows, record, b"")


def record() -> Record:
    return record_of(ACME, new_call_id(), charge=100)


def test_units_have_their_columns_and_the_rest_is_json() -> None:
    made = record()
    made.usage = {"input": 1, "cache_write_5m": 2, "cache_write_1h": 3, "web_searches": 4}
    row = row_of(ended(made))
    assert (row.input, row.cache_read, row.cache_write, row.output) == (1, 0, 5, 0)
    assert json.loads(row.other_usage or "") == {"cache_write_1h": 3, "web_searches": 4}


def test_the_windows_are_kept_so_that_a_correction_finds_them() -> None:
    assert row_of(ended(record())).windows == ["key-1@0"]


def test_an_absent_member_is_nobody() -> None:
    assert row_of(ended(record())).member_id == NOBODY


def test_a_lost_call_is_an_estimate() -> None:
    assert row_of(ended(record(), EndKind.LOST)).usage_source == "estimated"
    assert figures_of(row_of(ended(record(), EndKind.LOST))).estimated == 1


@pytest.mark.parametrize("kind", [EndKind.RELEASED, EndKind.EXPIRED])
def test_an_end_that_is_free_has_consumed_nothing_whatever_its_ticket_guessed(
    kind: EndKind,
) -> None:
    made = record()
    made.usage = {"input": 9, "web_searches": 4}
    row = row_of(ended(made, kind))
    assert (row.input, row.output, row.other_usage) == (0, 0, None)


def test_the_log_has_what_money_does_not_need() -> None:
    made = record()
    row = row_of(ended(made))
    log = log_row_of(ended(made), row)
    assert (log.status, log.attempts, log.flags) == (200, 1, ["odd"])
    assert log.call_id == row.call_id


def test_figures_count_the_call_once_under_its_key() -> None:
    row = row_of(ended(record()))
    figures = figures_of(row)
    assert (figures.calls, figures.successes, figures.charge, figures.input) == (1, 1, 100, 10)
    assert rollup_key(row).model == "small-1"


@given(st.integers(min_value=1, max_value=2**32 * 1_000_000 - 1))
def test_the_moment_of_a_row_is_exact_to_the_microsecond(at_us: int) -> None:
    made = record()
    made.admitted_us = at_us
    passed = row_of(ended(made)).admitted_at - datetime.fromtimestamp(0, UTC)
    assert passed.days * DAY_US + passed.seconds * 1_000_000 + passed.microseconds == at_us


@pytest.mark.parametrize(
    ("late_us", "is_admission"),
    [(0, True), (2 * DAY_US - 1, True), (2 * DAY_US, False), (9 * DAY_US, False)],
)
def test_a_day_is_open_until_a_day_after_it_ended(late_us: int, *, is_admission: bool) -> None:
    midnight_us = 20_000 * DAY_US
    admitted_us = midnight_us + 5 * HOUR_US + 7
    arrived_us = midnight_us + late_us
    expected = admitted_us if is_admission else arrived_us
    assert report_hour_us(admitted_us, arrived_us) == expected - expected % HOUR_US
