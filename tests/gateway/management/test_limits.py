"""What an organization may have: by its plan, by its operator, by its own choice."""

from uuid import UUID

import msgspec
import pytest

from gateway.management.limits import (
    Limits,
    LogLevel,
    allowed,
    allowed_to,
    keepers,
    limits_in,
    log_days_of,
)
from gateway.plans import PLANS
from tests.gateway.management.office import Office
from tests.gateway.management.rooms import made_organization


def test_what_is_not_set_is_as_the_plan_says() -> None:
    assert limits_in("{}") == Limits(projects_max=None, members_max=None)
    may = allowed(PLANS, "pro", limits_in('{"projects_max": 400}'))
    assert may == allowed(PLANS, "pro", Limits())._replace(projects_max=400)
    assert (may.organizations_max, may.members_max) == (10, 50)


def test_a_plan_that_is_not_offered_any_more_is_free() -> None:
    assert allowed(PLANS, "gold", Limits()) == allowed(PLANS, "free", Limits())


def test_how_long_logs_are_kept_is_chosen_within_plan_and_level() -> None:
    may = allowed(PLANS, "pro", Limits())
    assert log_days_of(may, LogLevel.NONE, None) == 3
    assert log_days_of(may, LogLevel.RETAIN, None) == 90
    assert log_days_of(may, LogLevel.RETAIN, 30) == 30
    assert log_days_of(may, LogLevel.NONE, 30) == 3, "what was chosen under another plan"
    custom = allowed(PLANS, "enterprise", Limits(log_days_max=1_000))
    assert log_days_of(custom, LogLevel.RETAIN, None) == 1_000
    assert log_days_of(custom, LogLevel.NONE, None) == 90


def test_a_limit_of_a_newer_release_is_passed_over() -> None:
    assert limits_in('{"projects_max": 4, "robots_max": {"each": 5}}') == Limits(projects_max=4)


@pytest.mark.parametrize(
    "text", ['{"projects_max": 0}', '{"robots_max": 5}', '{"members_max": 1.5}']
)
def test_a_flawed_limit_cannot_be_set(text: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=Limits)


async def test_a_persons_own_plan_says_how_many_organizations_they_own(office: Office) -> None:
    ada = await office.signed_up("ada@example.com")
    for number in range(3):
        await made_organization(ada, f"Acme {number}")
    got = await ada.post("/organizations", {"name": "One more"})
    assert (got.status, got.code) == (409, "organizations_max")
    await office.pool.execute("UPDATE organization SET plan = 'pro' WHERE kind = 'personal'")
    await made_organization(ada, "One more")


async def test_every_organization_is_a_keeper_for_as_long_as_holds_for_it(office: Office) -> None:
    ada = await office.signed_up("ada@example.com")
    acme = UUID((await made_organization(ada, "Acme")).headers["X-Organization-Id"])
    await office.pool.execute(
        "UPDATE organization SET plan = 'pro', log_level = 'retain', log_days = 30,"
        " deleted_at = now() WHERE id = $1",
        acme,
    )
    async with office.pool.acquire() as connection:
        found = {keeper.organization_id: keeper.days for keeper in await keepers(connection, PLANS)}
    account = UUID((await ada.get("/me")).body["account_id"])
    assert found == {acme: 30, account: 3}
    assert (await allowed_to(office.pool, PLANS, acme)).projects_max == 100
