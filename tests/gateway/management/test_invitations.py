"""Inviting over HTTP: who may, how many, for how long; sent again and taken back."""

import asyncio
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from tests.gateway.management.office import Browser, Office
from tests.gateway.management.team import (
    ROLES,
    Team,
    founded,
    newcomer,
    rested,
    statuses,
    with_token,
)

WEEK = timedelta(days=7)


async def _open(team: Team) -> list[str]:
    rows = (await team.owner.get("/invitations")).body["data"]
    return [row["email"] for row in rows]


async def _id(team: Team, email: str) -> str:
    rows = (await team.owner.get("/invitations")).body["data"]
    return next(str(row["id"]) for row in rows if row["email"] == email)


async def _code(browser: Browser, secret: str) -> str:
    """What the link answers; empty: the invitation."""
    got = await browser.post("/invitations/lookup", {"secret": secret})
    return "" if got.status == 200 else got.code


async def _limit(team: Team, most: int) -> None:
    await team.office.pool.execute(
        "UPDATE organization SET limits = $2 WHERE id = $1",
        UUID(team.id),
        f'{{"members_max": {most}}}',
    )


async def test_an_invitation_is_mailed_with_its_role_in_the_organizations_words(
    office: Office,
) -> None:
    team = await founded(office, "platform")
    got = await team.owner.post("/invitations", {"email": "Bob@Example.com"})
    assert (got.status, got.body["email"], got.body["role"]) == (201, "bob@example.com", "member")
    assert (got.body["role_label"], got.body["is_expired"]) == ("Developer", False)
    (mail,) = await office.mails_to("bob@example.com")
    secret = await office.secret_mailed_to("bob@example.com")
    assert mail["subject"] == "Join Acme at Tollgate"
    for text in (mail["text"], mail["html"]):
        assert f"{office.desk.site}/invitation#{secret}" in text
        assert "ada@example.com" in text
        assert "Developer" in text
        assert "7 days" in text
    assert secret.startswith("tg_invite_")
    row = await office.pool.fetchval("SELECT invitation::text FROM invitation")
    assert secret not in row


# Preset -> who may invite members and admins. Owners are invited by owners only.
_MAY = {
    "studio": {"owner", "admin"},
    "pooled": {"owner", "admin"},
    "open-team": {"owner", "admin"},
    "platform": {"owner"},
}


@pytest.mark.parametrize("preset", list(_MAY))
async def test_whom_the_policy_names_may_invite_and_only_owners_invite_owners(
    office: Office, preset: str
) -> None:
    team = await founded(office, preset)
    await _limit(team, 50)
    cast = await team.cast()
    rested(office)
    for role, browser in cast.items():
        for wanted in ROLES:
            may = role in _MAY[preset] and (wanted != "owner" or role == "owner")
            email = f"{wanted}-by-{role}@example.com"
            got = await browser.post("/invitations", {"email": email, "role": wanted})
            assert got.status == (201 if may else 403), (role, wanted, got)
            assert bool(await office.mails_to(email)) is may
        seen = await browser.get("/invitations")
        assert seen.status == (200 if role in _MAY[preset] else 403)


@pytest.mark.parametrize("preset", ["studio", "platform"])
async def test_invitations_are_sent_again_and_revoked_by_who_could_have_made_them(
    office: Office, preset: str
) -> None:
    team = await founded(office, preset)
    cast = await team.cast()
    await team.invited("kim@example.com", "owner")
    await team.invited("lee@example.com", "member")
    kim, lee = [await _id(team, f"{name}@example.com") for name in ("kim", "lee")]
    for role, browser in cast.items():
        rested(office)
        may_member, may_owner = role in _MAY[preset], role == "owner"
        again = await browser.post(f"/invitations/{lee}/resend")
        assert again.status == (200 if may_member else 403)
        assert (await browser.post(f"/invitations/{kim}/resend")).status == (
            200 if may_owner else 403
        )
    for role in ("member", "admin", "owner"):
        gone = await cast[role].delete(f"/invitations/{kim}")
        assert gone.status == (204 if role == "owner" else 403)


async def test_a_link_lives_for_seven_days(office: Office) -> None:
    team = await founded(office)
    secret = await team.invited("bob@example.com")
    office.clock.ahead += WEEK - timedelta(minutes=1)
    assert await _code(office.stranger(), secret) == ""
    office.clock.ahead += timedelta(minutes=2)
    assert await _code(office.stranger(), secret) == "invitation_expired"
    bob = await newcomer(office, "bob@example.com")
    got = await bob.post("/invitations/acceptance", {"secret": secret})
    assert (got.status, got.code) == (409, "invitation_expired")
    assert (await bob.get("/me/invitations")).body["data"] == []
    (row,) = (await team.owner.get("/invitations")).body["data"]
    assert row["is_expired"]


async def test_sent_again_the_new_link_lives_for_seven_days_and_the_old_one_is_dead(
    office: Office,
) -> None:
    team = await founded(office)
    old = await team.invited("bob@example.com")
    office.clock.ahead += WEEK + timedelta(days=1)
    got = await team.owner.post(f"/invitations/{await _id(team, 'bob@example.com')}/resend")
    assert (got.status, got.body["is_expired"]) == (200, False)
    new = await office.secret_mailed_to("bob@example.com")
    office.clock.ahead += WEEK - timedelta(minutes=30)
    bob = await newcomer(office, "bob@example.com")
    assert await _code(bob, old) == "invalid_link"
    assert (await bob.post("/invitations/acceptance", {"secret": old})).code == "invalid_link"
    assert (await bob.post("/invitations/acceptance", {"secret": new})).status == 200


async def test_an_invitation_is_sent_once_a_minute_at_most(office: Office) -> None:
    team = await founded(office)
    await team.invited("bob@example.com")
    path = f"/invitations/{await _id(team, 'bob@example.com')}/resend"
    got = await team.owner.post(path)
    assert (got.status, got.code) == (429, "rate_limit_exceeded")
    assert 0 < int(got.headers["Retry-After"]) <= 60
    office.clock.ahead += timedelta(minutes=1)
    assert (await team.owner.post(path)).status == 200
    assert len(await office.mails_to("bob@example.com")) == 2


async def test_the_same_request_again_sends_one_mail(office: Office) -> None:
    team = await founded(office)
    once = {"Idempotency-Key": "invite-bob"}
    body = {"email": "bob@example.com"}
    first = await team.owner.post("/invitations", body, headers=once)
    second = await team.owner.post("/invitations", body, headers=once)
    assert (first.status, second.body) == (201, first.body)
    assert len(await office.mails_to("bob@example.com")) == 1


async def test_a_revoked_invitation_is_dead_and_the_address_can_be_invited_anew(
    office: Office,
) -> None:
    team = await founded(office)
    secret = await team.invited("bob@example.com")
    path = f"/invitations/{await _id(team, 'bob@example.com')}"
    assert (await team.owner.delete(path)).status == 204
    assert await _code(office.stranger(), secret) == "invitation_ended"
    assert (await team.owner.delete(path)).code == "invitation_ended"
    assert (await team.owner.post(f"{path}/resend")).code == "invitation_ended"
    bob = await newcomer(office, "bob@example.com")
    got = await bob.post("/invitations/acceptance", {"secret": secret})
    assert (got.status, got.code) == (409, "invitation_ended")
    assert await _open(team) == []
    await team.invited("bob@example.com", "admin")


async def test_nobody_is_invited_twice_or_into_where_they_are(office: Office) -> None:
    team = await founded(office)
    for email in ("ada@example.com", "ADA@example.com"):
        got = await team.owner.post("/invitations", {"email": email})
        assert (got.status, got.code) == (409, "already_member")
    await team.invited("bob@example.com")
    got = await team.owner.post("/invitations", {"email": "Bob@example.com", "role": "admin"})
    assert (got.status, got.code) == (409, "already_invited")
    assert got.body["invitation_id"] == await _id(team, "bob@example.com")
    office.clock.ahead += WEEK
    await team.invited("bob@example.com", "admin")  # the old one has expired
    assert await _open(team) == ["bob@example.com"]


async def test_members_and_open_invitations_are_ten_at_most(office: Office) -> None:
    team = await founded(office)
    for n in range(9):
        await team.invited(f"n{n}@example.com")
    got = await team.owner.post("/invitations", {"email": "more@example.com"})
    assert (got.status, got.code, got.body["members_max"]) == (409, "members_max", 10)
    await team.owner.delete(f"/invitations/{await _id(team, 'n0@example.com')}")
    await team.invited("more@example.com")
    office.clock.ahead += WEEK  # expired ones take no place, until they are sent again
    for n in range(9):
        await team.invited(f"late{n}@example.com")
    again = await team.owner.post(f"/invitations/{await _id(team, 'more@example.com')}/resend")
    assert (again.status, again.code) == (409, "members_max")


async def test_the_operator_can_give_an_organization_more_places_or_fewer(office: Office) -> None:
    team = await founded(office)
    await _limit(team, 2)
    await team.invited("bob@example.com")
    assert (await team.owner.post("/invitations", {"email": "eve@example.com"})).status == 409
    await _limit(team, 12)
    for n in range(10):
        await team.invited(f"n{n}@example.com")
    got = await team.owner.post("/invitations", {"email": "eve@example.com"})
    assert got.body["members_max"] == 12


async def test_of_many_who_invite_to_the_last_place_at_once_one_does(office: Office) -> None:
    team = await founded(office)
    await _limit(team, 2)
    rested(office)
    answers = await asyncio.gather(
        *(team.owner.post("/invitations", {"email": f"n{n}@example.com"}) for n in range(12))
    )
    assert statuses(answers) == [201] + [409] * 11
    assert len(await _open(team)) == 1


async def test_one_address_invited_by_many_at_once_gets_one_invitation(office: Office) -> None:
    team = await founded(office)
    rested(office)
    body = {"email": "bob@example.com"}
    answers = await asyncio.gather(*(team.owner.post("/invitations", body) for _ in range(8)))
    assert statuses(answers) == [201] + [409] * 7
    assert len(await office.mails_to("bob@example.com")) == 1


async def test_nobody_is_invited_into_a_personal_account(office: Office) -> None:
    ada = await newcomer(office, "ada@example.com")
    got = await ada.post("/invitations", {"email": "bob@example.com"})
    assert (got.status, got.code) == (409, "personal_account")
    assert await office.mails_to("bob@example.com") == []


async def test_the_invitations_of_another_organization_are_not_found(office: Office) -> None:
    team = await founded(office)
    other = await founded(office, email="eve@example.com")
    await other.invited("bob@example.com")
    theirs = await _id(other, "bob@example.com")
    for invitation_id in (theirs, str(uuid4()), "none"):
        assert (await team.owner.post(f"/invitations/{invitation_id}/resend")).status == 404
        assert (await team.owner.delete(f"/invitations/{invitation_id}")).status == 404
    assert (await team.owner.at(other.id).get("/invitations")).status == 404
    assert await _open(other) == ["bob@example.com"]


async def test_the_open_invitations_come_in_pages(office: Office) -> None:
    team = await founded(office)
    for n in range(5):
        await team.invited(f"n{n}@example.com")
    first = (await team.owner.get("/invitations?limit=3")).body
    rest = (await team.owner.get(f"/invitations?limit=3&cursor={first['next_cursor']}")).body
    seen = [row["email"] for row in first["data"] + rest["data"]]
    assert seen == [f"n{n}@example.com" for n in range(5)]
    assert rest["next_cursor"] is None


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"email": "bob"},
        {"email": "bob@example.com\nBcc: eve@example.com"},
        {"email": "bob@example.com", "role": "king"},
        {"email": "bob@example.com", "is_paid": True},
        {"email": None},
        ["bob@example.com"],
    ],
)
async def test_an_invitation_that_makes_no_sense_is_refused(office: Office, body: object) -> None:
    team = await founded(office)
    assert (await team.owner.post("/invitations", body)).status == 400
    assert await _open(team) == []


async def test_a_token_invites_within_its_scopes_and_role(office: Office) -> None:
    team = await founded(office)
    reader = await with_token(office, ["members:read"], organization=(team.id, "owner"))
    assert (await reader.get("/invitations")).status == 200
    body = {"email": "bob@example.com", "role": "owner"}
    assert (await reader.post("/invitations", body)).code == "scope_missing"
    admins = await with_token(office, ["members:write"], organization=(team.id, "admin"))
    assert (await admins.post("/invitations", body)).code == "owners_only"
    assert (await admins.post("/invitations", {"email": "bob@example.com"})).status == 201


async def test_the_audit_log_says_who_invited_whom(office: Office) -> None:
    team = await founded(office)
    await team.invited("bob@example.com", "admin")
    invitation_id = await _id(team, "bob@example.com")
    rested(office)
    await team.owner.post(f"/invitations/{invitation_id}/resend")
    await team.owner.delete(f"/invitations/{invitation_id}")
    (made,) = await team.audited("invitation.create")
    assert (made["actor"], made["target"]) == ("ada@example.com", invitation_id)
    assert made["after"] == {"email": "bob@example.com", "role": "admin"}
    assert [line["target"] for line in await team.audited("invitation.resend")] == [invitation_id]
    (ended,) = await team.audited("invitation.revoke")
    assert ended["before"] == {"email": "bob@example.com", "role": "admin"}
