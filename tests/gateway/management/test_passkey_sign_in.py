"""Signing in with a passkey, over HTTP."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.management.ada import ADA, is_strong, with_app
from tests.gateway.management.authenticator import Authenticator, adds, signs_in, text
from tests.gateway.management.office import Browser, Office, open_office
from tests.gateway.management.rooms import made_organization


async def with_passkey(office: Office, **facts: Any) -> Authenticator:
    """Ada's."""
    key = Authenticator(**facts)
    assert (await adds(await office.signed_up(ADA), key)).status == 201
    return key


async def test_a_passkey_says_itself_whose_it_is_and_is_both_factors(office: Office) -> None:
    key, browser = Authenticator(), office.stranger()
    ada = await with_app(office)
    await ada.signs_in(code=ada.code())
    await ada.browser.signs_in(ADA, code=ada.code(1))
    assert (await adds(ada.browser, key)).status == 201

    got = await signs_in(browser, key)
    assert (got.status, got.body["person"]["email"]) == (201, ADA), "and no code was asked for"
    assert await is_strong(browser)
    assert (await browser.get("/me/passkeys")).body["data"][0]["used_at"] is not None


async def test_it_is_what_an_organization_can_want_of_its_owners(office: Office) -> None:
    ada, key = await office.signed_up(ADA), Authenticator()
    await adds(ada, key)
    acme = await made_organization(ada, "Acme")
    await acme.patch("/policy", {"switches": {"owners_need_second_factor": True}})
    refused = await acme.patch("/organization", {"name": "X"})
    assert refused.code == "second_factor_required"
    assert "passkey" in refused.body["detail"]

    await signs_in(ada, key)
    again = ada.at(acme.headers["X-Organization-Id"])
    assert (await again.patch("/organization", {"name": "X"})).status == 200


async def test_one_that_does_not_count_signs_in_again_and_again(office: Office) -> None:
    key = await with_passkey(office, count=None)
    for _ in range(3):
        assert (await signs_in(office.stranger(), key)).status == 201


@pytest.mark.parametrize(
    "wrong",
    [
        {"origin": "http://localhost:8082"},
        {"origin": "http://127.0.0.1:8081"},
        {"party": "example.com"},
        {"is_verifying": False},
        {"is_synced": True},
    ],
)
async def test_another_site_or_an_unverified_user_signs_nobody_in(
    office: Office, wrong: dict[str, Any]
) -> None:
    key = await with_passkey(office)
    for name, value in wrong.items():
        setattr(key, name, value)
    got = await signs_in(office.stranger(), key)
    assert (got.status, got.code) == (401, "passkey_refused")


async def test_an_answer_works_once(office: Office) -> None:
    key, browser = await with_passkey(office, count=None), office.stranger()
    options = (await browser.post("/session/passkey/challenges")).body["public_key"]
    cookies = "; ".join(f"{one.key}={one.value}" for one in browser.cookies())
    body = {"credential": key.get(options)}
    assert (await browser.post("/session/passkey", body)).status == 201

    again = await browser.post("/session/passkey", body, headers={"Cookie": cookies})
    assert again.code == "invalid_challenge"


async def test_an_answer_is_of_the_browser_that_asked_and_soon(office: Office) -> None:
    key, browser = await with_passkey(office), office.stranger()
    options = (await browser.post("/session/passkey/challenges")).body["public_key"]
    body = {"credential": key.get(options)}

    assert (await office.stranger().post("/session/passkey", body)).code == "invalid_challenge"
    other = office.stranger()
    await other.post("/session/passkey/challenges")
    assert (await other.post("/session/passkey", body)).code == "passkey_refused"
    office.clock.ahead += timedelta(minutes=10)
    assert (await browser.post("/session/passkey", body)).code == "invalid_challenge"


async def test_a_copy_gives_itself_away_by_its_counter(office: Office) -> None:
    key = await with_passkey(office)
    await signs_in(office.stranger(), key)
    copied_at = key.count
    await signs_in(office.stranger(), key)
    key.count = copied_at

    got = await signs_in(office.stranger(), key)
    assert (got.status, got.code) == (401, "passkey_copied")
    mail = (await office.mails_to(ADA))[-1]
    assert mail["subject"] == "A passkey of your account may have been copied"
    key.count = None  # a counter that stops is one that goes back
    assert (await signs_in(office.stranger(), key)).code == "passkey_copied"


async def test_somebody_elses_passkey_does_not_open_the_account(office: Office) -> None:
    key, eves = await with_passkey(office), Authenticator()
    eve = await office.signed_up("eve@example.com")
    await adds(eve, eves)
    office.clock.is_rushing = True  # for the limits of rates

    ids = {"id": text(key.id), "rawId": text(key.id)}
    assert (await signs_in(office.stranger(), eves, **ids)).code == "passkey_refused"
    eves.handle = key.handle
    assert (await signs_in(office.stranger(), eves)).code == "passkey_refused"
    assert (await signs_in(office.stranger(), eves, **ids)).code == "passkey_refused"


async def test_one_that_nobody_knows_and_one_of_who_was_disabled_are_answered_alike(
    office: Office,
) -> None:
    key, unknown = await with_passkey(office), Authenticator(handle=bytes(16))
    await office.pool.execute("UPDATE person SET disabled_at = now()")

    got = [await signs_in(office.stranger(), each) for each in (key, unknown)]
    assert got[0].body == got[1].body
    assert got[0].status == 401


async def test_what_cannot_be_read_is_refused(office: Office) -> None:
    key = await with_passkey(office)

    async def answer(browser: Browser, **said: str) -> str:
        options = (await browser.post("/session/passkey/challenges")).body["public_key"]
        credential = key.get(options)
        credential["response"].update(said)
        return (await browser.post("/session/passkey", {"credential": credential})).code

    for said in (
        {"signature": "A"},
        {"authenticatorData": text(bytes(37))},
        {"authenticatorData": text(b"x")},
        {"clientDataJSON": text(b"[]")},
        {"clientDataJSON": text(b"\xff")},
        {"userHandle": "A"},
    ):
        assert await answer(office.stranger(), **said) == "passkey_refused", said


async def test_many_machines_try_one_passkey_no_more_than_one_does(
    postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    changes = "management: {proxies: 1}"
    async with open_office(postgres_url, redis_url, tmp_path, changes=changes) as office:
        key = await with_passkey(office, is_verifying=True)
        key.is_verifying = False
        said = []
        for number in range(11):
            browser = office.stranger()
            browser.headers["X-Forwarded-For"] = f"192.0.2.{number}"
            said.append((await signs_in(browser, key)).status)
        assert said == [401] * 10 + [429]
