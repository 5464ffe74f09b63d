"""A company that pools its credits: admins buy and decide, everybody makes keys of their own."""

from typing import NamedTuple

import pytest

from tests.scenarios.stories.people import MadeKey, Person, nanos_of
from tests.scenarios.stories.town import Town

pytestmark = pytest.mark.scenario


class Hive(NamedTuple):
    """Two admins and two members. Mia has an account of her own, as everybody has."""

    ada: Person
    ben: Person
    mia: Person
    max: Person
    mia_at_home: Person


class Keys(NamedTuple):
    """A member's, an admin's, and one that is no business of theirs."""

    research: MadeKey
    production: MadeKey
    at_home: MadeKey


async def test_a_pool_from_its_first_sign_up_to_its_last_warning(town: Town) -> None:
    await nobody_founds_anything_without_an_address(town)
    hive = await people_come_together(town)
    keys = await everybody_makes_keys(hive)
    await credits_come_in(town, hive)
    await they_are_spent(town, hive, keys)
    await admins_decide(town, hive, keys)
    await mia_leaves(town, hive, keys)
    await they_are_warned(town, hive, keys)
    await everything_is_told(town, hive)


async def nobody_founds_anything_without_an_address(town: Town) -> None:
    """Whoever has not opened the link cannot even sign in."""
    zoe = await town.stranger("Zoe")
    await zoe.signs_up()
    await zoe.may_not("POST", "/session", zoe.password, code="email_not_verified")


async def people_come_together(town: Town) -> Hive:
    """There are admins and members, and nobody reads of anything else."""
    ada, ben, at_home, max_ = await town.sign_up("Ada", "Ben", "Mia", "Max")
    ada = await ada.founds("Hive", "pooled")
    ben = await ada.invites(ben, "admin")
    mia = await ada.invites(at_home, "member")
    max_ = await ben.invites(max_, "member")

    roles = {"Ada": "Admin", "Ben": "Admin", "Mia": "Member", "Max": "Member"}
    assert await max_.sees_members() == roles
    names = [one["name"] for one in (await mia.sees("/organizations"))["data"]]
    assert names == ["Mia", "Hive"], "she has both, and switches between them"
    return Hive(ada, ben, mia, max_, at_home)


async def everybody_makes_keys(hive: Hive) -> Keys:
    """Members look after their own, admins after all of them. All are there to be used."""
    research = await hive.mia.makes_key("mia-research")
    production = await hive.ben.makes_key("prod-backend")
    listed = {one["name"]: one["maker"] for one in (await hive.max.sees("/api-keys"))["data"]}
    assert listed == {"mia-research": hive.mia.email, "prod-backend": hive.ben.email}
    path = f"/api-keys/{research.id}"
    await hive.max.may_not("PATCH", path, {"name": "x"}, code="not_your_key")
    await hive.mia.does("PATCH", path, {"description": "papers"})

    # Mia may not spend more than that in a month, with whichever key.
    monthly = {"budget_nanos": nanos_of(7), "budget_period": "monthly"}
    mias = f"/members/{await hive.ada.member_id(hive.mia.email)}/budget"
    await hive.mia.may_not("PUT", mias, monthly)
    await hive.ada.does("PUT", mias, monthly)
    return Keys(research, production, await hive.mia_at_home.makes_key("mine alone"))


async def credits_come_in(town: Town, hive: Hive) -> None:
    """Admins buy. Members see no bill; what they have at home goes over by the operator only."""
    card = await hive.ada.saves_card(owner="organization")
    await hive.ben.buys(usd=20, card=card)
    await hive.mia.may_not("POST", "/purchases", {"amount_nanos": nanos_of(20)})
    await hive.mia.may_not("POST", "/payment-methods", {"kind": "card", "owner": "organization"})
    await hive.mia.may_not("GET", "/billing")
    await hive.ben.does("PATCH", "/billing", {"contacts": ["books@example.com"]})
    await hive.mia_at_home.buys(usd=10, card=await hive.mia_at_home.saves_card())
    await hive.mia.may_not("GET", "/wallet")
    transfer = {"amount_nanos": nanos_of(5), "reason": "from home"}
    await hive.mia.may_not("POST", "/transfers", transfer)
    await hive.ada.may_not("POST", "/transfers", transfer, code="transfers_not_self_service")
    await town.transfers(hive.mia_at_home, hive.ada, usd=5)

    assert await hive.ada.wallet() == "25.00 USD"
    assert await hive.mia_at_home.wallet() == "5.00 credits"


async def they_are_spent(town: Town, hive: Hive, keys: Keys) -> None:
    """What the pool's keys cost is the pool's. Everybody sees whose calls, and nothing of them."""
    await town.calls(keys.research.secret, usd=6)
    await town.calls(keys.production.secret, usd=2)
    await town.calls(keys.at_home.secret, usd=1)
    await hive.ada.sees_balance("17.00 USD")
    await hive.mia_at_home.sees_balance("4.00 credits")

    assert await hive.max.sees_costs("member") == {hive.mia.email: 6, hive.ben.email: 2}
    of_one = f"&key_id={keys.production.id}"
    assert await hive.max.sees_costs("member", of_one) == {hive.ben.email: 2}
    assert town.question not in str(await hive.max.sees("/usage?by=model"))

    await town.is_refused(keys.research.secret, "budget_exceeded", usd=2)
    await town.calls(keys.research.secret, usd=1)
    await hive.ada.sees_balance("16.00 USD")


async def admins_decide(town: Town, hive: Hive, keys: Keys) -> None:
    """An admin stops a member's key. Ten are in the hive at most, or as the operator says."""
    path = f"/api-keys/{keys.research.id}"
    await hive.ben.does("POST", f"{path}/disable")
    await town.is_refused(keys.research.secret, "invalid_api_key")
    await hive.mia.may_not("POST", f"{path}/enable", code="disabled_by_another")
    await hive.ben.does("POST", f"{path}/enable")
    await town.works(keys.research.secret)

    await hive.mia.may_not("PATCH", "/privacy", {"log_days": 1})
    await hive.ben.does("PATCH", "/privacy", {"log_days": 1})

    for number in range(6):
        await hive.ada.does("POST", "/invitations", {"email": f"bee{number}@example.com"})
    eleventh = {"email": "bee6@example.com"}
    await hive.ada.may_not("POST", "/invitations", eleventh, code="members_max")
    await town.operates(hive.ada, {"limits": {"members_max": 11}})
    await hive.ada.does("POST", "/invitations", eleventh)


async def mia_leaves(town: Town, hive: Hive, keys: Keys) -> None:
    """What was hers in the hive ends; what she has at home stays."""
    await hive.mia.does("POST", "/membership/departure")

    await town.is_refused(keys.research.secret, "invalid_api_key")
    await hive.mia.may_not("GET", "/api-keys", code="organization_not_found")
    await town.calls(keys.at_home.secret, usd=1)
    await hive.mia_at_home.sees_balance("3.00 credits")


async def they_are_warned(town: Town, hive: Hive, keys: Keys) -> None:
    """Both admins are, whichever role they have inside. A level of the hive's own comes first."""
    await hive.max.may_not("PATCH", "/alerts/settings", {"thresholds_nanos": [nanos_of(15)]})
    await hive.ben.does("PATCH", "/alerts/settings", {"thresholds_nanos": [nanos_of(15)]})
    await town.calls(keys.production.secret, usd=2)
    early = "14.00 USD left, which is below 15.00 USD"
    await town.warns(hive.ada, hive.ben, about="Low balance of Hive", of=early)

    await town.calls(keys.production.secret, usd=13.5)
    await town.warns(hive.ada, hive.ben, about="Critical balance of Hive", of="0.50 USD left")


async def everything_is_told(town: Town, hive: Hive) -> None:
    """What was done stands in the log, and what was spent in the books."""
    done = await hive.ada.audit()

    assert done["member.leave"] == [hive.mia.email]
    assert done["key.disable"] == done["key.enable"] == [hive.ben.email]
    assert done["privacy.update"] == [hive.ben.email]
    await town.is_whole(hive.ada)
