"""Signing in and out, over HTTP."""

from datetime import timedelta
from pathlib import Path

from tests.gateway.management.office import PASSWORD, Office, open_office


async def test_who_has_not_proved_their_address_cannot_sign_in(office: Office) -> None:
    eve = office.stranger()
    await eve.post("/people", {"email": "eve@example.com", "password": PASSWORD})

    got = await eve.signs_in("eve@example.com")

    assert (got.status, got.code) == (403, "email_not_verified")


async def test_a_wrong_password_and_an_unknown_address_are_answered_alike(office: Office) -> None:
    await office.signed_up("ada@example.com")
    eve = office.stranger()

    wrong = await eve.signs_in("ada@example.com", "not her password at all")
    unknown = await eve.signs_in("nobody@example.com")

    assert (wrong.status, wrong.body) == (401, unknown.body)


async def test_passwords_cannot_be_tried_out(office: Office) -> None:
    await office.signed_up("ada@example.com")
    eve = office.stranger()

    said = [(await eve.signs_in("ada@example.com", f"guess {n}")).status for n in range(11)]

    assert said[-1] == 429
    office.clock.ahead += timedelta(minutes=2)
    assert (await eve.signs_in("ada@example.com")).status == 201


async def test_a_link_for_one_thing_is_none_for_another(office: Office) -> None:
    eve = office.stranger()
    await eve.post("/people", {"email": "eve@example.com", "password": PASSWORD})
    secret = await office.secret_mailed_to("eve@example.com")

    assert (await eve.post("/session/link", {"secret": secret})).code == "invalid_link"


async def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(office: Office) -> None:
    await office.signed_up("ada@example.com")

    got = await office.stranger().signs_in("ada@example.com")

    cookie = got.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert "tg_session_" not in str(got.body)


async def test_many_machines_try_passwords_of_one_account_no_more_than_one_does(
    postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    changes = "management: {proxies: 1}"
    async with open_office(postgres_url, redis_url, tmp_path, changes=changes) as office:
        await office.signed_up("ada@example.com")
        eve = office.stranger()
        said = []
        for number in range(12):
            here = {"X-Forwarded-For": f"203.0.113.{number}"}
            wrong = {"email": "Ada@example.com", "password": "x"}
            said.append((await eve.post("/session", wrong, headers=here)).status)
        assert said == [401] * 9 + [429] * 3, "with her own, ten at once"


async def test_a_change_without_the_token_of_the_session_is_refused(office: Office) -> None:
    ada = await office.signed_up("ada@example.com")

    token = ada.headers.pop("X-CSRF-Token")
    assert (await ada.patch("/me", {"name": "Eve"})).code == "csrf_token"
    assert (await ada.get("/me")).status == 200
    assert (
        await ada.patch("/me", {"name": "Ada L."}, headers={"X-CSRF-Token": token})
    ).status == 200


async def test_a_session_ends_when_its_person_says_so(office: Office) -> None:
    ada = await office.signed_up("ada@example.com")
    elsewhere = office.stranger()
    await elsewhere.signs_in("ada@example.com")
    sessions = (await ada.get("/sessions")).body["data"]
    (other,) = [one for one in sessions if not one["is_this_one"]]

    assert (await ada.delete(f"/sessions/{other['id']}")).status == 204
    assert (await elsewhere.get("/me")).status == 401
    assert (await ada.delete(f"/sessions/{other['id']}")).code == "session_not_found"
    assert (await ada.delete("/session")).status == 204
    assert (await ada.get("/me")).code == "not_signed_in"


async def test_nobody_ends_somebody_elses_session(office: Office) -> None:
    ada, eve = await office.signed_up("ada@example.com"), await office.signed_up("eve@example.com")
    (session,) = (await ada.get("/sessions")).body["data"]

    assert (await eve.delete(f"/sessions/{session['id']}")).status == 404
    assert (await ada.get("/me")).status == 200


async def test_a_session_ends_unused_after_two_weeks_and_anyhow_after_thirty_days(
    office: Office,
) -> None:
    ada, bob = await office.signed_up("ada@example.com"), await office.signed_up("bob@example.com")
    for _ in range(2):
        office.clock.ahead += timedelta(days=13)
        assert (await ada.get("/me")).status == 200
    assert (await bob.get("/me")).status == 401
    office.clock.ahead += timedelta(days=5)
    assert (await ada.get("/me")).status == 401


async def test_a_new_password_ends_the_sessions_elsewhere(office: Office) -> None:
    ada = await office.signed_up("ada@example.com")
    elsewhere = office.stranger()
    await elsewhere.signs_in("ada@example.com")
    new = "harbour velvet eleven moths"

    assert (await ada.put("/me/password", {"old": "wrong", "new": new})).status == 403
    assert (await ada.put("/me/password", {"old": PASSWORD, "new": new})).status == 204

    assert (await ada.get("/me")).status == 200
    assert (await elsewhere.get("/me")).status == 401
    assert (await elsewhere.signs_in("ada@example.com")).status == 401
    assert (await elsewhere.signs_in("ada@example.com", new)).status == 201


async def test_a_forgotten_password_is_replaced_by_a_link(office: Office) -> None:
    ada = await office.signed_up("ada@example.com")
    lost = office.stranger()
    await lost.post("/password-resets", {"email": "ada@example.com"})
    secret = await office.secret_mailed_to("ada@example.com")
    weak = await lost.post("/password-resets/confirm", {"secret": secret, "password": "password"})
    new = {"secret": secret, "password": "harbour velvet eleven moths"}

    assert weak.code == "weak_password"
    assert (await lost.post("/password-resets/confirm", new)).status == 204, "the link still works"
    assert (await ada.get("/me")).status == 401, "whoever was signed in is not any more"
    assert (await lost.signs_in("ada@example.com", new["password"])).status == 201
