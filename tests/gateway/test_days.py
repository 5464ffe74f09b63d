"""What the job of days does in one turn."""

import time
from datetime import date, timedelta

import pytest

from gateway.days import Days
from gateway.metrics import Metrics
from gateway.plans import PLANS
from tests.ledger.days import filled, has_day, today_of
from tests.ledger.deployment import deployed


async def test_a_turn_makes_days_to_come_and_drops_those_that_are_over_and_tells(
    postgres_url: str, redis_url: str
) -> None:
    async with deployed(postgres_url, redis_url) as deployment:
        await filled(deployment)
        today, metrics = await today_of(deployment), Metrics()
        await deployment.pool.execute(f"DROP TABLE call_log_standard_{tomorrow(today)}")
        days = Days(postgres_url, PLANS, metrics=metrics, wall_s=time.time)  # noqa: TID251 - a root
        await days.turn()

        assert await has_day(deployment, today + timedelta(days=1))
        assert not await has_day(deployment, today - timedelta(days=4))
        assert metrics.call_log_days_dropped.series[()] == 2
        assert metrics.retention_success.series[()] == pytest.approx(time.time(), abs=60)  # noqa: TID251 - as above


def tomorrow(today: date) -> str:
    return f"{today + timedelta(days=1):%Y%m%d}"
