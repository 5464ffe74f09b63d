"""Being invited, over HTTP: with and without an account, yes and no, by list and by link."""

import asyncio
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from gateway.management import organizations
from gateway.management.organizations import OrganizationTerms
from tests.gateway.management.office import PASSWORD, Browser, Office, open_office
from tests.gateway.management.team import (
    Team,
    founded,
    newcomer,
    rested,
    statuses,
    with_token,
)


async def _accepts(browser: Browser, secret: str) -> tuple[int, str]:
    got = await browser.post("/invitations/acceptance", {"secret": secret})
    return got.status, "" if got.status == 200 else got.code


async def _my_id(browser: Browser) -> str:
    (row,) = (await browser.get("/me/invitations")).body["data"]
    return str(row["id"])


@pytest.mark.parametrize("role", ["owner", "admin", "member"])
async def test_who_has_no_account_signs_up_with_the_address_and_accepts(
    office: Office, role: str
) -> None:
    team = await founded(office, "platform")
    secret = await team.invited("bob@example.com", role)
    bob = await newcomer(office, "bob@example.com")
    got = await bob.post("/invitations/acceptance", {"secret": secret})
    assert (got.status, got.body["organization"], got.body["role"]) == (200, "Acme", role)
    member = (await team.members())["bob@example.com"]
    assert (got.body["member_id"], got.body["role_label"]) == (member["id"], member["role_label"])
    assert (await bob.at(team.id).get("/organization")).body["role"] == role
    kinds = [row["kind"] for row in (await bob.get("/organizations")).body["data"]]
    assert kinds == ["personal", "organization"]


async def test_who_has_an_account_finds_the_invitation_in_it_and_accepts(office: Office) -> None:
    team = await founded(office, "studio")
    bob = await newcomer(office, "bob@example.com")
    secret = await team.invited("Bob@Example.com", "admin")
    (row,) = (await bob.get("/me/invitations")).body["data"]
    assert (row["organization"], row["role_label"]) == ("Acme", "Admin")
    assert row["invited_by"] == "ada@example.com"
    path = f"/me/invitations/{row['id']}/acceptance"
    assert (await bob.post(path)).body["role"] == "admin"
    assert (await bob.get("/me/invitations")).body["data"] == []
    assert (await bob.post(path)).code == "invitation_accepted"
    assert await _accepts(bob, secret) == (409, "invitation_accepted")


async def test_where_only_the_invited_sign_up_an_invitation_lets_its_address_in(
    postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    changes = "management: {sign_up: invited}"
    async with open_office(postgres_url, redis_url, tmp_path, changes=changes) as office:
        made = await organizations.create(office.pool, office.redis, OrganizationTerms(name="One"))
        await office.pool.execute(
            "INSERT INTO invitation (id, organization_id, email, role, digest, invited_by,"
            " expires_at) VALUES ($1, $2, 'ada@example.com', 'owner', 'x', 'operator',"
            " now() + interval '1 day')",
            uuid4(),
            made.id,
        )
        team = await founded(office)
        secret = await team.invited("bob@example.com")
        wanted = {"email": "eve@example.com", "password": PASSWORD}
        assert (await office.stranger().post("/people", wanted)).code == "invitation_required"
        bob = await newcomer(office, "bob@example.com")
        assert await _accepts(bob, secret) == (200, "")


async def test_the_link_tells_anybody_what_it_is_for_and_nothing_of_accounts(
    office: Office,
) -> None:
    team = await founded(office, "platform")
    await newcomer(office, "bob@example.com")
    answers = []
    for email in ("bob@example.com", "eve@example.com"):
        secret = await team.invited(email)
        got = await office.stranger().post("/invitations/lookup", {"secret": secret})
        assert (got.status, got.body.pop("email")) == (200, email)
        got.body.pop("expires_at")
        answers.append(got.body)
    assert answers == [{"organization": "Acme", "role_label": "Developer"}] * 2


async def test_a_forwarded_link_lets_nobody_else_in(office: Office) -> None:
    team = await founded(office)
    secret = await team.invited("bob@example.com")
    eve = await newcomer(office, "eve@example.com")
    got = await eve.post("/invitations/acceptance", {"secret": secret})
    assert (got.status, got.code) == (403, "wrong_address")
    assert "bob@example.com" in got.body["detail"]
    assert (await eve.get("/me/invitations")).body["data"] == []
    (row,) = (await team.owner.get("/invitations")).body["data"]
    for answer in ("acceptance", "refusal"):
        got = await eve.post(f"/me/invitations/{row['id']}/{answer}")
        assert (got.status, got.code) == (404, "invitation_not_found")
    assert list(await team.members()) == ["ada@example.com"]


async def test_an_address_that_is_not_proved_accepts_nothing(office: Office) -> None:
    team = await founded(office)
    bob = await newcomer(office, "bob@example.com")
    secret = await team.invited("bob@example.com")
    invitation_id = await _my_id(bob)
    await office.pool.execute("UPDATE person SET verified_at = NULL WHERE email LIKE 'bob@%'")
    assert (await bob.get("/me/invitations")).body["data"] == []
    assert await _accepts(bob, secret) == (403, "email_not_verified")
    for answer in ("acceptance", "refusal"):
        got = await bob.post(f"/me/invitations/{invitation_id}/{answer}")
        assert (got.status, got.code) == (403, "email_not_verified")


async def test_nobody_accepts_without_signing_in_or_by_a_token(office: Office) -> None:
    team = await founded(office)
    await newcomer(office, "bob@example.com")
    secret = await team.invited("bob@example.com")
    assert await _accepts(office.stranger(), secret) == (401, "not_signed_in")
    scopes = ["profile:write", "members:write"]
    program = await with_token(office, scopes, person_of="bob@example.com")
    assert await _accepts(program, secret) == (403, "session_required")
    got = await program.post(f"/me/invitations/{await _my_id(program)}/acceptance")
    assert got.code == "session_required"


async def test_accepted_many_times_at_once_it_makes_one_member(office: Office) -> None:
    team = await founded(office)
    bob = await newcomer(office, "bob@example.com")
    secret = await team.invited("bob@example.com")
    path = f"/me/invitations/{await _my_id(bob)}/acceptance"
    rested(office)
    answers = await asyncio.gather(
        *(bob.post("/invitations/acceptance", {"secret": secret}) for _ in range(5)),
        *(bob.post(path) for _ in range(5)),
    )
    assert statuses(answers) == [200] + [409] * 9
    assert sorted(await team.members()) == ["ada@example.com", "bob@example.com"]


async def test_revoked_and_accepted_at_once_only_one_of_both_happens(office: Office) -> None:
    team = await founded(office)
    for n in range(3):
        email = f"n{n}@example.com"
        browser = await newcomer(office, email)
        await team.invited(email)
        invitation_id = await _my_id(browser)
        accepted, revoked = await asyncio.gather(
            browser.post(f"/me/invitations/{invitation_id}/acceptance"),
            team.owner.delete(f"/invitations/{invitation_id}"),
        )
        assert {accepted.status, revoked.status} in ({200, 409}, {409, 204})
        assert (email in await team.members()) is (accepted.status == 200)


async def _limit(team: Team, most: int) -> None:
    text = f'{{"members_max": {most}}}'
    await team.office.pool.execute(
        "UPDATE organization SET limits = $2 WHERE id = $1", UUID(team.id), text
    )


async def test_an_acceptance_counts_the_members_again(office: Office) -> None:
    team = await founded(office)
    people = [await newcomer(office, f"n{n}@example.com") for n in range(3)]
    secrets = [await team.invited(f"n{n}@example.com") for n in range(3)]
    await _limit(team, 2)
    rested(office)
    answers = await asyncio.gather(
        *(
            browser.post("/invitations/acceptance", {"secret": secret})
            for browser, secret in zip(people, secrets, strict=True)
        )
    )
    assert statuses(answers) == [200, 409, 409]
    assert {got.code for got in answers if got.status == 409} == {"members_max"}
    await _limit(team, 4)
    again = [await _accepts(*pair) for pair in zip(people, secrets, strict=True)]
    assert sorted(again) == [(200, ""), (200, ""), (409, "invitation_accepted")]


async def test_who_is_invited_may_decline_with_an_account(office: Office) -> None:
    team = await founded(office)
    bob = await newcomer(office, "bob@example.com")
    secret = await team.invited("bob@example.com")
    assert (await bob.post(f"/me/invitations/{await _my_id(bob)}/refusal")).status == 204
    assert await _accepts(bob, secret) == (409, "invitation_ended")
    assert (await bob.get("/me/invitations")).body["data"] == []
    (line,) = await team.audited("invitation.decline")
    assert line["actor"] == "bob@example.com"
    await team.invited("bob@example.com")  # they may be asked again


async def test_who_is_invited_may_decline_without_an_account(office: Office) -> None:
    team = await founded(office)
    secret = await team.invited("bob@example.com")
    nobody = office.stranger()
    assert (await nobody.post("/invitations/refusal", {"secret": secret})).status == 204
    got = await nobody.post("/invitations/refusal", {"secret": secret})
    assert (got.status, got.code) == (409, "invitation_ended")
    assert (await team.owner.get("/invitations")).body["data"] == []
    (line,) = await team.audited("invitation.decline")
    assert line["actor"] == "link mailed to bob@example.com"


async def test_the_invitations_of_an_organization_that_was_deleted_are_dead(
    office: Office,
) -> None:
    team = await founded(office)
    bob = await newcomer(office, "bob@example.com")
    secret = await team.invited("bob@example.com")
    assert (await team.owner.post("/organization/deletion", {"confirmation": "Acme"})).status == 204
    assert await _accepts(bob, secret) == (409, "invitation_ended")
    assert (await bob.get("/me/invitations")).body["data"] == []


async def test_who_joins_under_an_address_that_was_a_member_takes_its_place(
    office: Office,
) -> None:
    team = await founded(office)
    member_id = uuid4()
    await office.pool.execute(
        "INSERT INTO member (id, organization_id, email) VALUES ($1, $2, 'Bob@Example.com')",
        member_id,
        UUID(team.id),
    )
    await team.joined("bob@example.com", "admin")
    member = (await team.members())["bob@example.com"]
    assert (member["id"], member["role"]) == (str(member_id), "admin")


async def test_the_audit_log_says_who_came_as_what(office: Office) -> None:
    team = await founded(office)
    await team.joined("bob@example.com", "admin")
    (line,) = await team.audited("invitation.accept")
    assert (line["actor"], line["address"]) == ("bob@example.com", "127.0.0.1")
    bob = await team.member_id("bob@example.com")
    assert line["after"] == {"member_id": bob, "email": "bob@example.com", "role": "admin"}


@pytest.mark.parametrize(
    "secret", ["x", "tg_invite_x", "tg_link_" + "a" * 43, "tg_invite_" + "a" * 43]
)
async def test_a_link_that_is_none_says_what_to_do(office: Office, secret: str) -> None:
    bob = await newcomer(office, "bob@example.com")
    for path in ("lookup", "acceptance", "refusal"):
        got = await bob.post(f"/invitations/{path}", {"secret": secret})
        assert (got.status, got.code) == (400, "invalid_link")
        assert "newest mail" in got.body["detail"]
    for path in ("lookup", "acceptance", "refusal"):
        for body in ({}, {"secret": ""}, {"secret": 5}, {"secret": secret, "role": "owner"}):
            assert (await bob.post(f"/invitations/{path}", body)).status == 400


async def test_an_invitation_that_is_not_mine_is_not_found(office: Office) -> None:
    bob = await newcomer(office, "bob@example.com")
    for invitation_id in (str(uuid4()), "none"):
        for answer in ("acceptance", "refusal"):
            got = await bob.post(f"/me/invitations/{invitation_id}/{answer}")
            assert got.status == 404
