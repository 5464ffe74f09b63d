"""Auto top-up over HTTP: who configures it, with what, and what it says."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.management.office import Office
from tests.gateway.management.team import Team, founded
from tests.gateway.management.till import method_of, open_till, tops_up

USD = 10**9


@pytest.fixture
async def office(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Office]:
    async with open_till(postgres_url, redis_url, tmp_path) as opened:
        yield opened


@pytest.fixture
async def team(office: Office) -> Team:
    return await founded(office)


async def test_it_is_off_and_charges_fifty_below_ten_once_it_is_on(team: Team) -> None:
    off = (await team.owner.get("/auto-top-up")).body
    assert (off["is_enabled"], off["version"]) == (False, 0)
    assert (off["threshold_nanos"], off["amount_nanos"]) == (10 * USD, 50 * USD)
    assert off["display"]["amounts"]["amount"] == "50,000"
    method = await method_of(team.owner, owner="organization")
    on = (await tops_up(team.owner)).body
    assert (on["threshold_nanos"], on["amount_nanos"], on["monthly_max_nanos"]) == (
        10 * USD,
        50 * USD,
        None,
    )
    assert (on["method_id"], on["paid_by"]) == (method, "organization")
    assert on["configured_by"] == "ada@example.com"
    (line,) = await team.audited("auto_top_up.configure")
    assert (line["before"]["is_enabled"], line["after"]["is_enabled"]) == (False, True)


@pytest.mark.parametrize("preset", ["studio", "pooled", "open-team"])
async def test_owners_and_admins_configure_it_and_members_never(
    office: Office, preset: str
) -> None:
    team = await founded(office, preset)
    cast = await team.cast()
    for role, status in (("owner", 200), ("admin", 200), ("member", 403)):
        await method_of(cast[role])
        assert (await tops_up(cast[role])).status == status, role
    await team.switched(permissions={"auto_top_up.manage": "members"})
    got = await tops_up(cast["member"])
    assert (got.status, got.code) == (403, "owners_and_admins_only"), "whatever the policy says"


async def test_without_a_method_there_is_nothing_to_charge(team: Team) -> None:
    got = await tops_up(team.owner)
    assert (got.status, got.code) == (409, "no_payment_method")
    bob = await team.joined("bob@example.com", "admin")
    private = await method_of(bob)
    got = await tops_up(team.owner, private)
    assert (got.status, got.code) == (404, "payment_method_not_found")


@pytest.mark.parametrize(
    "terms",
    [
        {"amount_nanos": 9 * USD},
        {"amount_nanos": 50 * USD + 1},
        {"threshold_nanos": 0},
        {"monthly_max_nanos": 49 * USD},
        {"is_enabled": None},
        {"period": "week"},
    ],
)
async def test_flawed_terms_are_refused(team: Team, terms: dict[str, Any]) -> None:
    await method_of(team.owner, owner="organization")
    assert (await tops_up(team.owner, **terms)).status == 400


async def test_whoever_changes_an_older_version_is_told(team: Team) -> None:
    await method_of(team.owner, owner="organization")
    wanted = {"is_enabled": True}

    async def puts(version: int) -> int:
        headers = {"If-Match": f'"{version}"'}
        return (await team.owner.put("/auto-top-up", wanted, headers=headers)).status

    assert await puts(3) == 412, "nothing is configured"
    assert [await puts(0), await puts(0), await puts(1), await puts(1)] == [200, 412, 200, 412]


async def test_with_its_method_removed_it_is_off(team: Team) -> None:
    method = await method_of(team.owner, owner="organization")
    await tops_up(team.owner)
    await team.owner.delete(f"/payment-methods/{method}")
    view = (await team.owner.get("/auto-top-up")).body
    assert (view["is_enabled"], view["trouble"]) == (False, "its payment method was removed")
