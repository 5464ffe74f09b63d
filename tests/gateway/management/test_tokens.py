"""Tokens act for a person or an organization, within their scopes, until they are revoked."""

from datetime import timedelta
from typing import Any

from tests.gateway.management.office import Browser, Office
from tests.gateway.management.rooms import joined, made_organization


def program(office: Office, secret: str) -> Browser:
    browser = office.stranger()
    browser.headers["Authorization"] = f"Bearer {secret}"
    return browser


async def test_a_token_of_ones_own_acts_as_oneself_within_its_scopes(office: Office) -> None:
    ada = await office.signed_up("ada@example.com")
    acme = await made_organization(ada, "Acme")
    made = await ada.post("/me/tokens", {"name": "ci", "scopes": ["projects:write"]})
    assert made.status == 201
    ci = program(office, made.body["secret"]).at(acme.headers["X-Organization-Id"])

    assert (await ci.post("/projects", {"name": "Engine"})).status == 201
    assert (await ci.get("/projects")).status == 200, "writing includes reading"
    assert (await ci.get("/members")).code == "scope_missing"
    assert (await ci.get("/me/tokens")).code == "session_required"
    assert (await ci.post("/tokens", {})).code == "session_required"
    log = await acme.get("/audit-log")
    assert log.body["data"][0]["actor"] == "ada@example.com"


async def test_a_token_of_the_organization_works_there_and_nowhere_else(office: Office) -> None:
    ada = await office.signed_up("ada@example.com")
    acme = await made_organization(ada, "Acme")
    asked = {"name": "deploy", "role": "admin", "scopes": ["projects:write", "members:read"]}
    deploy = program(office, (await acme.post("/tokens", asked)).body["secret"])

    assert (await deploy.post("/projects", {"name": "Engine"})).status == 201
    assert (await deploy.get("/members")).status == 200
    assert (await deploy.get("/me")).code == "scope_missing"
    other = await made_organization(ada, "Other")
    elsewhere = deploy.at(other.headers["X-Organization-Id"])
    assert (await elsewhere.get("/members")).code == "organization_not_found"


async def test_a_revoked_or_expired_token_is_refused_at_once(office: Office) -> None:
    ada = await office.signed_up("ada@example.com")
    soon = (office.desk.now() + timedelta(hours=1)).isoformat()
    wanted = {"name": "t", "scopes": ["profile:read"]}
    revoked = (await ada.post("/me/tokens", wanted)).body
    expires = (await ada.post("/me/tokens", {**wanted, "expires_at": soon})).body
    for made in (revoked, expires):
        assert (await program(office, made["secret"]).get("/me")).status == 200

    assert (await ada.delete(f"/me/tokens/{revoked['token']['id']}")).status == 204
    office.clock.ahead += timedelta(hours=2)

    for made in (revoked, expires):
        assert (await program(office, made["secret"]).get("/me")).code == "not_signed_in"
    assert (await ada.delete(f"/me/tokens/{revoked['token']['id']}")).code == "token_not_found"


async def test_nobody_sees_or_ends_somebody_elses_tokens(office: Office) -> None:
    ada = await office.signed_up("ada@example.com")
    acme = await made_organization(ada, "Acme")
    eve = await office.signed_up("eve@example.com")
    own = (await ada.post("/me/tokens", {"name": "t", "scopes": ["profile:read"]})).body["token"]
    asked = {"name": "o", "role": "member", "scopes": ["members:read"]}
    common = (await acme.post("/tokens", asked)).body["token"]

    assert (await eve.get("/me/tokens")).body["data"] == []
    assert (await eve.get("/tokens")).body["data"] == []
    for path in (f"/me/tokens/{own['id']}", f"/tokens/{common['id']}", f"/tokens/{own['id']}"):
        assert (await eve.delete(path)).status == 404
    assert [one["id"] for one in (await acme.get("/tokens")).body["data"]] == [common["id"]]
    assert "secret" not in str((await acme.get("/tokens")).body)


async def test_an_admin_makes_no_token_that_may_more_than_an_admin(office: Office) -> None:
    acme = await made_organization(await office.signed_up("ada@example.com"), "Acme")
    admin = await joined(office, acme, "bob@example.com", "admin")
    asked = {"name": "t", "scopes": ["members:write"]}

    assert (await admin.post("/tokens", {**asked, "role": "owner"})).code == "owners_only"
    assert (await admin.post("/tokens", {**asked, "role": "admin"})).status == 201


async def test_what_makes_no_sense_is_refused(office: Office) -> None:
    ada = await office.signed_up("ada@example.com")
    changes: list[dict[str, Any]] = [
        {"scopes": []},
        {"scopes": ["everything"]},
        {"name": ""},
        {"expires_at": "2001-01-01T00:00:00Z"},
        {"expires_at": "2101-01-01T00:00:00"},
        {"role": "owner"},
    ]
    for more in changes:
        got = await ada.post("/me/tokens", {"name": "t", "scopes": ["profile:read"], **more})
        assert got.status == 400, more
