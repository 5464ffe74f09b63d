"""An open team: everybody sees the bill and pays some of it, and every call is somebody's."""

from typing import NamedTuple

import pytest

from tests.scenarios.stories.people import MadeKey, Person, nanos_of
from tests.scenarios.stories.town import Town

pytestmark = pytest.mark.scenario


class Lab(NamedTuple):
    """Its owner, its admin and its member, who has an account of her own."""

    ada: Person
    ben: Person
    mia: Person
    mia_at_home: Person


async def test_an_open_team_from_its_first_sign_up_to_its_last_warning(town: Town) -> None:
    lab = await people_come_together(town)
    await everybody_sees_what_there_is(lab)
    batch = await calls_are_their_callers(town, lab)
    late = await they_are_warned(town, lab)
    await it_tops_itself_up(town, lab, late)
    await ben_steps_back(town, lab, batch)
    await everything_is_told(town, lab)


async def people_come_together(town: Town) -> Lab:
    """Who makes a lab owns it. Who is invited comes as what the mail says."""
    ada, ben, at_home = await town.sign_up("Ada", "Ben", "Mia")
    ada = await ada.founds("Open Lab", "open-team")
    ben = await ada.invites(ben, "admin")
    mia = await ada.invites(at_home, "member")

    assert await mia.sees_members() == {"Ada": "Owner", "Ben": "Admin", "Mia": "Member"}
    return Lab(ada, ben, mia, at_home)


async def everybody_sees_what_there_is(lab: Lab) -> None:
    """The balance and what made it; what Mia pays with, and has at home, is nobody's but hers."""
    card = await lab.mia.saves_card()
    await lab.mia.buys(usd=30, card=card)

    for person in (lab.ada, lab.ben, lab.mia):
        assert await person.wallet() == "30.00 USD"
        (line,) = (await person.sees("/transactions"))["data"]
        assert (line["kind"], line["actor"]) == ("payment", lab.mia.email)
    assert await lab.mia_at_home.wallet() == "0.00 credits"
    assert [one["id"] for one in (await lab.mia.sees("/payment-methods"))["data"]] == [card]
    assert [one["charged"] for one in (await lab.mia.sees("/invoices"))["data"]] == [30_00]
    for person in (lab.ada, lab.ben):
        assert (await person.sees("/payment-methods"))["data"] == []
        assert (await person.sees("/invoices"))["data"] == []
    wanted = {"amount_nanos": nanos_of(10), "method_id": card}
    await lab.ada.may_not("POST", "/purchases", wanted, code="payment_method_not_found")


async def calls_are_their_callers(town: Town, lab: Lab) -> MadeKey:
    """Admins make keys, and whoever is given the right to. Each call costs the lab."""
    batch = await lab.ben.makes_key("batch")
    await lab.mia.may_not("POST", "/api-keys", {"name": "mine"})
    place = f"/members/{await lab.ben.member_id(lab.mia.email)}"
    await lab.mia.may_not("PATCH", place, {"grants": ["key.create"]})
    await lab.ben.does("PATCH", place, {"grants": ["key.create"]})
    mias = await lab.mia.makes_key("mine")
    await lab.mia.may_not("DELETE", f"/api-keys/{batch.id}", code="not_your_key")

    await town.calls(batch.secret, usd=10)
    await town.calls(mias.secret, usd=5)

    await lab.mia.sees_balance("15.00 USD")
    assert await lab.mia.sees_costs("member") == {lab.ben.email: 10, lab.mia.email: 5}
    return batch


async def ben_steps_back(town: Town, lab: Lab, batch: MadeKey) -> None:
    """What a member may not do, he may not do from then on; his key is still his."""
    bens = f"/members/{await lab.ada.member_id(lab.ben.email)}"
    await lab.ada.does("PATCH", bens, {"role": "member"})

    await lab.ben.may_not("POST", "/invitations", {"email": "otto@example.com"})
    await lab.ben.may_not("POST", "/api-keys", {"name": "another"})
    await town.works(batch.secret)
    await lab.ada.does("DELETE", f"/api-keys/{batch.id}")
    await town.is_refused(batch.secret, "invalid_api_key")


async def they_are_warned(town: Town, lab: Lab) -> MadeKey:
    """Owners and admins are; members see it for themselves."""
    late = await lab.mia.makes_key("late")
    await town.calls(late.secret, usd=6)

    await town.warns(lab.ada, lab.ben, about="Low balance of Open Lab", of="9.00 USD left")
    assert await lab.mia.wallet() == "9.00 USD"
    return late


async def it_tops_itself_up(town: Town, lab: Lab, late: MadeKey) -> None:
    """Below $10, by $50, once an owner or admin has set it up; it takes one card's word for it."""
    await lab.mia.saves_card()
    await lab.mia.may_not("PUT", "/auto-top-up", {"is_enabled": True})
    card = await lab.ada.saves_card(owner="organization")
    terms = await lab.ben.does("PUT", "/auto-top-up", {"is_enabled": True, "method_id": card})
    assert (terms["threshold_nanos"], terms["amount_nanos"]) == (nanos_of(10), nanos_of(50))
    await town.calls(late.secret, usd=1)

    await lab.mia.sees_balance("58.00 USD")
    newest, _ = (await lab.mia.sees("/transactions"))["data"]
    assert (newest["kind"], newest["actor"]) == ("payment", "auto top-up")
    await town.warns(lab.ada, lab.ben, about="Top-up: Open Lab", of="50.00 USD were bought")


async def everything_is_told(town: Town, lab: Lab) -> None:
    """What was done stands in the log, and what was spent in the books."""
    await lab.mia.may_not("GET", "/audit-log")
    done = await lab.ada.audit()

    assert done["key.create"] == [lab.mia.email, lab.mia.email, lab.ben.email]
    assert done["key.revoke"] == [lab.ada.email]
    await town.is_whole(lab.ada)
