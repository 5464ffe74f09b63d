"""A day that costs far more than the organization's days usually do is told of, once."""

from datetime import datetime, timedelta
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.management.spend_anomalies import SpendAnomalies, is_odd
from gateway.management.watch import Sight
from tests.gateway.management.office import Office
from tests.gateway.management.spending import USD
from tests.gateway.management.team import Team, founded

ALL = Sight(None, None)
_HOUR = """
    INSERT INTO usage_hourly (
        organization_id, hour, project_id, key_id, member_id, provider, model, calls, successes,
        estimated, input, cache_read, cache_write, output, reasoning, charge, list_price
    )
    VALUES ($1, $2, $3, $3, $3, 'openai', 'small', 1, 1, 0, 1, 0, 0, 1, 0, $4, $4)
"""


@pytest.mark.parametrize(
    ("charge", "before", "odd"),
    [
        (100, [10] * 7, True),
        (100, [10] * 6, False),  # too short a time to know
        (30, [10] * 14, False),  # no more than three times as much
        (31, [10] * 14, True),
        (19, [0] * 14, False),  # less than what is looked at
        (20, [0] * 14, True),
        (100, [1, 50, 2, 60, 3, 55, 4, 40, 30, 70, 20, 10, 5, 45], False),  # days vary that much
        (100, [10] * 13 + [1_000], True),  # one odd day before makes the next no usual one
    ],
)
def test_what_is_odd(charge: int, before: list[int], odd: bool) -> None:  # noqa: FBT001 - a table's cell
    assert is_odd(charge, before, least=20) == odd


@given(st.lists(st.integers(0, 10**15), min_size=7, max_size=14), st.integers(1, 10**6))
def test_a_day_like_one_of_at_least_half_the_days_is_never_odd(
    before: list[int], least: int
) -> None:
    upper = sorted(before)[len(before) // 2]
    assert not is_odd(sorted(before)[(len(before) - 1) // 2], before, least=least)
    assert is_odd(max(before) * 100 + 10**18 + upper, before, least=least)


class Days:
    """An organization's spending, at ten o'clock of each day."""

    def __init__(self, team: Team) -> None:
        self.team, self.office = team, team.office
        now = team.office.clock.now()
        # As if it were noon, so that the day has a morning.
        until_noon = timedelta(hours=12) - timedelta(hours=now.hour, minutes=now.minute)
        team.office.clock.ahead += until_noon
        team.office.clock.ahead_s -= until_noon.total_seconds()  # limits of rates go on
        self.noon = team.office.clock.now()

    async def spent(self, back: int, charge: int, *, hour: int = 10) -> None:
        at: datetime = self.noon.replace(hour=hour, minute=0, second=0, microsecond=0)
        at -= timedelta(days=back)
        await self.office.pool.execute(_HOUR, UUID(self.team.id), at, uuid4(), charge)

    async def mails(self) -> int:
        found = await self.office.mails_to("ada@example.com")
        return sum("more than usual" in mail["subject"] for mail in found)


@pytest.fixture
async def days(office: Office) -> Days:
    days = Days(await founded(office))
    for back in range(1, 15):
        await days.spent(back, 10 * USD)
    return days


async def test_an_odd_day_is_told_once(days: Days) -> None:
    office = days.office
    await days.spent(0, 25 * USD)
    await SpendAnomalies(office.desk).look(ALL)
    assert await days.mails() == 0
    await days.spent(0, 25 * USD)
    for _ in range(3):
        await SpendAnomalies(office.desk).look(ALL)
    assert await days.mails() == 1
    (alert,) = (await days.team.owner.get("/alerts")).body["data"]
    assert (alert["kind"], alert["facts"]["spent_nanos"], alert["facts"]["usual_nanos"]) == (
        *("spend.anomaly", 50 * USD, 10 * USD),
    )


async def test_what_is_usual_is_what_was_spent_by_this_hour(days: Days) -> None:
    for back in range(1, 15):
        await days.spent(back, 1_000 * USD, hour=20)
    await days.spent(0, 50 * USD)
    await SpendAnomalies(days.office.desk).look(ALL)
    assert await days.mails() == 1


async def test_one_observer_compares_every_few_minutes_who_spent_since(days: Days) -> None:
    office, observer = days.office, SpendAnomalies(days.office.desk)
    await observer.look(ALL)
    await days.spent(0, 50 * USD)
    moved = Sight([UUID(days.team.id)], [])
    await observer.look(moved)
    assert await days.mails() == 0
    office.clock.ahead += timedelta(minutes=11)
    await observer.look(Sight([UUID(int=1)], []))
    assert await days.mails() == 1


async def test_who_wants_none_or_more_is_not_told(days: Days) -> None:
    await days.spent(0, 50 * USD)
    for wanted in ({"anomaly_min_nanos": 60 * USD}, {"spend_anomalies": False}):
        await days.team.owner.patch(
            "/alerts/settings", {"anomaly_min_nanos": 0, "spend_anomalies": True} | wanted
        )
        await SpendAnomalies(days.office.desk).look(ALL)
    assert await days.mails() == 0


async def test_a_new_organization_has_nothing_usual_yet(office: Office) -> None:
    days = Days(await founded(office))
    for back in range(6):
        await days.spent(back, USD)
    await days.spent(0, 500 * USD)
    await SpendAnomalies(office.desk).look(ALL)
    assert await days.mails() == 0
