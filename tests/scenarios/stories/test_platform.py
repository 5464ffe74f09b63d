"""A platform team: owners pay, developers build in projects, and programs do what people do."""

from typing import Any, NamedTuple

import pytest

from tests.gateway.management.receiver import Receiver, receiving
from tests.scenarios.stories.patience import until
from tests.scenarios.stories.people import MadeKey, Person, nanos_of
from tests.scenarios.stories.town import Town

pytestmark = pytest.mark.scenario


class Platform(NamedTuple):
    """Its owner, a program of hers, its admin and its developer."""

    ada: Person
    program: Person
    ben: Person
    dev: Person


async def test_a_platform_from_its_first_sign_up_to_its_last_warning(town: Town) -> None:
    acme = await people_come_together(town)
    search, ranking = await they_build_in_projects(acme)
    async with receiving() as receiver:
        hook = {"url": receiver.url, "events": ["budget.percent"]}
        await acme.dev.may_not("POST", "/webhooks", hook)
        secret = (await acme.ben.does("POST", "/webhooks", hook))["secret"]
        card = await the_owner_pays(town, acme, search, ranking)
        await they_are_warned(town, acme, receiver, secret)
    await it_outgrows_its_plan(acme, card)
    await owners_need_a_second_factor(acme)
    await it_tops_itself_up(town, acme)
    await a_project_ends(town, acme, search, ranking)
    await everything_is_told(town, acme)
    await the_organization_ends(town, acme)


async def people_come_together(town: Town) -> Platform:
    """A program founds it and invites. Three of them are one person's at most."""
    ada, ben, dev = await town.sign_up("Ada", "Ben", "Dev")
    scopes = ["organizations:write", "members:write", "projects:write", "keys:write"]
    program = await town.program(ada, scopes)
    there = await program.founds("Acme Cloud", "platform")
    for name in ("Second", "Third"):
        await program.founds(name, "platform")
    await program.may_not("POST", "/organizations", {"name": "Fourth"}, code="organizations_max")
    ben = await there.invites(ben, "admin")
    dev = await there.invites(dev, "member")

    assert await dev.sees_members() == {"Ada": "Owner", "Ben": "Admin", "Dev": "Developer"}
    await ben.may_not("POST", "/invitations", {"email": "otto@example.com"})
    devs = f"/members/{await ben.member_id(dev.email)}"
    await ben.may_not("PATCH", devs, {"role": "admin"})
    await there.does("PATCH", devs, {"role": "admin"})
    await there.does("PATCH", devs, {"role": "member"})
    return Platform(ada.at(there.organization_id), there, ben, dev)


async def they_build_in_projects(acme: Platform) -> tuple[Any, MadeKey]:
    """One is there from the beginning. Ten are the most. Each has its keys and its budget."""
    names = [one["name"] for one in (await acme.dev.sees("/projects"))["data"]]
    assert names == ["Default"]
    search = await acme.ben.does("POST", "/projects", {"name": "Search"})
    for number in range(8):
        await acme.program.does("POST", "/projects", {"name": f"Trial {number}"})
    await acme.ben.may_not("POST", "/projects", {"name": "One more"}, code="projects_max")
    await acme.dev.may_not("POST", "/projects", {"name": "Mine"})

    ranking = await acme.dev.makes_key("ranking", project_id=search["id"])
    weekly = {"budget_nanos": nanos_of(12), "budget_period": "weekly"}
    await acme.dev.may_not("PUT", f"/projects/{search['id']}/budget", weekly)
    await acme.ben.does("PUT", f"/projects/{search['id']}/budget", weekly)
    return search, ranking


async def the_owner_pays(town: Town, acme: Platform, search: Any, ranking: MadeKey) -> str:
    """A dollar is a credit, and only owners see how many there are. With which card."""
    card = await acme.ada.saves_card(owner="organization")
    least = {"amount_nanos": nanos_of(5), "method_id": card}
    await acme.ada.may_not("POST", "/purchases", least, code="amount_too_small")
    await acme.ada.buys(usd=20, card=card)
    assert await acme.ada.wallet() == "20.00 credits"
    await acme.ben.may_not("GET", "/wallet")
    await acme.ben.may_not("POST", "/purchases", {**least, "amount_nanos": nanos_of(20)})

    await town.calls(ranking.secret, usd=12)
    await acme.ada.sees_balance("8.00 credits")
    await town.warns(acme.ada, acme.ben, about="Low balance of Acme Cloud", of="8.00 credits left")
    await town.is_refused(ranking.secret, "budget_exceeded", usd=1)
    assert await acme.dev.sees_costs("project") == {search["name"]: 12}

    await town.gives(acme.ada, usd=4, because="the vendor was down")
    await acme.ada.sees_balance("12.00 credits")
    return card


async def they_are_warned(town: Town, acme: Platform, receiver: Receiver, secret: str) -> None:
    """Of the budget, by mail; and a program of theirs, by a signed message."""
    about = "100 % of a budget of Acme Cloud is spent"
    await town.warns(acme.ada, acme.ben, about=about, of="Search of Acme Cloud has spent 12.00")

    async def is_told() -> bool:
        return len(receiver.got) == 3

    await until(is_told)
    told = [one["data"] for one in receiver.verified(secret)]
    assert sorted(one["percent"] for one in told) == [80, 95, 100]
    assert {one["spent_nanos"] for one in told} == {nanos_of(12)}


async def it_outgrows_its_plan(acme: Platform, card: str) -> None:
    """Free is the plan of who chose none. A paid one is had at once, and no credits go for it."""
    assert (await acme.dev.sees("/plan"))["label"] == "Free"
    pro = {"plan": "pro", "billing": "yearly", "method_id": card}
    await acme.ben.may_not("POST", "/subscription", pro)
    await acme.ada.does("POST", "/subscription", pro)

    assert (await acme.dev.sees("/plan"))["label"] == "Pro"
    await acme.ben.does("POST", "/projects", {"name": "One more"})
    assert await acme.ada.wallet() == "12.00 credits"


async def owners_need_a_second_factor(acme: Platform) -> None:
    """From the moment that the policy says so."""
    await acme.ada.does("PATCH", "/policy", {"switches": {"owners_need_second_factor": True}})
    await acme.ada.may_not("GET", "/wallet", code="second_factor_required")
    await acme.ada.sets_up_one_time_passwords()

    assert await acme.ada.wallet() == "12.00 credits"


async def it_tops_itself_up(town: Town, acme: Platform) -> None:
    """Below ten credits, by fifty, as its owner has set it up, with the organization's card."""
    spare = await acme.dev.makes_key("spare")
    await acme.ben.may_not("PUT", "/auto-top-up", {"is_enabled": True})
    await acme.ada.does("PUT", "/auto-top-up", {"is_enabled": True})
    await town.calls(spare.secret, usd=3)

    await acme.ada.sees_balance("59.00 credits")


async def a_project_ends(town: Town, acme: Platform, search: Any, ranking: MadeKey) -> None:
    """And its keys with it."""
    await acme.dev.may_not("POST", f"/projects/{search['id']}/archive")
    await acme.ada.does("POST", f"/projects/{search['id']}/archive")

    await town.is_refused(ranking.secret, "invalid_api_key")


async def everything_is_told(town: Town, acme: Platform) -> None:
    """What was done stands in the log, and what was spent in the books."""
    done = await acme.ada.audit()

    assert done["member.role"] == [acme.ada.email, acme.ada.email], "her program acts as herself"
    assert done["policy.update"] == done["project.archive"] == [acme.ada.email]
    await town.is_whole(acme.ada)


async def the_organization_ends(town: Town, acme: Platform) -> None:
    """When its name is typed, and what is left is given up."""
    last = await acme.dev.makes_key("last")
    await town.works(last.secret)
    path, typed = "/organization/deletion", {"confirmation": "Acme Cloud"}
    await acme.ben.may_not("POST", path, typed)
    await acme.ada.may_not("POST", path, {"confirmation": "Acme"}, code="not_confirmed")
    await acme.ada.may_not("POST", path, typed, code="balance_left")
    await acme.ada.does("POST", path, {**typed, "forfeit_balance": True})

    await town.is_refused(last.secret, "invalid_api_key")
    await acme.ada.may_not("GET", "/organization", code="organization_not_found")
    await town.is_whole()
