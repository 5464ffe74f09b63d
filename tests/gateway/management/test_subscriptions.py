"""Exactly one charge for a period, wherever whoever is at it is cut off."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from gateway.management import subscribing
from gateway.management.guard import Doorman
from gateway.management.renewals import renew_some
from gateway.management.subscribing import Subscribing
from gateway.plans import Billing
from gateway.rest.caller import Knock
from gateway.rest.route import Asked, Nothing
from tests.cutting import is_cut
from tests.gateway.management.office import Browser, Office
from tests.gateway.management.subscribers import open_plans, plan_of, subscribed, subscriber, work
from tests.gateway.management.till import another_process, charged, method_of

SUBSCRIBE = next(one for one in subscribing.ROUTES if one.name == "plans.subscribe")
KILLED = timedelta(minutes=3)  # after which what the dead one had taken is free again


@pytest.fixture
async def office(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Office]:
    async with open_plans(postgres_url, redis_url, tmp_path) as opened:
        yield opened


async def settled(office: Office, browser: Browser) -> Any:
    """Its plan, once nothing is under way: the server notices dead connections in its own time."""
    async with asyncio.timeout(30):
        while True:
            office.clock.ahead += KILLED
            await work(office)
            held = await plan_of(browser)
            if held["pending"] is None:
                return held
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("dies", [False, True])
async def test_a_renewal_is_charged_once_wherever_the_job_is_cut(
    office: Office, postgres_url: str, *, dies: bool
) -> None:
    ada = await subscriber(office)
    await subscribed(ada)
    for at in count(1):
        office.clock.ahead += timedelta(days=32)
        async with another_process(office, postgres_url) as desk:
            was_cut = await is_cut(renew_some(desk), at=at, dies=dies)
        held = await settled(office, ada)
        assert held["name"] == "pro", at
        assert await charged(office) == [5_000] * (at + 1), at
        if not was_cut:
            break
    assert at > 15, "it waits for Postgres again and again"


async def asked_by(office: Office, browser: Browser, method: str) -> Asked[Nothing, Subscribing]:
    """A choice as the handler is given it."""
    knock = Knock("::1", "", browser.headers["Authorization"], None, None, None, {})
    return Asked(
        caller=await Doorman(office.desk)(SUBSCRIBE, knock),
        path={},
        query=Nothing(),
        body=Subscribing(plan="pro", billing=Billing.MONTHLY, method_id=UUID(method)),
        if_match=None,
        key=None,
        cookies={},
        agent="",
    )


@pytest.mark.parametrize("dies", [False, True])
async def test_a_first_period_is_charged_once_or_not_wherever_its_request_is_cut(
    office: Office, postgres_url: str, *, dies: bool
) -> None:
    ada = await subscriber(office)
    method, paid = await method_of(ada), 0
    for at in count(1):
        asked = await asked_by(office, ada, method)
        async with another_process(office, postgres_url) as desk:
            was_cut = await is_cut(subscribing.subscribe(desk, asked), at=at, dies=dies)
        held = await settled(office, ada)
        paid += held["name"] == "pro"
        assert await charged(office) == [5_000] * paid, at
        if not was_cut:
            break
        await ada.delete("/subscription")
        office.clock.ahead += timedelta(days=32)
        await work(office)
        assert (await plan_of(ada))["name"] == "free"
    assert paid > 5, "cut after it was begun, it is finished by the job"
