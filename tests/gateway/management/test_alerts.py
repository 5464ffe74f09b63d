"""An alert is given once, listed to owners and admins, and mailed to those who want that."""

import asyncio
from uuid import UUID

from gateway.management.alerts import Alert, AlertKind, give
from tests.gateway.management.office import Office
from tests.gateway.management.team import founded

FACTS = {"balance_nanos": 9_000_000_000, "threshold_nanos": 10_000_000_000}


def alert(organization_id: str, subject: str = "one", mail: str | None = "balance") -> Alert:
    return Alert(UUID(organization_id), AlertKind.BALANCE_LOW, subject, FACTS, mail)


async def given(office: Office, *alerts: Alert) -> int:
    async with office.pool.acquire() as connection, connection.transaction():
        return await give(connection, office.desk, alerts)


async def told(office: Office, email: str) -> int:
    return sum("balance" in mail["subject"] for mail in await office.mails_to(email))


async def test_what_many_notice_at_once_is_given_once(office: Office) -> None:
    team = await founded(office)
    counts = await asyncio.gather(*(given(office, alert(team.id)) for _ in range(10)))
    assert sorted(counts) == [0] * 9 + [1]
    assert await given(office, alert(team.id), alert(team.id, "two")) == 1
    assert await told(office, "ada@example.com") == 2


async def test_an_alert_and_its_mails_come_to_nothing_together(office: Office) -> None:
    team = await founded(office)
    async with office.pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        assert await give(connection, office.desk, [alert(team.id)]) == 1
        await transaction.rollback()
    assert await told(office, "ada@example.com") == 0
    assert await given(office, alert(team.id)) == 1


async def test_the_list_has_the_newest_first_page_by_page(office: Office) -> None:
    team = await founded(office)
    for number in range(5):
        await given(office, alert(team.id, str(number), None))
    first = (await team.owner.get("/alerts?limit=3")).body
    second = (await team.owner.get(f"/alerts?limit=3&cursor={first['next_cursor']}")).body
    rows = first["data"] + second["data"]
    assert len({row["id"] for row in rows}) == 5
    assert [row["fired_at"] for row in rows] == sorted(
        (row["fired_at"] for row in rows), reverse=True
    )
    assert rows[0]["facts"] == FACTS
    assert second["next_cursor"] is None
    assert (await team.owner.get("/alerts?kind=webhook.disabled")).body["data"] == []
    assert (await team.owner.get("/alerts?cursor=AA")).code == "invalid_cursor"


async def test_each_organization_sees_and_hears_of_its_own_alone(office: Office) -> None:
    team = await founded(office)
    other = await founded(office, email="bob@example.com")
    await given(office, alert(team.id))
    assert (await other.owner.get("/alerts")).body["data"] == []
    assert await told(office, "bob@example.com") == 0
    member = await team.joined("eve@example.com")
    assert (await member.get("/alerts")).status == 403


async def test_who_wants_no_mails_has_none_of_this_organization(office: Office) -> None:
    team = await founded(office)
    admin = await team.joined("bob@example.com", "admin")
    path = "/alerts/subscription"
    assert (await admin.get(path)).body == {"by_mail": True}
    assert (await admin.patch(path, {"by_mail": False})).body == {"by_mail": False}
    await given(office, alert(team.id))
    assert (await told(office, "bob@example.com"), await told(office, "ada@example.com")) == (0, 1)
    assert (await admin.patch(path, {"by_mail": True})).body == {"by_mail": True}
    await given(office, alert(team.id, "two"))
    assert await told(office, "bob@example.com") == 1


async def test_a_member_who_is_gone_hears_nothing_more(office: Office) -> None:
    team = await founded(office)
    await team.joined("bob@example.com", "admin")
    gone = await team.owner.delete(f"/members/{await team.member_id('bob@example.com')}")
    assert gone.status in {200, 204}, gone
    await given(office, alert(team.id))
    assert await told(office, "bob@example.com") == 0


async def test_names_are_no_markup(office: Office) -> None:
    team = await founded(office)
    await team.owner.patch("/organization", {"name": "<script>"})
    await given(office, alert(team.id))
    mail = (await office.mails_to("ada@example.com"))[-1]
    assert "&lt;script&gt;" in mail["html"]
    assert "<script>" not in mail["html"]
