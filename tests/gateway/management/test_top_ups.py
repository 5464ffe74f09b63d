"""A wallet that falls below its threshold is charged once for each time that happens."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from gateway.management import cashier
from gateway.management.mails import Postman
from gateway.management.top_ups import TopUps, top_up_id
from gateway.management.watch import Sight
from tests.gateway.management.office import Office
from tests.gateway.management.post_box import open_box
from tests.gateway.management.spending import USD, Till, opened_till
from tests.gateway.management.team import Team, founded
from tests.gateway.management.till import (
    charged,
    credited,
    everything_is_finished,
    method_of,
    open_till,
    tops_up,
)

ALL = Sight(None, None)


@pytest.fixture
async def office(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Office]:
    async with open_till(postgres_url, redis_url, tmp_path) as opened:
        yield opened


async def stage(
    office: Office, postgres_url: str, does: str = "approve", **terms: Any
) -> tuple[Team, Till]:
    """An organization with 20 USD, which is topped up below 10 USD."""
    team = await founded(office)
    till = await opened_till(office, postgres_url, team.id)
    await till.gives(20 * USD)
    method = await method_of(team.owner, does, owner="organization")
    assert (await tops_up(team.owner, method, **terms)).status == 200
    return team, till


async def falls(till: Till, balance: int) -> None:
    """To this balance, and it is booked."""
    await till.calls(1, await till.balance() - balance)
    await till.booked()


async def looks(office: Office, times: int = 1) -> None:
    """Somebody looks at everything, so often at once, and the cashier does what follows."""
    await asyncio.gather(*(TopUps(office.desk).look(ALL) for _ in range(times)))
    await cashier.finish_some(office.desk)


async def mails(office: Office, email: str = "ada@example.com") -> list[str]:
    """The subjects of those about top-ups."""
    return [one["subject"] for one in await office.mails_to(email) if "op-up" in one["subject"]]


async def works(office: Office) -> None:
    """The job of the cashier, until it is cancelled."""
    while True:
        await cashier.finish_some(office.desk)
        await asyncio.sleep(0.01)


async def test_two_hundred_calls_that_cross_together_are_one_charge_and_one_mail(
    office: Office, postgres_url: str, tmp_path: Path
) -> None:
    _, till = await stage(office, postgres_url)
    async with asyncio.TaskGroup() as group:
        cashiers = [group.create_task(works(office), name=f"cashier {n}") for n in range(2)]
        async with till.watched(TopUps(office.desk), processes=2):
            await till.calls(200, 11 * USD // 200)
        for task in cashiers:
            task.cancel()
    await everything_is_finished(office)
    assert await till.balance() == 59 * USD
    assert (await charged(office), await credited(office)) == ([5_000], [50 * USD])
    assert await till.deployment.differences() == []
    with open_box() as (box, settings):
        await Postman(office.pool, settings, tmp_path, office.desk.now).send_some()
        told = [one for one in box.got if "op-up" in str(one["Subject"])]
    assert [(str(one["To"]), str(one["Subject"])) for one in told] == [
        ("ada@example.com", "Top-up: Acme")
    ]


async def test_twenty_who_look_at_once_begin_one(office: Office, postgres_url: str) -> None:
    team, till = await stage(office, postgres_url)
    await looks(office)
    assert await charged(office) == [], "20 USD are enough"
    await falls(till, 9 * USD)
    await looks(office, 20)
    assert await charged(office) == [5_000]
    await looks(office, 20)
    row = await office.pool.fetchrow("SELECT id, actor, method_id FROM payment")
    assert row is not None, "and no second one"
    assert (row["id"], row["actor"]) == (top_up_id(UUID(team.id), 1), "auto top-up")
    assert row["method_id"] is not None, "it is recorded what was charged"


async def test_each_crossing_is_charged_anew(office: Office, postgres_url: str) -> None:
    _, till = await stage(office, postgres_url, amount_nanos=15 * USD)
    for _ in range(3):
        await falls(till, 9 * USD)
        await looks(office, 3)
    assert await charged(office) == [1_500] * 3
    assert await till.balance() == 24 * USD


async def test_while_a_bank_takes_its_time_no_second_one_is_begun(
    office: Office, postgres_url: str
) -> None:
    _, till = await stage(office, postgres_url, "slow")
    await falls(till, 9 * USD)
    for _ in range(3):
        await looks(office)
    assert await office.pool.fetchval("SELECT count(*) FROM payment") == 1
    await everything_is_finished(office)
    assert await credited(office) == [50 * USD]


async def test_no_more_is_charged_in_a_month_than_was_allowed(
    office: Office, postgres_url: str
) -> None:
    terms: dict[str, Any] = {"amount_nanos": 15 * USD, "monthly_max_nanos": 30 * USD}
    team, till = await stage(office, postgres_url, **terms)
    for _ in range(4):
        await falls(till, 9 * USD)
        await looks(office, 2)
    assert await charged(office) == [1_500] * 2
    limit = "Monthly limit of top-ups reached: Acme"
    told = [one["subject"] for one in await office.mails_to("ada@example.com")]
    assert told.count(limit) == 1
    view = (await team.owner.get("/auto-top-up")).body
    assert view["charged_this_month_nanos"] == 30 * USD
    office.clock.ahead += timedelta(days=31)
    await looks(office)
    assert await charged(office) == [1_500] * 3, "another month"


async def test_a_soft_decline_is_tried_again_after_a_day_once(
    office: Office, postgres_url: str
) -> None:
    team, till = await stage(office, postgres_url, "insufficient_funds")
    await falls(till, 9 * USD)
    for hours in (0, 1, 22):
        office.clock.ahead += timedelta(hours=hours)
        await looks(office, 2)
    assert await office.pool.fetchval("SELECT count(*) FROM payment") == 1
    view = (await team.owner.get("/auto-top-up")).body
    assert (view["is_enabled"], view["trouble"]) == (True, "insufficient_funds")
    assert view["retry_at"] is not None
    for _ in range(3):
        office.clock.ahead += timedelta(hours=25)
        await looks(office, 2)
    assert await office.pool.fetchval("SELECT count(*) FROM payment") == 2
    view = (await team.owner.get("/auto-top-up")).body
    assert (view["is_enabled"], view["retry_at"]) == (False, None)
    assert await mails(office) == ["Top-up declined: Acme"] * 2
    assert await credited(office) == []


async def test_a_retry_that_is_paid_makes_all_well(office: Office, postgres_url: str) -> None:
    team, till = await stage(office, postgres_url, "insufficient_funds")
    await falls(till, 9 * USD)
    await looks(office)
    await office.pool.execute(
        "UPDATE sandbox_object SET body = jsonb_set(body, '{does}', '\"approve\"')"
        " WHERE kind = 'method'"
    )
    office.clock.ahead += timedelta(hours=25)
    await looks(office)
    assert await credited(office) == [50 * USD]
    view = (await team.owner.get("/auto-top-up")).body
    assert (view["is_enabled"], view["trouble"], view["retry_at"]) == (True, None, None)


async def test_a_hard_decline_switches_it_off_and_owners_and_admins_are_told(
    office: Office, postgres_url: str
) -> None:
    team, till = await stage(office, postgres_url, "stolen_card")
    await team.cast()
    await falls(till, 9 * USD)
    await looks(office, 5)
    for days in (0, 2, 9):
        office.clock.ahead += timedelta(days=days)
        await looks(office)
    assert await office.pool.fetchval("SELECT count(*) FROM payment") == 1
    view = (await team.owner.get("/auto-top-up")).body
    assert (view["is_enabled"], view["trouble"]) == (False, "stolen_card")
    for email in ("ada", "owner", "admin"):
        assert await mails(office, f"{email}@example.com") == ["Top-up declined: Acme"], email
    assert await mails(office, "member@example.com") == []


async def test_ones_own_card_is_charged_only_while_one_runs_the_organization(
    office: Office, postgres_url: str
) -> None:
    team = await founded(office)
    till = await opened_till(office, postgres_url, team.id)
    await till.gives(20 * USD)
    bob = await team.joined("bob@example.com", "admin")
    assert (await tops_up(bob, await method_of(bob))).status == 200
    assert (await team.owner.get("/auto-top-up")).body["paid_by"] == "person"
    assert (await team.owner.get("/auto-top-up")).body["method_id"] is None
    await falls(till, 9 * USD)
    member_id = await team.member_id("bob@example.com")
    assert (await team.owner.delete(f"/members/{member_id}")).status in {200, 204}
    await looks(office)
    assert await charged(office) == []


async def test_it_works_for_a_personal_account(office: Office, postgres_url: str) -> None:
    ada = await office.signed_up("ada@example.com")
    account = (await ada.get("/me")).body["account_id"]
    till = await opened_till(office, postgres_url, account)
    await till.gives(20 * USD)
    await method_of(ada)
    assert (await tops_up(ada)).status == 200, "with the only method there is"
    await falls(till, 9 * USD)
    await looks(office, 3)
    assert await charged(office) == [5_000]
    assert await till.balance() == 59 * USD


async def test_who_is_suspended_deleted_or_switched_off_is_not_charged(
    office: Office, postgres_url: str
) -> None:
    team, till = await stage(office, postgres_url)
    await falls(till, 9 * USD)
    for change in (
        "UPDATE organization SET suspended_at = now() WHERE id = $1",
        "UPDATE organization SET suspended_at = NULL, deleted_at = now() WHERE id = $1",
    ):
        await office.pool.execute(change, UUID(team.id))
        await looks(office)
    await office.pool.execute("UPDATE organization SET deleted_at = NULL")
    assert (await tops_up(team.owner, is_enabled=False)).status == 200
    await looks(office)
    await TopUps(office.desk._replace(processor=None)).look(ALL)
    await TopUps(office.desk).look(Sight([], None))
    assert await charged(office) == []
    assert (await tops_up(team.owner)).status == 200
    await TopUps(office.desk).look(Sight([UUID(team.id)], None))
    await cashier.finish_some(office.desk)
    assert await charged(office) == [5_000]


async def test_a_debit_in_euro_without_its_price_is_not_charged(
    office: Office, postgres_url: str
) -> None:
    team = await founded(office)
    till = await opened_till(office, postgres_url, team.id)
    await till.gives(20 * USD)
    await method_of(team.owner, owner="organization", kind="sepa_debit")
    assert (await tops_up(team.owner)).status == 200
    await falls(till, 9 * USD)
    config = office.desk.config
    plain = type(config)(management=config.management)
    await TopUps(office.desk._replace(config=plain)).look(ALL)
    assert await office.pool.fetchval("SELECT count(*) FROM payment") == 0
