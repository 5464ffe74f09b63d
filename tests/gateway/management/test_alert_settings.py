"""An organization chooses of what it is told."""

import pytest

from gateway.config import read
from gateway.management.alert_settings import ANOMALY_MIN, PERCENTS
from gateway.management.low_balances import defaults
from tests.gateway.management.office import Office
from tests.gateway.management.spending import USD
from tests.gateway.management.team import founded

SETTINGS = "/alerts/settings"


async def test_who_chose_nothing_has_the_defaults_in_their_unit(office: Office) -> None:
    team = await founded(office)
    got = await team.owner.get(SETTINGS)
    assert got.body == {
        "low_nanos": 10 * USD,
        "critical_nanos": USD,
        "is_low_default": True,
        "is_critical_default": True,
        "thresholds_nanos": [],
        "budget_percents": [*PERCENTS],
        "spend_anomalies": True,
        "anomaly_min_nanos": ANOMALY_MIN,
        "access_reviews": True,
        "display": {
            "unit": "GP",
            "amounts": {"low": "10,000", "critical": "1,000", "anomaly_min": "10,000"},
        },
        "version": 1,
    }


async def test_the_table_has_the_same_defaults(office: Office) -> None:
    team = await founded(office)
    before = (await team.owner.get(SETTINGS)).body
    after = (await team.owner.patch(SETTINGS, {})).body
    assert after == {**before, "version": 2}


async def test_a_change_stays_and_null_is_the_default_again(office: Office) -> None:
    team = await founded(office)
    wanted = {"low_nanos": 50 * USD, "thresholds_nanos": [9, 7, 9], "budget_percents": [90, 50]}
    got = await team.owner.patch(SETTINGS, wanted)
    assert (got.status, got.headers["ETag"]) == (200, '"2"')
    seen = (await team.owner.get(SETTINGS)).body
    assert seen == got.body
    assert (seen["low_nanos"], seen["is_low_default"]) == (50 * USD, False)
    assert (seen["thresholds_nanos"], seen["budget_percents"]) == ([7, 9], [50, 90])
    seen = (await team.owner.patch(SETTINGS, {"low_nanos": None})).body
    assert (seen["low_nanos"], seen["is_low_default"]) == (10 * USD, True)
    lines = await team.audited("alerts.update")
    assert [line["after"] for line in lines][-1] == {"low_nanos": None}


async def test_of_two_changes_at_once_the_second_is_told(office: Office) -> None:
    team = await founded(office)
    first = {"If-Match": '"1"'}
    assert (await team.owner.patch(SETTINGS, {"reviews": 1}, headers=first)).status == 400
    assert (
        await team.owner.patch(SETTINGS, {"access_reviews": False}, headers=first)
    ).status == 200
    got = await team.owner.patch(SETTINGS, {"access_reviews": True}, headers=first)
    assert (got.status, got.code) == (412, "changed_meanwhile")


async def test_the_critical_level_is_not_above_the_low_one(office: Office) -> None:
    team = await founded(office)
    for wanted in ({"critical_nanos": 11 * USD}, {"low_nanos": USD - 1}):
        got = await team.owner.patch(SETTINGS, wanted)
        assert (got.status, got.code) == (400, "invalid_levels")


@pytest.mark.parametrize(
    ("unit", "low", "critical"),
    [
        ("{unit: GP, per_usd: 100}", 100, 10),
        ("{unit: USD, per_usd: 1, low_balance: 7, critical_balance: 2}", 7, 2),
    ],
)
def test_the_defaults_are_counted_in_the_installations_unit(
    unit: str, low: int, critical: int
) -> None:
    config = read(f"credits: {unit}", {})
    assert defaults(config.credits) == (low * USD, critical * USD)
