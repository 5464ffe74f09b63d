"""Organizations over HTTP: made, seen, changed and ended, by those who may."""

import asyncio

from tests.gateway.management.office import Browser, Office


async def acme(browser: Browser, **more: str) -> Browser:
    got = await browser.post("/organizations", {"name": "Acme", **more})
    assert got.status == 201, got
    return browser.at(got.body["id"])


async def test_who_makes_an_organization_owns_it(office: Office) -> None:
    ada = await office.signed_up("ada@example.com")
    made = await ada.post("/organizations", {"name": "Acme", "preset": "studio"})

    assert (made.status, made.body["role"], made.body["preset"]) == (201, "owner", "studio")
    names = [one["name"] for one in (await ada.get("/organizations")).body["data"]]
    assert names == ["Ada", "Acme"], "one's own account first"
    projects = await office.pool.fetch(
        "SELECT name, is_default FROM project WHERE organization_id = $1", made.body["id"]
    )
    assert [tuple(row) for row in projects] == [("Default", True)]


async def test_without_the_header_requests_are_about_ones_own_account(office: Office) -> None:
    ada = await office.signed_up("ada@example.com")
    organization = await acme(ada)

    assert (await ada.get("/organization")).body["kind"] == "personal"
    assert (await organization.get("/organization")).body["name"] == "Acme"


async def test_who_is_not_in_an_organization_is_told_that_there_is_none(office: Office) -> None:
    organization = await acme(await office.signed_up("ada@example.com"))
    eve = (await office.signed_up("eve@example.com")).at(organization.headers["X-Organization-Id"])

    got = await eve.get("/organization")
    assert (got.status, got.code) == (404, "organization_not_found")
    unknown = await eve.at("00000000-0000-0000-0000-000000000001").get("/organization")
    assert unknown.code == got.code
    assert (await eve.at("Acme").get("/organization")).code == "invalid_organization_id"


async def test_one_person_owns_three_organizations_at_most_even_when_all_are_made_at_once(
    office: Office,
) -> None:
    ada = await office.signed_up("ada@example.com")

    said = await asyncio.gather(*(ada.post("/organizations", {"name": f"N{n}"}) for n in range(8)))

    assert sorted(got.status for got in said) == [201] * 3 + [409] * 5
    assert len((await ada.get("/organizations")).body["data"]) == 4


async def test_the_same_request_again_makes_no_second_organization(office: Office) -> None:
    ada = await office.signed_up("ada@example.com")
    key = {"Idempotency-Key": "make-acme"}

    first = await ada.post("/organizations", {"name": "Acme"}, headers=key)
    again = await ada.post("/organizations", {"name": "Acme"}, headers=key)
    other = await ada.post("/organizations", {"name": "Other"}, headers=key)

    assert (again.status, again.body) == (201, first.body)
    assert (other.status, other.code) == (409, "idempotency_key_reused")


async def test_details_are_changed_one_by_one_and_by_who_read_them_last(office: Office) -> None:
    organization = await acme(await office.signed_up("ada@example.com"))
    read = await organization.get("/organization")

    changed = await organization.patch(
        "/organization",
        {"billing_email": "Bills@acme.example", "time_zone": "Europe/Berlin"},
        headers={"If-Match": read.headers["ETag"]},
    )
    late = await organization.patch(
        "/organization", {"name": "Late"}, headers={"If-Match": read.headers["ETag"]}
    )

    assert (changed.body["name"], changed.body["time_zone"]) == ("Acme", "Europe/Berlin")
    assert changed.body["version"] == read.body["version"] + 1
    assert (late.status, late.code) == (412, "changed_meanwhile")
    cleared = await organization.patch("/organization", {"billing_email": None})
    assert cleared.body["billing_email"] is None


async def test_what_makes_no_sense_is_refused_by_name(office: Office) -> None:
    organization = await acme(await office.signed_up("ada@example.com"))
    for body, param in (
        ({"time_zone": "Mars/Olympus"}, "time_zone"),
        ({"name": ""}, "name"),
        ({"name": " x"}, "name"),
        ({"billing_email": "nobody"}, "billing_email"),
        ({"colour": "red"}, None),
    ):
        got = await organization.patch("/organization", body)
        assert (got.status, got.body["param"]) == (400, param), body


async def test_an_organization_ends_when_its_name_is_typed_and_its_balance_given_up(
    office: Office,
) -> None:
    ada = await office.signed_up("ada@example.com")
    organization = await acme(ada)
    organization_id = organization.headers["X-Organization-Id"]
    await office.pool.execute("UPDATE wallet SET base = 5000 WHERE id = $1", organization_id)

    wrong = await organization.post("/organization/deletion", {"confirmation": "acme"})
    left = await organization.post("/organization/deletion", {"confirmation": "Acme"})
    meant = {"confirmation": "Acme", "forfeit_balance": True}

    assert (wrong.status, wrong.code) == (400, "not_confirmed")
    assert (left.status, left.code, left.body["balance_nanos"]) == (409, "balance_left", 5000)
    assert (await organization.post("/organization/deletion", meant)).status == 204
    assert (await organization.get("/organization")).status == 404
    assert len((await ada.get("/organizations")).body["data"]) == 1
    assert (await ada.post("/organizations", {"name": "Next"})).status == 201, "it makes room"


async def test_ones_own_account_cannot_be_deleted(office: Office) -> None:
    ada = await office.signed_up("ada@example.com")
    got = await ada.post("/organization/deletion", {"confirmation": "Ada"})
    assert (got.status, got.code) == (409, "personal_account")
