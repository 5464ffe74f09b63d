"""A game studio: owners and admins run it and are warned, everybody else uses what there is."""

from typing import NamedTuple

import pytest

from tests.scenarios.stories.people import MadeKey, Person, nanos_of
from tests.scenarios.stories.town import Town

pytestmark = pytest.mark.scenario


class Studio(NamedTuple):
    """Its owner, its admin and its member."""

    ada: Person
    ben: Person
    mia: Person


async def test_a_studio_from_its_first_sign_up_to_its_last_warning(town: Town) -> None:
    studio = await people_come_together(town)
    dungeon, mias = await they_share_a_key(town, studio)
    await they_spend_what_the_studio_has(town, studio, mias)
    await the_key_is_rotated(town, studio, dungeon, mias)
    await they_are_warned(town, studio)
    await mia_goes(town, studio, dungeon)
    await the_owner_goes(studio)
    await it_gets_critical(town, studio, dungeon)
    await everything_is_told(town, studio)


async def people_come_together(town: Town) -> Studio:
    """Who makes a studio owns it. Who is invited comes as what the mail says."""
    ada, ben, mia = await town.sign_up("Ada", "Ben", "Mia")
    ada = await ada.founds("Pixel Forge", "studio", description="games")
    await ada.does("PATCH", "/organization", {"description": "Games with dwarves in them"})
    ben = await ada.invites(ben, "admin")
    mia = await ben.invites(mia, "member")

    assert await mia.sees_members() == {"Ada": "Owner", "Ben": "Admin", "Mia": "Member"}
    owner = {"email": "otto@example.com", "role": "owner"}
    await ben.may_not("POST", "/invitations", owner, code="owners_only")
    await mia.may_not("POST", "/invitations", {"email": "otto@example.com"})
    await mia.may_not("PATCH", "/organization", {"name": "Mia's"})
    return Studio(ada, ben, mia)


async def they_share_a_key(town: Town, studio: Studio) -> tuple[MadeKey, str]:
    """An admin makes it, for one model. Everybody uses it, with a secret of their own."""
    _, ben, mia = studio
    dungeon = await ben.makes_key("dungeon", default_model="writer")
    await mia.may_not("POST", "/api-keys", {"name": "mine"})
    await mia.may_not("DELETE", f"/api-keys/{dungeon.id}")
    mias = await mia.reveals(dungeon)

    assert mias != dungeon.secret
    await town.is_refused(mias, "insufficient_credit", usd=1)
    return dungeon, mias


async def they_spend_what_the_studio_has(town: Town, studio: Studio, mias: str) -> None:
    """The studio counts in game points. Members use them and see no bill, but what calls cost."""
    _, ben, mia = studio
    await mia.may_not("POST", "/purchases", {"amount_nanos": nanos_of(15)})
    await ben.buys(usd=15, card=await ben.saves_card())
    assert await ben.wallet() == "15,000 GP"
    await mia.may_not("GET", "/wallet")
    await mia.may_not("GET", "/transactions")
    (line,) = (await studio.ada.sees("/transactions"))["data"]
    assert (line["kind"], line["actor"]) == ("payment", ben.email)

    told = await town.calls(mias, usd=4, model="default")

    assert told.model == "writer", "the key knows which model it is for"
    await ben.sees_balance("11,000 GP")
    assert await mia.sees_costs("member") == {mia.email: 4}


async def the_key_is_rotated(town: Town, studio: Studio, dungeon: MadeKey, mias: str) -> None:
    """Whatever was shown before is refused; it is the same key, and members reveal theirs again."""
    _, ben, mia = studio
    path = f"/api-keys/{dungeon.id}/rotation"
    await mia.may_not("POST", path, {"grace_s": 0})
    rotated = await ben.does("POST", path, {"grace_s": 0})
    await town.is_refused(dungeon.secret, "invalid_api_key")
    await town.is_refused(mias, "invalid_api_key")

    await town.calls(rotated["secret"], usd=1)
    await town.calls(await mia.reveals(dungeon), usd=1)
    await ben.sees_balance("9,000 GP")


async def they_are_warned(town: Town, studio: Studio) -> None:
    """Owners and admins are, below 10,000 GP, and members are not."""
    ada, ben, mia = studio
    await town.warns(ada, ben, about="Low balance of Pixel Forge", of="9,000 GP left")
    await mia.may_not("GET", "/alerts")
    assert [one["kind"] for one in (await ben.sees("/alerts"))["data"]] == ["balance.low"]


async def mia_goes(town: Town, studio: Studio, dungeon: MadeKey) -> None:
    """Her secret goes with her, and the key stays."""
    _, ben, mia = studio
    mias, bens = await mia.reveals(dungeon), await ben.reveals(dungeon)
    await ben.does("DELETE", f"/members/{await ben.member_id(mia.email)}")

    await town.is_refused(mias, "invalid_api_key")
    await mia.may_not("GET", "/api-keys", code="organization_not_found")
    await town.calls(bens, usd=1)
    await ben.sees_balance("8,000 GP")


async def the_owner_goes(studio: Studio) -> None:
    """Not before there is another one."""
    ada, ben, _ = studio
    await ben.may_not("POST", "/organization/deletion", {"confirmation": "Pixel Forge"})
    await ada.may_not("POST", "/membership/departure", code="last_owner")
    await ada.does("PATCH", f"/members/{await ada.member_id(ben.email)}", {"role": "owner"})
    await ada.does("POST", "/membership/departure")

    assert await ben.sees_members() == {"Ben": "Owner"}


async def it_gets_critical(town: Town, studio: Studio, dungeon: MadeKey) -> None:
    """Below 1,000 GP. Who has left hears nothing of it."""
    _, ben, _ = studio
    await town.calls(await ben.reveals(dungeon), usd=7.5)

    await town.warns(ben, about="Critical balance of Pixel Forge", of="500 GP left")


async def everything_is_told(town: Town, studio: Studio) -> None:
    """What was done stands in the log, and what was spent in the books."""
    ada, ben, mia = studio
    done = await ben.audit()

    assert done["key.reveal"] == [ben.email, mia.email, mia.email]
    assert done["key.rotate"] == done["member.remove"] == [ben.email]
    assert done["member.role"] == done["member.leave"] == [ada.email]
    assert await ben.sees_costs("member") == {mia.email: 5, ben.email: 9.5}
    await town.is_whole(ben)
