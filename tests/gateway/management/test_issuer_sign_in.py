"""Signing in at a real issuer, in a process of its own, and back."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest

from tests.gateway.management.ada import Ada, is_strong, wait, with_app
from tests.gateway.management.elsewhere import NAME, Elsewhere, opened_with
from tests.gateway.management.office import PASSWORD, Office

EMAIL = "ada@example.com"


@pytest.fixture
async def office(
    issuer: Elsewhere, postgres_url: str, redis_url: str, tmp_path: Path
) -> AsyncIterator[Office]:
    """It trusts the issuer with addresses."""
    async with opened_with(issuer, postgres_url, redis_url, tmp_path, trust_emails=True) as opened:
        yield opened


@pytest.fixture
async def wary(
    issuer: Elsewhere, postgres_url: str, redis_url: str, tmp_path: Path
) -> AsyncIterator[Office]:
    """It does not."""
    async with opened_with(issuer, postgres_url, redis_url, tmp_path) as opened:
        yield opened


async def test_who_is_new_has_an_account_at_once_where_the_issuer_is_trusted(
    office: Office, issuer: Elsewhere
) -> None:
    browser = office.stranger()
    got = await issuer.signs_in(browser, "ada")

    person = got.body["person"]
    assert (got.status, person["email"], person["name"]) == (201, EMAIL, "Ada")
    assert person["verified_at"] is not None
    assert person["account_id"] is not None or (await browser.get("/me")).body["account_id"]
    assert not await is_strong(browser)
    assert [row["text"] for row in await office.mails_to(EMAIL)] == []


async def test_they_are_the_same_person_the_next_time(office: Office, issuer: Elsewhere) -> None:
    first = await issuer.signs_in(office.stranger(), "ada")
    again = await issuer.signs_in(office.stranger(), "ada")
    assert first.body["person"]["id"] == again.body["person"]["id"]
    assert await office.pool.fetchval("SELECT used_at IS NOT NULL FROM identity")


async def test_a_page_is_told_where_people_can_sign_in(office: Office) -> None:
    got = await office.stranger().get("/session/issuers")
    assert got.body["data"] == [{"name": NAME}]
    unknown = await office.stranger().post("/session/issuer/challenges", {"issuer": "other"})
    assert (unknown.status, unknown.code) == (404, "issuer_not_found")


async def test_they_are_asked_with_all_that_tells_this_sign_in_apart(
    office: Office, issuer: Elsewhere
) -> None:
    browser = office.stranger()
    urls = [
        (await browser.post("/session/issuer/challenges", {"issuer": NAME})).body["url"]
        for _ in range(2)
    ]
    queries = [dict(parse_qsl(urlsplit(url).query)) for url in urls]
    assert queries[0]["redirect_uri"] == f"http://localhost:8081/signed-in/{NAME}"
    assert queries[0]["scope"] == "openid email profile"
    assert queries[0]["code_challenge_method"] == "S256"
    assert "s3cret" not in urls[0]
    assert urls[0].startswith(issuer.url)
    for name in ("state", "nonce", "code_challenge"):
        assert queries[0][name] != queries[1][name]


@pytest.mark.parametrize(
    "who",
    [
        *("another nonce", "another audience", "two audiences", "another issuer"),
        *("expired", "from the future", "another token"),
    ],
)
async def test_a_token_that_is_not_of_this_sign_in_lets_nobody_in(
    office: Office, issuer: Elsewhere, who: str
) -> None:
    got = await issuer.signs_in(office.stranger(), who)
    assert (got.status, got.code) == (401, "issuer_refused")
    assert await office.pool.fetchval("SELECT count(*) FROM person") == 0


async def test_a_token_for_two_is_taken_if_it_was_made_for_us(
    office: Office, issuer: Elsewhere
) -> None:
    assert (await issuer.signs_in(office.stranger(), "two audiences, ours")).status == 201


async def test_a_nonce_of_another_sign_in_lets_nobody_in(office: Office, issuer: Elsewhere) -> None:
    browser = office.stranger()
    url = (await browser.post("/session/issuer/challenges", {"issuer": NAME})).body["url"]
    whole, _, query = url.partition("?")
    changed = urlencode({**dict(parse_qsl(query)), "nonce": "of-another-sign-in"})
    back = await issuer.visited(f"{whole}?{changed}", "ada")
    body = {"issuer": NAME, "code": back["code"], "state": back["state"]}
    assert (await browser.post("/session/issuer", body)).code == "issuer_refused"


async def test_a_code_works_once(office: Office, issuer: Elsewhere) -> None:
    browser = office.stranger()
    first = await issuer.comes_back(browser, "ada")
    assert (await browser.post("/session/issuer", first)).status == 201

    assert (await browser.post("/session/issuer", first)).code == "invalid_challenge"
    second = await issuer.comes_back(browser, "ada")
    replayed = {**second, "code": first["code"]}
    assert (await browser.post("/session/issuer", replayed)).code == "issuer_refused"


async def test_a_state_is_of_one_browser_once_and_for_ten_minutes(
    office: Office, issuer: Elsewhere
) -> None:
    browser, other = office.stranger(), office.stranger()
    back = await issuer.comes_back(browser, "ada")
    assert (await other.post("/session/issuer", back)).code == "invalid_challenge"
    await issuer.comes_back(other, "bob")
    assert (await other.post("/session/issuer", back)).code == "invalid_challenge"
    office.clock.ahead += timedelta(minutes=10)
    assert (await browser.post("/session/issuer", back)).code == "invalid_challenge"


@pytest.mark.parametrize("who", ["unverified", "silent", "nobody"])
async def test_an_address_that_the_issuer_has_not_verified_is_worth_nothing(
    office: Office, issuer: Elsewhere, who: str
) -> None:
    await office.signed_up(EMAIL)
    got = await issuer.signs_in(office.stranger(), who)
    assert (got.status, got.code) == (403, "email_not_verified_there")
    assert await office.pool.fetchval("SELECT count(*) FROM identity") == 0


async def test_who_has_an_account_gets_into_it_by_a_trusted_address_and_is_told(
    office: Office, issuer: Elsewhere
) -> None:
    ada = (await (await office.signed_up(EMAIL)).get("/me")).body
    got = await issuer.signs_in(office.stranger(), "ADA")

    assert got.body["person"]["id"] == ada["id"]
    mail = (await office.mails_to(EMAIL))[-1]
    assert mail["subject"] == "A way to sign in was added to your account"
    assert (await office.stranger().signs_in(EMAIL)).status == 201, "the password goes on working"


async def test_who_signed_up_with_an_address_that_is_not_theirs_keeps_nothing_of_it(
    office: Office, issuer: Elsewhere
) -> None:
    await office.stranger().post("/people", {"email": EMAIL, "password": PASSWORD})
    got = await issuer.signs_in(office.stranger(), "ada")

    assert got.status == 201
    assert (await office.stranger().signs_in(EMAIL)).code == "wrong_credentials"


async def test_an_address_of_an_issuer_that_is_not_trusted_is_proved_by_our_own_mail(
    wary: Office, issuer: Elsewhere
) -> None:
    for _ in range(2):
        got = await issuer.signs_in(wary.stranger(), "ada")
        assert (got.status, got.code) == (403, "email_not_verified")
    secret = await wary.secret_mailed_to(EMAIL)
    await wary.stranger().post("/verifications/confirm", {"secret": secret})

    assert (await issuer.signs_in(wary.stranger(), "ada")).status == 201
    assert await wary.pool.fetchval("SELECT count(*) FROM person") == 1


async def test_who_has_an_account_adds_an_issuer_that_is_not_trusted_themselves(
    wary: Office, issuer: Elsewhere
) -> None:
    ada = await wary.signed_up(EMAIL)
    got, new = [await issuer.signs_in(wary.stranger(), who) for who in ("ada", "bob")]
    assert got.code == new.code == "email_not_verified"
    assert got.body["detail"].replace("ada", "bob") == new.body["detail"], "neither tells"
    mail = (await wary.mails_to(EMAIL))[-1]
    assert "has an account here already" in mail["text"]

    assert (await issuer.links(ada, "ada")).status == 201
    assert (await issuer.signs_in(wary.stranger(), "ada")).status == 201


@pytest.mark.parametrize("is_trusted", [True, False])
async def test_who_was_not_invited_does_not_sign_up_by_an_issuer_either(
    issuer: Elsewhere, postgres_url: str, redis_url: str, tmp_path: Path, *, is_trusted: bool
) -> None:
    settings = {"trust_emails": is_trusted, "management": {"sign_up": "invited"}}
    async with opened_with(issuer, postgres_url, redis_url, tmp_path, **settings) as office:
        got = await issuer.signs_in(office.stranger(), "ada")
        assert await office.pool.fetchval("SELECT count(*) FROM person") == 0
        if is_trusted:
            assert (got.status, got.code) == (403, "invitation_required")
        else:
            assert (got.status, got.code) == (403, "email_not_verified")
            assert "only who was invited" in (await office.mails_to(EMAIL))[-1]["text"]


async def with_second_factor(office: Office, issuer: Elsewhere) -> Ada:
    # The issuer goes by this machine's clock, and an app is set up within two hours.
    office.clock.ahead = -timedelta(hours=2)
    ada = await with_app(office)
    assert (await issuer.signs_in(office.stranger(), "ada")).code == "second_factor_required"
    wait(office, minutes=10)
    return ada


async def test_who_has_a_second_factor_shows_it_here_too(office: Office, issuer: Elsewhere) -> None:
    ada, browser = await with_second_factor(office, issuer), office.stranger()
    proof = (await issuer.signs_in(browser, "ada")).body["proof"]
    wrong = {"proof": proof, "code": ada.wrong()}
    assert (await browser.post("/session/issuer/code", wrong)).code == "wrong_code"
    right = {"proof": proof, "code": ada.code()}
    assert (await browser.post("/session/issuer/code", right)).status == 201
    assert await is_strong(browser)

    wait(office, minutes=1)
    again = {"proof": proof, "code": ada.code()}
    assert (await browser.post("/session/issuer/code", again)).code == "invalid_challenge"
    forged = {"proof": proof[:-8] + "AAAAAAAA", "code": ada.recovery[0]}
    assert (await browser.post("/session/issuer/code", forged)).code == "invalid_challenge"


async def test_a_proof_is_good_for_ten_minutes(office: Office, issuer: Elsewhere) -> None:
    ada, browser = await with_second_factor(office, issuer), office.stranger()
    proof = (await issuer.signs_in(browser, "ada")).body["proof"]
    wait(office, minutes=10)
    late = await browser.post("/session/issuer/code", {"proof": proof, "code": ada.code()})
    assert late.code == "invalid_challenge"


async def test_a_closed_account_stays_closed(office: Office, issuer: Elsewhere) -> None:
    await issuer.signs_in(office.stranger(), "ada")
    await office.pool.execute("UPDATE person SET disabled_at = now()")
    for who in ("ada", "ADA"):
        got = await issuer.signs_in(office.stranger(), who)
        assert (got.status, got.code) == (401, "account_closed")
