"""What becomes of a member who goes: their keys, their place, their return; over HTTP."""

from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from gateway.auth import Authenticator
from gateway.credential import AuthError
from gateway.management import api_keys, known_keys
from tests.gateway.management.office import Office
from tests.gateway.management.team import (
    Team,
    founded,
    key_of,
    newcomer,
    with_token,
)
from tests.gateway.tenancy import Lookups, Tenancy, authenticating, digest_of, until


@pytest.fixture
async def gateway(office: Office) -> AsyncIterator[Authenticator]:
    stage = Tenancy(office.pool, office.redis)
    async with authenticating(stage, Lookups(office.pool)) as authenticator:
        yield authenticator


async def _works(gateway: Authenticator, key: str) -> bool:
    try:
        await gateway.principal(f"Bearer {key}")
    except AuthError:
        return False
    return True


async def _owner_of(gateway: Authenticator, key: str) -> str:
    return (await gateway.principal(f"Bearer {key}")).member_id


async def _refused_soon(gateway: Authenticator, *keys: str) -> None:
    async def are_refused() -> bool:
        return not any([await _works(gateway, key) for key in keys])

    await until(are_refused, within_s=1.0)


async def _goes(team: Team, email: str, how: str) -> None:
    member_id = await team.member_id(email)
    if how == "removed":
        assert (await team.owner.delete(f"/members/{member_id}")).status == 204
        return
    browser = team.office.stranger()
    await browser.signs_in(email)
    assert (await browser.at(team.id).post("/membership/departure")).status == 204


@pytest.mark.parametrize("how", ["removed", "left"])
async def test_the_keys_of_who_goes_end_within_a_second_and_nobody_elses(
    office: Office, gateway: Authenticator, how: str
) -> None:
    team = await founded(office)
    await team.joined("bob@example.com")
    bob, ada = [await team.member_id(f"{one}@example.com") for one in ("bob", "ada")]
    gone = [await key_of(office, team.id, bob) for _ in range(3)]
    kept = await key_of(office, team.id, ada)
    assert all([await _works(gateway, key) for key in (*gone, kept)])
    await _goes(team, "bob@example.com", how)
    await _refused_soon(gateway, *gone)
    assert await _works(gateway, kept)
    (line,) = await team.audited(f"member.{'remove' if how == 'removed' else 'leave'}")
    assert len(line["after"]["keys"]) == 3
    assert line["after"]["keys_handed_to"] is None


async def _heir_knows(gateway: Authenticator, key: str, heir: str) -> None:
    async def is_theirs() -> bool:
        return await _owner_of(gateway, key) == heir

    await until(is_theirs, within_s=1.0)


async def test_keys_that_are_handed_over_work_on_for_who_removed_their_owner(
    office: Office, gateway: Authenticator
) -> None:
    team = await founded(office)
    await team.switched(keys_of_leavers="hand_over")
    kim = await team.joined("kim@example.com", "admin")
    await team.joined("bob@example.com")
    bob, heir = [await team.member_id(f"{one}@example.com") for one in ("bob", "kim")]
    key = await key_of(office, team.id, bob)
    assert await _owner_of(gateway, key) == bob
    assert (await kim.delete(f"/members/{bob}")).status == 204
    await _heir_knows(gateway, key, heir)


@pytest.mark.parametrize("how", ["left", "removed by a token", "removed themself"])
async def test_keys_that_nobodys_hands_took_go_to_the_oldest_owner(
    office: Office, gateway: Authenticator, how: str
) -> None:
    team = await founded(office)
    await team.switched(keys_of_leavers="hand_over")
    bob_there = await team.joined("bob@example.com", "admin")
    await team.joined("kim@example.com", "owner")
    bob, ada = [await team.member_id(f"{one}@example.com") for one in ("bob", "ada")]
    key = await key_of(office, team.id, bob)
    if how == "left":
        got = await bob_there.post("/membership/departure")
    elif how == "removed themself":
        got = await bob_there.delete(f"/members/{bob}")
    else:
        program = await with_token(office, ["members:write"], organization=(team.id, "owner"))
        got = await program.delete(f"/members/{bob}")
    assert got.status == 204
    await _heir_knows(gateway, key, ada)


async def test_a_key_made_while_its_member_was_being_removed_never_works(
    office: Office, gateway: Authenticator
) -> None:
    team = await founded(office)
    await team.joined("bob@example.com")
    bob = await team.member_id("bob@example.com")
    await _goes(team, "bob@example.com", "removed")
    assert not await _works(gateway, await key_of(office, team.id, bob))


async def test_the_place_of_who_goes_is_gone_at_once_for_every_session_and_token(
    office: Office,
) -> None:
    team = await founded(office)
    at_work = await team.joined("bob@example.com", "admin")
    at_home = office.stranger()
    await at_home.signs_in("bob@example.com")
    program = await with_token(office, ["members:write"], person_of="bob@example.com")
    places = [at_work, at_home.at(team.id), program.at(team.id)]
    for place in places:
        assert (await place.get("/members")).status == 200
    await _goes(team, "bob@example.com", "removed")
    for place in places:
        assert (await place.get("/members")).code == "organization_not_found"
    assert (await at_home.get("/session")).status == 200  # they are still who they are
    names = [row["name"] for row in (await at_home.get("/organizations")).body["data"]]
    assert names == ["Bob"]


async def test_the_organizations_tokens_that_a_leaver_made_end_too(office: Office) -> None:
    team = await founded(office)
    await team.joined("bob@example.com", "admin")
    place = (team.id, "admin")
    bobs, adas = [
        await with_token(office, ["members:read"], organization=place, created_by=email)
        for email in ("bob@example.com", "ada@example.com")
    ]
    assert (await bobs.get("/members")).status == 200
    await _goes(team, "bob@example.com", "removed")
    assert (await bobs.get("/members")).status == 401
    assert (await adas.get("/members")).status == 200


async def test_who_comes_back_is_the_same_member_with_the_new_role_and_no_old_key(
    office: Office, gateway: Authenticator
) -> None:
    team = await founded(office)
    bob = await newcomer(office, "bob@example.com")
    await team.joins(bob, "bob@example.com", "admin")
    before = (await team.members())["bob@example.com"]
    key = await key_of(office, team.id, before["id"])
    await _goes(team, "bob@example.com", "left")
    assert (await team.owner.get(f"/members/{before['id']}")).status == 404
    await team.joins(bob, "bob@example.com", "member")
    after = (await team.members())["bob@example.com"]
    assert (after["id"], after["joined_at"]) == (before["id"], before["joined_at"])
    assert (after["role"], after["version"]) == ("member", before["version"] + 2)
    await _refused_soon(gateway, key)


async def test_the_personal_account_of_who_goes_stays_as_it_was(
    office: Office, gateway: Authenticator
) -> None:
    team = await founded(office)
    bob = await newcomer(office, "bob@example.com")
    await team.joins(bob, "bob@example.com")
    account = (await bob.get("/organization")).body
    (himself,) = (await bob.get("/members")).body["data"]
    own = await key_of(office, account["id"], himself["id"])
    shared = await key_of(office, team.id, await team.member_id("bob@example.com"))
    await _goes(team, "bob@example.com", "removed")
    await _refused_soon(gateway, shared)
    assert await _works(gateway, own)
    assert (await bob.get("/organization")).body == account


async def test_the_invitations_a_leaver_sent_stay_open(office: Office) -> None:
    team = await founded(office)
    bob = await team.joined("bob@example.com", "admin")
    secret = await team.invited("eve@example.com", by=bob)
    await _goes(team, "bob@example.com", "left")
    eve = await newcomer(office, "eve@example.com")
    assert (await eve.post("/invitations/acceptance", {"secret": secret})).status == 200


async def test_a_key_that_is_revoked_already_is_handed_to_nobody(office: Office) -> None:
    team = await founded(office)
    await team.switched(keys_of_leavers="hand_over")
    await team.joined("bob@example.com")
    bob = await team.member_id("bob@example.com")
    text = await key_of(office, team.id, bob)
    (key,) = await api_keys.listed(office.pool, UUID(team.id))
    await api_keys.revoke(office.pool, office.desk.cache, key.id)
    await _goes(team, "bob@example.com", "removed")
    (key,) = await api_keys.listed(office.pool, UUID(team.id))
    assert (str(key.member_id), key.revoked_at is None) == (bob, False)
    known = await known_keys.find(office.pool, [digest_of(text)])
    assert known[digest_of(text)].is_revoked
