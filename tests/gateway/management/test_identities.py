"""Identities over HTTP: linked by who is signed in here and there, listed, removed."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.gateway.management.elsewhere import Elsewhere, opened_with
from tests.gateway.management.office import Office

EMAIL = "ada@example.com"
MINE = "/me/identities"


@pytest.fixture
async def office(
    issuer: Elsewhere, postgres_url: str, redis_url: str, tmp_path: Path
) -> AsyncIterator[Office]:
    async with opened_with(issuer, postgres_url, redis_url, tmp_path) as opened:
        yield opened


async def test_an_identity_of_any_address_is_linked_by_who_is_signed_in(
    office: Office, issuer: Elsewhere
) -> None:
    ada = await office.signed_up(EMAIL)
    got = await issuer.links(ada, "bob")
    again = await issuer.links(ada, "bob")

    assert (got.status, got.body["issuer"], got.body["email"]) == (
        *(201, issuer.url),
        "bob@example.com",
    )
    assert (again.status, again.body["id"]) == (201, got.body["id"])
    assert [one["id"] for one in (await ada.get(MINE)).body["data"]] == [got.body["id"]]
    told = [row["subject"] for row in await office.mails_to(EMAIL)]
    assert told.count("A way to sign in was added to your account") == 1
    signed_in = await issuer.signs_in(office.stranger(), "bob")
    assert signed_in.body["person"]["email"] == EMAIL


async def test_an_identity_is_of_one_person(office: Office, issuer: Elsewhere) -> None:
    await issuer.links(await office.signed_up(EMAIL), "ada")
    eve = await office.signed_up("eve@example.com")
    got = await issuer.links(eve, "ada")
    assert (got.status, got.code) == (409, "identity_taken")
    assert (await eve.get(MINE)).body["data"] == []


async def test_who_comes_back_to_sign_in_links_nothing_and_the_other_way_round(
    office: Office, issuer: Elsewhere
) -> None:
    ada = await office.signed_up(EMAIL)
    back = await issuer.comes_back(ada, "ada")
    assert (await ada.post(MINE, back)).code == "invalid_challenge"
    back = await issuer.comes_back(ada, "ada", MINE)
    assert back["state"].startswith("link.")
    assert (await ada.post("/session/issuer", back)).code == "invalid_challenge"


async def test_a_link_that_one_session_began_another_does_not_end(
    office: Office, issuer: Elsewhere
) -> None:
    """Else who lures somebody to a URL would sign in to their account from then on."""
    eve, ada = await office.signed_up("eve@example.com"), await office.signed_up(EMAIL)
    back = await issuer.comes_back(eve, "bob", MINE)
    (begun,) = [one.value for one in eve.cookies() if one.key == "tollgate_challenge"]
    (own,) = [one.value for one in ada.cookies() if one.key == "tollgate_session"]
    cookies = {"Cookie": f"tollgate_session={own}; tollgate_challenge={begun}"}
    assert (await ada.post(MINE, back, headers=cookies)).code == "invalid_challenge"


async def test_who_signed_in_long_ago_signs_in_again_first(
    office: Office, issuer: Elsewhere
) -> None:
    ada = await office.signed_up(EMAIL)
    made = await issuer.links(ada, "ada")
    office.clock.ahead += timedelta(minutes=15)
    late = await ada.post(f"{MINE}/challenges", {"issuer": "elsewhere"})
    assert late.code == "sign_in_again"
    assert (await ada.delete(f"{MINE}/{made.body['id']}")).code == "sign_in_again"


async def test_one_is_removed_by_its_owner_and_signs_in_no_more(
    office: Office, issuer: Elsewhere
) -> None:
    ada, eve = await office.signed_up(EMAIL), await office.signed_up("eve@example.com")
    path = f"{MINE}/{(await issuer.links(ada, 'ada')).body['id']}"
    elsewhere = office.stranger()
    await issuer.signs_in(elsewhere, "ada")

    assert (await eve.delete(path)).code == "identity_not_found"
    assert (await ada.delete(path)).status == 204
    assert (await elsewhere.get("/me")).status == 401
    assert (await issuer.signs_in(office.stranger(), "ada")).code == "email_not_verified"
    told = [row["subject"] for row in await office.mails_to(EMAIL)]
    assert "A way to sign in was removed from your account" in told


async def test_the_last_way_to_sign_in_cannot_be_removed(
    issuer: Elsewhere, postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    stores = (postgres_url, redis_url, tmp_path)
    async with opened_with(issuer, *stores, trust_emails=True) as office:
        ada = office.stranger()
        await issuer.signs_in(ada, "ada")
        (one,) = (await ada.get(MINE)).body["data"]
        assert (await ada.delete(f"{MINE}/{one['id']}")).code == "last_way_to_sign_in"
        second = await issuer.links(ada, "bob")
        assert (await ada.delete(f"{MINE}/{one['id']}")).status == 204

        await office.pool.execute(
            "INSERT INTO identity (id, person_id, issuer, subject, email)"
            " SELECT gen_random_uuid(), person_id, 'https://gone.example', 'x', '' FROM identity"
        )
        got = await ada.delete(f"{MINE}/{second.body['id']}")
        assert got.code == "last_way_to_sign_in", "one that is configured no longer does not count"
