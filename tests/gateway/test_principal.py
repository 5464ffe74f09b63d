"""Principals, and the calendar of their budgets."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo, available_timezones

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.principal import Budget, Period, Principal, pack, unpack, window_starts
from ledger.money import Nanos
from tests.gateway.principals import PRINCIPAL

WHO = PRINCIPAL._replace(
    time_zone="Europe/Berlin",
    budgets=(Budget("key:k", Nanos(5_000_000_000), Period.DAILY),),
    rpm=10,
    concurrency=4,
    models=frozenset({"gpt-4o", "small"}),
    grace=Nanos(9),
    default_model="small",
    networks=(("10.0.0.0/8",), ("10.1.0.0/16", "::1/128")),
    keeps_content=True,
)
# Without the zones of the tz project's own bookkeeping, which are no places.
ZONES = sorted(zone for zone in available_timezones() if "/" in zone and "posix" not in zone)
HOUR_MS = 3_600_000
YEARS_2020_TO_2037 = st.integers(1_577_836_800_000, 2_114_380_800_000)


def ms(text: str, zone: str) -> int:
    """The unix ms of a local time."""
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp() * 1000)


def utc(instant_ms: int) -> str:
    """The instant as text, UTC."""
    return datetime.fromtimestamp(instant_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")


@pytest.mark.parametrize(
    ("zone", "now", "starts", "hours"),
    [
        ("Europe/Berlin", "2026-03-29 12:00", "2026-03-28 23:00", 23),  # clocks go forward
        ("Europe/Berlin", "2026-10-25 12:00", "2026-10-24 22:00", 25),  # and back
        ("America/New_York", "2026-07-01 00:00", "2026-07-01 04:00", 24),
        ("Asia/Kathmandu", "2026-07-01 23:59", "2026-06-30 18:15", 24),  # a quarter of an hour off
        ("Australia/Lord_Howe", "2026-04-05 12:00", "2026-04-04 13:00", 24.5),  # half an hour back
        ("Africa/Cairo", "2026-04-24 12:00", "2026-04-23 22:00", 23),  # no midnight on this day
        ("America/Havana", "2026-11-01 12:00", "2026-11-01 04:00", 25),  # two midnights
    ],
)
def test_a_day_has_the_hours_the_zone_gives_it(
    zone: str, now: str, starts: str, hours: float
) -> None:
    start, following = window_starts(Period.DAILY, zone, ms(now, zone))[-2:]
    assert utc(start) == starts
    assert (following - start) / 3_600_000 == hours


def test_both_passes_of_a_repeated_hour_are_in_the_same_day() -> None:
    zone = "Europe/Berlin"
    first = datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo(zone), fold=0)
    second = first.replace(fold=1)
    days = {window_starts(Period.DAILY, zone, int(t.timestamp() * 1000)) for t in (first, second)}
    assert second.timestamp() - first.timestamp() == 3600
    assert len(days) == 1


def test_a_week_begins_on_monday_and_a_month_on_its_first_day() -> None:
    zone = "America/Los_Angeles"
    week = window_starts(Period.WEEKLY, zone, ms("2026-11-01 23:59", zone))
    assert week == (ms("2026-10-26", zone), ms("2026-11-02", zone))
    month = window_starts(Period.MONTHLY, zone, ms("2026-12-31 23:59", zone))
    assert month == (ms("2026-12-01", zone), ms("2027-01-01", zone))


def test_a_budget_given_once_never_begins_anew() -> None:
    assert window_starts(Period.ONCE, "UTC", 1_800_000_000_000) == (0,)


@given(st.sampled_from(ZONES), st.sampled_from(Period), YEARS_2020_TO_2037)
def test_now_is_in_its_window_and_the_next_window_follows_without_a_gap(
    zone: str, period: Period, now_ms: int
) -> None:
    starts = window_starts(period, zone, now_ms)
    assert starts[0] <= now_ms
    if period is not Period.ONCE:
        start, following = starts[-2:]
        assert now_ms < following
        assert window_starts(period, zone, following)[-2] == following
        assert window_starts(period, zone, following - 1)[-2] == start
        assert window_starts(period, zone, start)[-2] == start


@given(
    st.sampled_from(ZONES),
    st.sampled_from(Period),
    YEARS_2020_TO_2037,
    st.integers(-2 * HOUR_MS, 2 * HOUR_MS),
    st.integers(-HOUR_MS, HOUR_MS),
)
def test_redis_finds_the_same_window_whatever_the_gateways_clock_says(
    zone: str, period: Period, some_ms: int, since_border_ms: int, off_ms: int
) -> None:
    now_ms = window_starts(period, zone, some_ms)[-1] + since_border_ms

    right, sent = (window_starts(period, zone, each) for each in (now_ms, now_ms + off_ms))

    assert taken(sent, now_ms) == taken(right, now_ms)


def taken(starts: tuple[int, ...], now_ms: int) -> int:
    """As the functions in Redis choose."""
    return max([start for start in starts if start <= now_ms], default=starts[0])


def test_the_caps_of_a_principal_carry_limit_and_windows() -> None:
    now_ms = ms("2026-08-01 10:00", "Europe/Berlin")
    (cap,) = WHO.caps(now_ms)
    assert (cap.id, cap.limit) == ("key:k", 5_000_000_000)
    assert cap.starts_ms == (now_ms - 10 * 3_600_000, now_ms + 14 * 3_600_000)
    assert WHO._replace(budgets=()).caps(now_ms) == ()


def test_a_key_without_a_list_of_models_may_use_all() -> None:
    assert WHO.may_use("small")
    assert not WHO.may_use("large")
    assert WHO._replace(models=None).may_use("large")


@pytest.mark.parametrize(
    "who",
    [WHO, WHO._replace(budgets=(), models=None, rpm=None, expires_at_ms=1, is_suspended=True)],
)
def test_a_principal_is_the_same_after_its_way_through_redis(who: Principal) -> None:
    assert unpack(pack(who)) == who


def test_what_an_older_release_wrote_is_read_without_what_it_did_not_know() -> None:
    shorter = msgspec.msgpack.encode(msgspec.msgpack.decode(pack(WHO))[:-3])
    assert unpack(shorter) == WHO._replace(default_model=None, networks=(), keeps_content=False)


def test_a_newer_release_may_add_fields_at_the_end() -> None:
    fields = msgspec.msgpack.decode(pack(WHO))
    longer = msgspec.msgpack.encode([*fields, "new"])
    assert unpack(longer) == WHO
