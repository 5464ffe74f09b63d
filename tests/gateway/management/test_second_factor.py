"""The second factor over HTTP: set up, wanted at every sign-in, used once, ended."""

import asyncio
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from gateway.management import operators
from tests.gateway.management.ada import (
    ADA,
    CONFIRMATION,
    REMOVAL,
    TRIAL,
    Ada,
    is_strong,
    wait,
    with_app,
    without_app,
)
from tests.gateway.management.office import PASSWORD, Office
from tests.gateway.management.rooms import made_organization


@pytest.fixture
async def newcomer(office: Office) -> Ada:
    """She has none yet."""
    return await without_app(office)


@pytest.fixture
async def ada(office: Office) -> Ada:
    """She has set hers up."""
    return await with_app(office)


async def test_an_app_is_told_the_secret_and_whose_it_is(newcomer: Ada) -> None:
    got = await newcomer.starts()

    uri = urlsplit(got.body["uri"])
    assert (got.status, uri.scheme, uri.netloc) == (201, "otpauth", "totp")
    assert unquote(uri.path) == f"/Tollgate:{ADA}"
    assert parse_qs(uri.query) == {"secret": [got.body["secret"]], "issuer": ["Tollgate"]}
    assert len(got.body["secret"]) == 32, "160 bits"


async def test_the_first_code_makes_this_session_strong_and_ends_the_others(newcomer: Ada) -> None:
    await newcomer.starts()
    assert not await is_strong(newcomer.browser)
    got = await newcomer.confirms()

    assert got.status == 200
    assert len(set(got.body["codes"])) == 10
    assert all(len(code) == 11 and code[5] == "-" for code in got.body["codes"])
    assert await is_strong(newcomer.browser)
    assert (await newcomer.elsewhere.get("/me")).status == 401
    assert (await newcomer.browser.get("/me")).body["has_one_time_passwords"]


async def test_only_who_knows_the_password_gets_a_secret(newcomer: Ada) -> None:
    got = await newcomer.browser.post(TRIAL, {"password": "not her password"})
    assert (got.status, got.code) == (403, "wrong_credentials")


async def test_who_has_no_password_is_told_to_set_one_first(office: Office) -> None:
    root = await office.operator("root@example.com")
    got = await root.post(TRIAL, {"password": "whatever it may be"})
    assert (got.status, got.code) == (409, "no_password")


async def test_nothing_is_wanted_of_who_is_still_trying(newcomer: Ada) -> None:
    await newcomer.starts()

    wrong = await newcomer.browser.post(CONFIRMATION, {"code": newcomer.wrong()})

    assert (wrong.status, wrong.code) == (403, "wrong_code")
    assert (await newcomer.signs_in()).status == 201
    assert (await newcomer.elsewhere.get("/me")).status == 200


async def test_the_newest_trial_is_the_one_that_counts(newcomer: Ada) -> None:
    await newcomer.starts()
    older = newcomer.code()
    await newcomer.starts()

    assert (await newcomer.browser.post(CONFIRMATION, {"code": older})).code == "wrong_code"
    assert (await newcomer.confirms()).status == 200


async def test_each_step_wants_the_one_before_it(newcomer: Ada) -> None:
    browser = newcomer.browser
    assert (await browser.post(CONFIRMATION, {"code": "123456"})).code == "no_trial"
    absent = await browser.post("/me/recovery-codes", {"code": "123456"})
    assert (absent.status, absent.code) == (409, "no_one_time_passwords")
    absent = await browser.post(REMOVAL, {"password": PASSWORD, "code": "123456"})
    assert (absent.status, absent.code) == (409, "no_one_time_passwords")
    await newcomer.starts()
    await newcomer.confirms()

    assert (await newcomer.starts()).code == "one_time_passwords_exist"
    assert (await newcomer.confirms()).code == "one_time_passwords_exist"


async def test_signing_in_wants_a_code_and_is_strong_with_it(office: Office, ada: Ada) -> None:
    browser = office.stranger()
    missing = await browser.signs_in(ADA)
    wrong = await browser.signs_in(ADA, code=ada.wrong())
    right = await browser.signs_in(ADA, code=ada.code())

    assert (missing.status, missing.code) == (401, "second_factor_required")
    assert "`code`" in missing.body["detail"]
    assert (wrong.status, wrong.code) == (401, "wrong_code")
    assert right.status == 201
    assert await is_strong(browser)


async def test_who_lacks_the_password_does_not_learn_of_the_second_factor(ada: Ada) -> None:
    got = await ada.signs_in(password="not her password", code=ada.code())
    assert got.code == "wrong_credentials"
    assert (await ada.signs_in(code=ada.code())).status == 201, "and the code was not used up"


async def test_a_code_works_once(newcomer: Ada) -> None:
    await newcomer.starts()
    code = newcomer.code()
    await newcomer.browser.post(CONFIRMATION, {"code": code})

    assert (await newcomer.signs_in(code=code)).code == "wrong_code"
    after = newcomer.code(1)
    assert (await newcomer.signs_in(code=after)).status == 201
    assert (await newcomer.signs_in(code=after)).code == "wrong_code"
    assert (await newcomer.signs_in(code=code)).code == "wrong_code", "nor do those before it"


@pytest.mark.parametrize("kind", ["of the app", "recovery"])
async def test_of_two_who_show_one_code_at_once_one_gets_in(ada: Ada, kind: str) -> None:
    code = ada.code() if kind == "of the app" else ada.recovery[0]
    got = await asyncio.gather(*(ada.signs_in(code=code) for _ in range(4)))
    assert sorted(one.status for one in got) == [201, 401, 401, 401]


async def test_a_clock_may_be_one_step_wrong_and_no_more(office: Office, ada: Ada) -> None:
    assert (await ada.signs_in(code=ada.code(-2))).code == "wrong_code"
    assert (await ada.signs_in(code=ada.code(2))).code == "wrong_code"
    assert (await ada.signs_in(code=ada.code(-1))).status == 201
    assert (await ada.signs_in(code=ada.code(1))).status == 201
    wait(office)
    spaced = f"{ada.code()[:3]} {ada.code()[3:]}"
    assert (await ada.signs_in(code=spaced)).status == 201


async def test_a_recovery_code_works_once_however_it_is_typed(office: Office, ada: Ada) -> None:
    browser, code = office.stranger(), ada.recovery[3]
    typed = code.upper().replace("-", " ").replace("0", "O").replace("1", "l")

    assert (await browser.signs_in(ADA, code=typed)).status == 201
    assert await is_strong(browser)
    assert (await ada.signs_in(code=code)).code == "wrong_code"
    assert (await ada.signs_in(code=ada.recovery[4])).status == 201


async def test_nobody_elses_recovery_code_will_do(office: Office, ada: Ada) -> None:
    eve = Ada(office, await office.signed_up("eve@example.com"), ada.browser)
    await eve.starts()
    await eve.confirms()

    assert (await ada.signs_in(code=eve.recovery[0])).code == "wrong_code"
    assert (await ada.signs_in(code=eve.code(1))).code == "wrong_code"


async def test_new_recovery_codes_are_the_old_ones_end(office: Office, ada: Ada) -> None:
    wrong = await ada.browser.post("/me/recovery-codes", {"code": ada.wrong()})
    got = await ada.browser.post("/me/recovery-codes", {"code": ada.code()})

    assert (wrong.status, wrong.code) == (403, "wrong_code")
    assert (got.status, len(got.body["codes"])) == (201, 10)
    wait(office)
    assert (await ada.signs_in(code=ada.recovery[0])).code == "wrong_code"
    assert (await ada.signs_in(code=got.body["codes"][0])).status == 201


async def test_ending_it_takes_both_factors_and_leaves_weak_sessions(
    office: Office, ada: Ada
) -> None:
    eve, code = {"password": "not her password", "code": ada.code()}, ada.code()
    assert (await ada.browser.post(REMOVAL, eve)).code == "wrong_credentials"
    wrong = {"password": PASSWORD, "code": ada.wrong()}
    assert (await ada.browser.post(REMOVAL, wrong)).code == "wrong_code"
    got = await ada.browser.post(REMOVAL, {"password": PASSWORD, "code": code})

    assert got.status == 204
    assert not await is_strong(ada.browser)
    assert not (await ada.browser.get("/me")).body["has_one_time_passwords"]
    assert (await ada.signs_in()).status == 201
    assert await office.pool.fetchval("SELECT count(*) FROM recovery_code") == 0
    assert (await ada.starts()).status == 201, "and it can be set up anew, at once"
    assert (await ada.confirms()).status == 200


async def test_after_ten_wrong_codes_in_a_row_even_the_right_one_has_to_wait(
    office: Office, ada: Ada
) -> None:
    for _ in range(10):
        wait(office, minutes=0.6)  # or the limit of the address comes first
        assert (await ada.signs_in(code=ada.wrong())).code == "wrong_code"
    wait(office, minutes=0.6)
    held = await ada.signs_in(code=ada.code())
    elsewhere = await ada.browser.post("/me/recovery-codes", {"code": ada.recovery[0]})

    assert (held.status, held.code) == (429, "too_many_wrong_codes")
    assert 0 < int(held.headers["Retry-After"]) <= 900
    assert elsewhere.code == "too_many_wrong_codes"
    wait(office, minutes=15)
    assert (await ada.signs_in(code=ada.code())).status == 201


async def test_a_right_code_ends_the_count(office: Office, ada: Ada) -> None:
    for _ in range(9):
        wait(office, minutes=0.6)
        await ada.signs_in(code=ada.wrong())
    wait(office, minutes=0.6)
    assert (await ada.signs_in(code=ada.code())).status == 201
    wait(office, minutes=1)
    assert (await ada.signs_in(code=ada.wrong())).code == "wrong_code"
    assert await office.pool.fetchval("SELECT otp_wrong FROM person WHERE email = $1", ADA) == 1


async def test_many_machines_at_once_have_ten_codes_looked_at(office: Office, ada: Ada) -> None:
    await office.pool.execute(
        "UPDATE person SET otp_wrong = 8, otp_wrong_since = $1", office.desk.now()
    )
    got = await asyncio.gather(*(ada.signs_in(code=ada.wrong()) for _ in range(6)))
    assert sorted(one.code for one in got) == ["too_many_wrong_codes"] * 4 + ["wrong_code"] * 2


async def test_a_link_of_the_command_line_wants_the_code_too(office: Office, ada: Ada) -> None:
    desk, browser = office.desk, office.stranger()
    made = await operators.make(
        desk.pool, ADA, digest=desk.digest, random_bytes=desk.random_bytes, now=desk.now()
    )
    link = {"secret": made.reveal()}
    missing = await browser.post("/session/link", link)
    wrong = await browser.post("/session/link", {**link, "code": ada.wrong()})
    right = await browser.post("/session/link", {**link, "code": ada.code()})

    assert (missing.status, missing.code) == (401, "second_factor_required")
    assert (wrong.status, wrong.code) == (401, "wrong_code")
    assert right.status == 201, "the link was not used up"
    assert not await is_strong(browser)
    again = await browser.post("/session/link", {**link, "code": ada.recovery[0]})
    assert again.code == "invalid_link"


async def test_a_new_password_is_no_way_around_it(office: Office, ada: Ada) -> None:
    await office.stranger().post("/password-resets", {"email": ADA})
    new = "harbour velvet eleven moths"
    body = {"secret": await office.secret_mailed_to(ADA), "password": new}
    assert (await office.stranger().post("/password-resets/confirm", body)).status == 204

    assert (await ada.signs_in(password=new)).code == "second_factor_required"
    assert (await ada.signs_in(password=new, code=ada.code())).status == 201


async def test_it_is_what_an_organization_can_want_of_its_owners(
    office: Office, newcomer: Ada
) -> None:
    acme = await made_organization(newcomer.browser, "Acme")
    await acme.patch("/policy", {"switches": {"owners_need_second_factor": True}})
    assert (await acme.patch("/organization", {"name": "X"})).code == "second_factor_required"

    await newcomer.starts()
    await newcomer.confirms()
    assert (await acme.patch("/organization", {"name": "X"})).status == 200

    wait(office)
    await newcomer.browser.post(REMOVAL, {"password": PASSWORD, "code": newcomer.code()})
    assert (await acme.patch("/organization", {"name": "Y"})).code == "second_factor_required"


async def test_no_store_has_a_secret_or_a_recovery_code(office: Office, ada: Ada) -> None:
    sealed = await office.pool.fetchval("SELECT otp_secret FROM person WHERE email = $1", ADA)
    digests = await office.pool.fetch("SELECT digest FROM recovery_code")

    assert ada.secret.encode() not in sealed
    assert {len(row["digest"]) for row in digests} == {32}


async def test_a_secret_that_cannot_be_opened_leaves_the_recovery_codes(
    office: Office, ada: Ada
) -> None:
    moved = office.desk.sealer.seal(ada.secret, "otp of somebody else")
    await office.pool.execute("UPDATE person SET otp_secret = $1", moved)

    assert (await ada.signs_in(code=ada.code())).code == "secret_unreadable"
    assert (await ada.signs_in(code=ada.recovery[0])).status == 201


@pytest.mark.parametrize("code", ["١٢٣٤٥٦", "ééé", "------", "-", "%s\\", "\U0001f511" * 6])
async def test_what_is_no_code_is_a_wrong_one(ada: Ada, code: str) -> None:
    assert (await ada.signs_in(code=code)).code == "wrong_code"
    got = await ada.browser.post("/me/recovery-codes", {"code": code})
    assert got.code == "wrong_code"
