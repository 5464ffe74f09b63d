"""An office where plans are paid for at the sandbox, and time that passes there."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from gateway.management import cashier
from gateway.management.renewals import renew_some
from tests.gateway.management.office import Browser, Got, Office, open_office
from tests.gateway.management.team import with_token
from tests.gateway.management.till import SANDBOX, method_of

_FREE = (
    "{label: Free, organizations_max: 3, projects_max: 10, members_max: 10, log_days_none: 3,"
    " log_days_retain: 3, usd_per_month: 0, usd_per_year: 0}"
)
_SOLD = "{label: %s, organizations_max: 9, projects_max: 99, members_max: 99, log_days_none: 3,"
_SOLD += " log_days_retain: 90, usd_per_month: %d, usd_per_year: %d}"
PLANS = (
    f"plans: {{free: {_FREE}, pro: {_SOLD % ('Pro', 50, 500)}, max: {_SOLD % ('Max', 90, 900)}}}"
)


@asynccontextmanager
async def open_plans(postgres_url: str, redis_url: str, folder: Path) -> AsyncIterator[Office]:
    """The office, with a plan that is larger than Pro."""
    changes = f"{SANDBOX}\n{PLANS}"
    async with open_office(postgres_url, redis_url, folder, changes=changes) as office:
        yield office


async def subscriber(office: Office, email: str = "ada@example.com") -> Browser:
    """Somebody new, by a token: sessions end in the time that passes here."""
    await office.signed_up(email)
    return await lasting(office, email)


async def lasting(office: Office, email: str, team_id: str = "") -> Browser:
    """The same of somebody who is there, at their organization or their own account."""
    scopes = ("profile:write", "organizations:write", "billing:write", "members:write")
    program = await with_token(office, scopes, person_of=email)
    return program.at(team_id) if team_id else program


async def subscribes(
    browser: Browser, method: str, plan: str = "pro", billing: str = "monthly", **more: Any
) -> Got:
    """Chooses a plan."""
    body = {"plan": plan, "billing": billing, "method_id": method}
    return await browser.post("/subscription", body, **more)


async def subscribed(browser: Browser, plan: str = "pro", billing: str = "monthly") -> str:
    """Has a plan, paid with a new card that pays; the card's id."""
    method = await method_of(browser)
    got = await subscribes(browser, method, plan, billing)
    assert (got.status, got.body["name"]) == (200, plan), got
    return method


async def passes(office: Office, **time: float) -> None:
    """So much time, and the jobs do what is to be done then."""
    office.clock.ahead += timedelta(**time)
    await work(office)


async def work(office: Office) -> None:
    """The jobs do all they can do now."""
    while await cashier.finish_some(office.desk) + await renew_some(office.desk):
        pass


async def plan_of(browser: Browser) -> Any:
    """What it has."""
    return (await browser.get("/plan")).body
