"""A balance that falls below a level is told of by mail, once, to owners and admins."""

import asyncio
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import asyncpg

from gateway.management.low_balances import LowBalances
from gateway.management.mails import Postman
from gateway.management.watch import Sight
from tests.gateway.management.office import Office
from tests.gateway.management.post_box import open_box
from tests.gateway.management.spending import USD, Till, opened_till
from tests.gateway.management.team import Team, founded
from tests.gateway.tenancy import until

ALL = Sight(None, None)


async def looks(office: Office, times: int = 1) -> None:
    """Somebody looks at everything, as often at once."""
    await asyncio.gather(*(LowBalances(office.desk).look(ALL) for _ in range(times)))


async def subjects(office: Office, email: str = "ada@example.com") -> list[str]:
    """Of the alerts mailed to somebody, the first first."""
    return [
        mail["subject"] for mail in await office.mails_to(email) if "balance" in mail["subject"]
    ]


async def stage(office: Office, postgres_url: str, given: int = 20 * USD) -> tuple[Team, Till]:
    """An organization with credits, whose levels are armed."""
    team = await founded(office)
    till = await opened_till(office, postgres_url, team.id)
    await till.gives(given)
    await looks(office)
    return team, till


async def falls(till: Till, balance: int) -> None:
    """To this balance, and somebody looks."""
    await till.calls(1, await till.balance() - balance)
    await till.booked()
    await looks(till.office)


LOW, CRITICAL = "Low balance of Acme", "Critical balance of Acme"


async def test_all_owners_and_admins_have_a_mail_and_no_member(
    office: Office, postgres_url: str, tmp_path: Path
) -> None:
    team, till = await stage(office, postgres_url)
    await team.cast()
    await team.owner.patch("/organization", {"billing_email": "bills@example.com"})
    await falls(till, 9 * USD)
    with open_box() as (box, settings):
        await Postman(office.pool, settings, tmp_path, office.desk.now).send_some()
        told = {str(one["To"]): one for one in box.got if "balance" in str(one["Subject"])}
    assert set(told) == {
        *("ada@example.com", "owner@example.com", "admin@example.com", "bills@example.com"),
    }
    message = told["admin@example.com"]
    assert message["Subject"] == LOW
    parts = [part for part in message.walk() if not part.is_multipart()]
    assert [part.get_content_type() for part in parts] == ["text/plain", "text/html"]
    for part in parts:
        assert "9,000 GP" in str(part.get_payload())
        assert "10,000 GP" in str(part.get_payload())


async def test_two_hundred_calls_that_cross_together_are_one_mail(
    office: Office, postgres_url: str
) -> None:
    team = await founded(office)
    till = await opened_till(office, postgres_url, team.id)
    async with till.watched(LowBalances(office.desk), processes=2):
        await till.gives(20 * USD)
        await till.calls(200, 11 * USD // 200)
    assert await till.balance() == 9 * USD
    assert await subjects(office) == [LOW]
    assert await till.deployment.differences() == []


async def test_many_who_look_at_once_tell_once(office: Office, postgres_url: str) -> None:
    _, till = await stage(office, postgres_url)
    await till.calls(1, 19 * USD + USD // 2)
    await till.booked()
    await looks(office, 20)
    assert await subjects(office) == [CRITICAL], "of a fall through both levels the lower is told"
    alerts = await office.pool.fetch("SELECT kind FROM alert ORDER BY kind")
    assert [row["kind"] for row in alerts] == ["balance.critical", "balance.low"]


async def test_a_look_that_took_long_turns_nothing_that_others_have_turned(
    office: Office, postgres_url: str
) -> None:
    _, till = await stage(office, postgres_url)
    await till.calls(1, 12 * USD)
    await till.booked()

    async def waits() -> bool:
        return bool(await office.pool.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))

    other = await asyncpg.connect(postgres_url)
    async with asyncio.TaskGroup() as group, other.transaction():
        # As if others told of the fall, and of a recovery, while this one has yet to write.
        await other.execute("UPDATE balance_level SET turn = turn + 2")
        group.create_task(looks(office), name="the look")
        await until(waits)
    await other.close()
    assert await subjects(office) == []
    await looks(office)
    assert await subjects(office) == [LOW]


async def test_a_level_is_told_again_only_after_a_recovery_and_its_pause(
    office: Office, postgres_url: str
) -> None:
    _, till = await stage(office, postgres_url)
    await falls(till, 9 * USD)
    await falls(till, 8 * USD)
    office.clock.ahead += timedelta(hours=73)
    await looks(office)
    assert await subjects(office) == [LOW], "it never was above the level again"

    await till.gives(10 * USD)
    await looks(office)
    await falls(till, 9 * USD)
    assert await subjects(office) == [LOW, LOW]

    await till.gives(10 * USD)
    await looks(office)
    await falls(till, 9 * USD)
    office.clock.ahead += timedelta(hours=71)
    await looks(office)
    assert await subjects(office) == [LOW, LOW], "so soon"
    office.clock.ahead += timedelta(hours=2)
    await looks(office)
    assert await subjects(office) == [LOW, LOW, LOW], "it is still below"


async def test_critical_is_told_once_in_a_day(office: Office, postgres_url: str) -> None:
    _, till = await stage(office, postgres_url)
    await falls(till, 9 * USD)
    for wanted in (1, 1, 2):
        await falls(till, USD // 2)
        assert (await subjects(office)).count(CRITICAL) == wanted
        await till.gives(4 * USD)
        await looks(office)
        office.clock.ahead += timedelta(hours=13)
    assert (await subjects(office)).count(LOW) == 1, "four dollars were never above it"


async def test_who_never_had_so_much_is_not_warned(office: Office, postgres_url: str) -> None:
    team = await founded(office)
    till = await opened_till(office, postgres_url, team.id)
    await looks(office)
    await till.gives(5 * USD)
    await looks(office)
    assert await subjects(office) == []
    await falls(till, USD // 2)
    assert await subjects(office) == [CRITICAL]


async def test_a_fall_that_nobody_saw_is_told_by_the_next_who_looks_at_all(
    office: Office, postgres_url: str
) -> None:
    team = await founded(office)
    till = await opened_till(office, postgres_url, team.id)
    await till.gives(20 * USD)
    await till.calls(1, 12 * USD)
    await till.booked()
    await LowBalances(office.desk).look(Sight([], ["key:x@0"]))
    assert await subjects(office) == []
    await looks(office)
    assert await subjects(office) == [LOW]


async def test_only_what_moved_is_looked_at(office: Office, postgres_url: str) -> None:
    team, till = await stage(office, postgres_url)
    await till.calls(1, 12 * USD)
    await till.booked()
    observer = LowBalances(office.desk)
    await observer.look(Sight([UUID(int=1)], []))
    assert await subjects(office) == []
    await observer.look(Sight([UUID(team.id)], []))
    assert await subjects(office) == [LOW]


async def test_own_levels_are_told_of_ahead_of_the_others(
    office: Office, postgres_url: str
) -> None:
    team, till = await stage(office, postgres_url, 100 * USD)
    wanted = {"thresholds_nanos": [50 * USD, 200 * USD], "low_nanos": 30 * USD}
    assert (await team.owner.patch("/alerts/settings", wanted)).status == 200
    await looks(office)
    assert await subjects(office) == [], "who sets a level above the balance sees that"
    await falls(till, 40 * USD)
    await falls(till, 29 * USD)
    assert await subjects(office) == [LOW, LOW]
    told = (await team.owner.get("/alerts")).body["data"]
    assert [(one["kind"], one["facts"]["threshold_nanos"]) for one in told] == [
        ("balance.low", 30 * USD),
        ("balance.threshold", 50 * USD),
    ]


async def test_the_end_of_an_organization_ends_its_warnings(
    office: Office, postgres_url: str
) -> None:
    team, till = await stage(office, postgres_url)
    await till.calls(1, 12 * USD)
    await till.booked()
    ending = {"confirmation": "Acme", "forfeit_balance": True}
    assert (await team.owner.post("/organization/deletion", ending)).status in {200, 204}
    await looks(office)
    assert await subjects(office) == []
