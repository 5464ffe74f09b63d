"""Who is in an organization, as what, and how they go, over HTTP."""

import asyncio
from uuid import UUID, uuid4

import pytest

from tests.gateway.management.office import Office
from tests.gateway.management.team import (
    ROLES,
    Team,
    founded,
    newcomer,
    rested,
    statuses,
    with_token,
)


async def test_everybody_sees_who_is_in_it_in_the_organizations_own_words(office: Office) -> None:
    team = await founded(office, "platform")
    bob = await team.joined("bob@example.com")
    ada, other = (await bob.get("/members")).body["data"]
    assert (ada["email"], ada["name"], ada["role"]) == ("ada@example.com", "Ada", "owner")
    assert (ada["role_label"], ada["is_me"]) == ("Owner", False)
    assert (other["role"], other["role_label"], other["is_me"]) == ("member", "Developer", True)
    assert (await bob.get(f"/members/{other['id']}")).body == other


async def test_the_members_come_in_pages_each_once(office: Office) -> None:
    team = await founded(office)
    for name in ("bob", "eve", "kim", "lee"):
        await team.joined(f"{name}@example.com")
    seen, query = [], "?limit=2"
    while query:
        page = (await team.owner.get(f"/members{query}")).body
        seen += [row["name"] for row in page["data"]]
        following = page["next_cursor"]
        query = f"?limit=2&cursor={following}" if following else ""
    assert seen == ["Ada", "Bob", "Eve", "Kim", "Lee"]


# Preset -> who may change roles and remove, below owner.
_RUNS_IT = {"studio": {"owner", "admin"}, "pooled": {"owner", "admin"}, "platform": {"owner"}}


@pytest.mark.parametrize("preset", list(_RUNS_IT))
async def test_roles_are_changed_and_members_removed_by_whom_the_policy_names(
    office: Office, preset: str
) -> None:
    team = await founded(office, preset)
    cast = await team.cast()
    target = await team.member_id("member@example.com")
    for role, browser in cast.items():
        may = role in _RUNS_IT[preset]
        rested(office)
        assert (await browser.get("/members")).status == 200
        promoted = await browser.patch(f"/members/{target}", {"role": "admin"})
        assert promoted.status == (200 if may else 403), (role, promoted)
        back = await browser.patch(f"/members/{target}", {"role": "member"})
        assert back.status == (200 if may else 403), (role, back)
        victim = f"victim-of-{role}@example.com"
        await team.joined(victim)
        removed = await browser.delete(f"/members/{await team.member_id(victim)}")
        assert removed.status == (204 if may else 403), (role, removed)


@pytest.mark.parametrize("preset", ["studio", "pooled", "platform"])
async def test_only_owners_make_and_unmake_owners_whatever_is_set(
    office: Office, preset: str
) -> None:
    team = await founded(office, preset)
    everybody = {"member.role": "members", "member.remove": "members"}
    await team.switched(permissions=everybody)
    cast = await team.cast()
    owner, member = [await team.member_id(f"{one}@example.com") for one in ("owner", "member")]
    for role in ("admin", "member"):
        for got in (
            await cast[role].patch(f"/members/{member}", {"role": "owner"}),
            await cast[role].patch(f"/members/{owner}", {"role": "member"}),
            await cast[role].patch(f"/members/{owner}", {"role": "owner"}),
            await cast[role].delete(f"/members/{owner}"),
        ):
            assert (got.status, got.code) == (403, "owners_only")
    assert (await cast["owner"].patch(f"/members/{member}", {"role": "owner"})).status == 200
    assert (await cast["owner"].patch(f"/members/{member}", {"role": "member"})).status == 200


async def test_any_role_can_become_any_other(office: Office) -> None:
    team = await founded(office)
    await team.joined("bob@example.com")
    path = f"/members/{await team.member_id('bob@example.com')}"
    for role in ("admin", "owner", "member", "owner", "admin", "member"):
        got = await team.owner.patch(path, {"role": role})
        assert (got.status, got.body["role"]) == (200, role)


async def test_the_last_owner_stays_an_owner(office: Office) -> None:
    team = await founded(office)
    await team.joined("bob@example.com", "admin")
    path = f"/members/{await team.member_id('ada@example.com')}"
    for got in (
        await team.owner.patch(path, {"role": "admin"}),
        await team.owner.delete(path),
        await team.owner.post("/membership/departure"),
    ):
        assert (got.status, got.code) == (409, "last_owner")
    assert (await team.owner.patch(path, {"role": "owner"})).status == 200


async def test_an_owner_goes_once_there_is_another(office: Office) -> None:
    team = await founded(office)
    bob = await team.joined("bob@example.com", "owner")
    assert (await team.owner.post("/membership/departure")).status == 204
    assert (await bob.post("/membership/departure")).code == "last_owner"


async def test_an_owner_whom_the_operator_shut_out_is_none_to_leave_it_to(office: Office) -> None:
    team = await founded(office)
    await team.joined("bob@example.com", "owner")
    await office.pool.execute("UPDATE person SET disabled_at = now() WHERE email LIKE 'bob@%'")
    assert (await team.owner.post("/membership/departure")).code == "last_owner"


async def _owners(team: Team) -> list[str]:
    rows = await team.office.pool.fetch(
        "SELECT email FROM member WHERE organization_id = $1 AND role = 'owner'"
        " AND removed_at IS NULL ORDER BY email",
        UUID(team.id),
    )
    return [row["email"] for row in rows]


async def test_of_all_owners_leaving_at_once_one_is_kept(office: Office) -> None:
    team = await founded(office)
    owners = [team.owner]
    owners += [await team.joined(f"owner{n}@example.com", "owner") for n in range(5)]
    rested(office)
    answers = await asyncio.gather(*(one.post("/membership/departure") for one in owners))
    assert statuses(answers) == [204] * 5 + [409]
    assert len(await _owners(team)) == 1


async def test_owners_who_unmake_each_other_at_once_leave_one(office: Office) -> None:
    team = await founded(office)
    browsers = {"ada@example.com": team.owner}
    for n in range(4):
        browsers[f"o{n}@example.com"] = await team.joined(f"o{n}@example.com", "owner")
    paths = {email: f"/members/{row['id']}" for email, row in (await team.members()).items()}
    rested(office)
    answers = await asyncio.gather(
        *(
            browser.delete(path) if mine < theirs else browser.patch(path, {"role": "member"})
            for mine, browser in browsers.items()
            for theirs, path in paths.items()
            if mine != theirs
        )
    )
    assert len(answers) == 20
    assert set(statuses(answers)) <= {200, 204, 403, 404, 409}
    assert len(await _owners(team)) >= 1


async def test_whoever_is_in_it_may_leave_even_if_the_policy_lets_them_see_nothing(
    office: Office,
) -> None:
    team = await founded(office)
    bob = await team.joined("bob@example.com")
    owners_only = {"organization.read": "owners", "member.read": "owners"}
    await team.switched(permissions=owners_only)
    assert (await bob.get("/members")).status == 403
    assert (await bob.post("/membership/departure")).status == 204
    assert "bob@example.com" not in await team.members()


async def test_nobody_leaves_their_own_account(office: Office) -> None:
    ada = await newcomer(office, "ada@example.com")
    (me,) = (await ada.get("/members")).body["data"]
    assert (await ada.post("/membership/departure")).code == "personal_account"
    assert (await ada.delete(f"/members/{me['id']}")).code == "personal_account"
    assert (await ada.patch(f"/members/{me['id']}", {"role": "member"})).code == "last_owner"


async def test_a_change_is_refused_if_somebody_else_was_faster(office: Office) -> None:
    team = await founded(office)
    await team.joined("bob@example.com")
    path = f"/members/{await team.member_id('bob@example.com')}"
    read = await team.owner.get(path)
    tag = {"If-Match": read.headers["ETag"]}
    changed = await team.owner.patch(path, {"role": "admin"}, headers=tag)
    assert (changed.status, changed.body["version"]) == (200, read.body["version"] + 1)
    assert changed.headers["ETag"] == f'"{changed.body["version"]}"'
    for got in (
        await team.owner.patch(path, {"role": "member"}, headers=tag),
        await team.owner.delete(path, headers=tag),
    ):
        assert (got.status, got.code) == (412, "changed_meanwhile")
    assert (await team.owner.get(path)).body == changed.body


async def test_nobody_reaches_the_members_of_another_organization(office: Office) -> None:
    team = await founded(office)
    other = await founded(office, email="eve@example.com")
    theirs = await other.member_id("eve@example.com")
    for member_id in (theirs, str(uuid4()), "nobody"):
        path = f"/members/{member_id}"
        assert (await team.owner.get(path)).status == 404
        assert (await team.owner.patch(path, {"role": "member"})).status == 404
        assert (await team.owner.delete(path)).status == 404
    assert (await team.owner.at(other.id).get("/members")).status == 404
    assert theirs == await other.member_id("eve@example.com")


@pytest.mark.parametrize(
    "body",
    [
        {"role": "king"},
        {"role": None},
        {"role": "admin", "name": "Bob"},
        {"grants": ["billing.purchase"]},
        {"grants": None},
        [],
        "admin",
    ],
)
async def test_a_change_that_makes_no_sense_is_refused(office: Office, body: object) -> None:
    team = await founded(office)
    path = f"/members/{await team.member_id('ada@example.com')}"
    assert (await team.owner.patch(path, body)).status == 400


async def test_a_member_may_be_given_the_right_to_make_keys(office: Office) -> None:
    team = await founded(office)
    bob = await team.joined("bob@example.com")
    hers = (await team.owner.post("/api-keys", {"name": "hers"})).body["key"]
    path = f"/members/{await team.member_id('bob@example.com')}"
    assert (await bob.post("/api-keys", {"name": "his"})).code == "not_permitted"
    assert (await bob.patch(path, {"grants": ["key.create"]})).code == "not_permitted"

    given = await team.owner.patch(path, {"grants": ["key.create"]})

    assert (given.body["grants"], given.body["role"]) == (["key.create"], "member")
    assert "key.create" in (await bob.get("/organization")).body["permissions"]
    his = (await bob.post("/api-keys", {"name": "his"})).body["key"]
    assert (await bob.patch(f"/api-keys/{his['id']}", {"name": "mine"})).status == 200
    assert (await bob.patch(f"/api-keys/{hers['id']}", {"name": "mine"})).code == "not_your_key"
    more = await team.owner.patch(path, {"grants": ["key.manage"]})
    assert more.body["grants"] == ["key.create", "key.manage"]
    assert (await bob.patch(f"/api-keys/{hers['id']}", {"name": "ours"})).status == 200
    assert (await bob.get("/wallet")).code == "not_permitted", "and nothing else"
    await team.owner.patch(path, {"grants": []})
    assert (await bob.post("/api-keys", {"name": "another"})).code == "not_permitted"


async def test_who_returns_has_no_rights_of_before(office: Office) -> None:
    team = await founded(office)
    bob = await team.joined("bob@example.com")
    path = f"/members/{await team.member_id('bob@example.com')}"
    await team.owner.patch(path, {"grants": ["key.create"]})
    assert (await team.owner.delete(path)).status == 204
    await team.joins(bob, "bob@example.com")
    assert (await team.members())["bob@example.com"]["grants"] == []
    assert (await bob.post("/api-keys", {"name": "his"})).code == "not_permitted"


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "cursor=what", "cursor=gqNhYmM", "x=1"])
async def test_a_page_that_makes_no_sense_is_refused(office: Office, query: str) -> None:
    team = await founded(office)
    assert (await team.owner.get(f"/members?{query}")).status == 400


async def test_tokens_do_what_their_scopes_and_role_allow(office: Office) -> None:
    team = await founded(office)
    await team.joined("bob@example.com")
    path = f"/members/{await team.member_id('bob@example.com')}"
    reader = await with_token(office, ["members:read"], person_of="ada@example.com")
    assert (await reader.at(team.id).get("/members")).status == 200
    assert (await reader.at(team.id).delete(path)).code == "scope_missing"
    admins = await with_token(office, ["members:write"], organization=(team.id, "admin"))
    assert (await admins.patch(path, {"role": "owner"})).code == "owners_only"
    assert (await admins.post("/membership/departure")).code == "not_a_member"
    assert (await admins.delete(path)).status == 204


async def test_the_audit_log_says_who_changed_what_of_whom(office: Office) -> None:
    team = await founded(office)
    bob = await team.joined("bob@example.com")
    bob_id = await team.member_id("bob@example.com")
    await team.owner.patch(f"/members/{bob_id}", {"role": "admin"})
    await team.owner.patch(f"/members/{bob_id}", {"role": "admin"})  # changes nothing
    await bob.post("/membership/departure")
    (changed,) = await team.audited("member.role")
    assert (changed["actor"], changed["target"]) == ("ada@example.com", bob_id)
    before = {"email": "bob@example.com", "role": "member", "grants": []}
    assert changed["before"] == before
    assert changed["after"] == {"role": "admin", "grants": []}
    assert changed["address"] == "127.0.0.1"
    (left,) = await team.audited("member.leave")
    assert (left["actor"], left["before"]["role"]) == ("bob@example.com", "admin")


@pytest.mark.parametrize("role", ROLES)
async def test_who_is_in_no_organization_sees_none(office: Office, role: str) -> None:
    team = await founded(office)
    browser = await team.joined("bob@example.com", role)
    assert (await browser.at(str(uuid4())).get("/members")).code == "organization_not_found"
    assert (await office.stranger().at(team.id).get("/members")).status == 401
