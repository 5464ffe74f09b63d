"""One's own passkeys over HTTP: made on a page of this site, listed, renamed and removed."""

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from tests.gateway.management.ada import ADA
from tests.gateway.management.authenticator import Authenticator, adds, challenged, signs_in
from tests.gateway.management.office import Office, open_office

MINE = "/me/passkeys"


async def test_a_passkey_is_listed_with_whether_it_can_be_lost(office: Office) -> None:
    ada = await office.signed_up(ADA)
    await adds(ada, Authenticator(), "key ring")
    got = await adds(ada, Authenticator(is_synced=True), "phone")

    assert (got.status, got.body["name"], got.body["used_at"]) == (201, "phone", None)
    listed = (await ada.get(MINE)).body["data"]
    assert [(one["name"], one["can_be_backed_up"], one["is_backed_up"]) for one in listed] == [
        ("key ring", False, False),
        ("phone", True, True),
    ]
    eve = await office.signed_up("eve@example.com")
    assert (await eve.get(MINE)).body["data"] == []


async def test_an_authenticator_is_asked_to_verify_its_user_and_to_make_no_second_one(
    office: Office,
) -> None:
    ada, key = await office.signed_up(ADA), Authenticator()
    first = await challenged(ada)
    await adds(ada, key)
    second = await challenged(ada)

    assert first["rp"] == {"name": "Tollgate", "id": "localhost"}
    assert first["authenticatorSelection"]["userVerification"] == "required"
    assert first["authenticatorSelection"]["residentKey"] == "required"
    assert [one["id"] for one in second["excludeCredentials"]] == [key.get({**_GET})["id"]]
    assert ADA not in str(first["user"]["id"])


_GET = {"rpId": "localhost", "challenge": "x"}


async def test_a_new_passkey_is_told_by_mail_and_so_is_its_end(office: Office) -> None:
    ada = await office.signed_up(ADA)
    made = await adds(ada, Authenticator(), "phone")
    await ada.delete(f"{MINE}/{made.body['id']}")

    mails = (await office.mails_to(ADA))[-2:]
    assert [mail["subject"] for mail in mails] == [
        "A passkey was added to your account",
        "A passkey was removed from your account",
    ]
    assert all("'phone'" in mail["text"] for mail in mails)


@pytest.mark.parametrize(
    "wrong",
    [
        {"origin": "http://localhost:8082"},
        {"origin": "https://localhost:8081"},
        {"origin": "http://localhost:8081.example.com"},
        {"party": "example.com"},
        {"is_verifying": False},
    ],
)
async def test_a_passkey_of_another_site_or_without_a_verified_user_is_not_kept(
    office: Office, wrong: dict[str, str | bool]
) -> None:
    ada = await office.signed_up(ADA)
    got = await adds(ada, Authenticator(**wrong))  # type: ignore[arg-type] # one field each
    assert (got.status, got.code) == (400, "passkey_refused")
    assert (await ada.get(MINE)).body["data"] == []


async def test_a_challenge_is_answered_once(office: Office) -> None:
    ada, key = await office.signed_up(ADA), Authenticator()
    options = await challenged(ada)
    jar = {one.key: one.value for one in ada.cookies()}
    body = {"name": "one", "credential": key.create(options)}
    assert (await ada.post(MINE, body)).status == 201

    again = {"name": "two", "credential": Authenticator().create(options)}
    kept = {"Cookie": "; ".join(f"{name}={value}" for name, value in jar.items())}
    assert (await ada.post(MINE, again, headers=kept)).code == "invalid_challenge"


async def test_a_wrong_answer_uses_the_challenge_up(office: Office) -> None:
    ada = await office.signed_up(ADA)
    options = await challenged(ada)
    wrong = Authenticator(origin="http://evil.example").create(options)
    assert (await ada.post(MINE, {"name": "x", "credential": wrong})).code == "passkey_refused"

    right = Authenticator().create(options)
    assert (await ada.post(MINE, {"name": "x", "credential": right})).code == "invalid_challenge"


async def test_a_challenge_is_of_one_session_and_lasts_ten_minutes(office: Office) -> None:
    ada, elsewhere = await office.signed_up(ADA), office.stranger()
    await elsewhere.signs_in(ADA)
    options = await challenged(ada)
    (cookie,) = [one.value for one in ada.cookies() if one.key == "tollgate_challenge"]
    (own,) = [one.value for one in elsewhere.cookies() if one.key == "tollgate_session"]
    body = {"name": "x", "credential": Authenticator().create(options)}

    stolen = {"Cookie": f"tollgate_session={own}; tollgate_challenge={cookie}"}
    assert (await elsewhere.post(MINE, body, headers=stolen)).code == "invalid_challenge"
    office.clock.ahead += timedelta(minutes=10)
    assert (await ada.post(MINE, body)).code == "invalid_challenge"


async def test_a_challenge_for_signing_in_makes_no_passkey(office: Office) -> None:
    ada = await office.signed_up(ADA)
    options = await challenged(ada)
    other = (await ada.post("/session/passkey/challenges")).body["public_key"]
    credential = Authenticator().create({**options, "challenge": other["challenge"]})

    got = await ada.post(MINE, {"name": "x", "credential": credential})
    assert got.code == "invalid_challenge"


async def test_a_passkey_is_of_one_person(office: Office) -> None:
    key = Authenticator()
    assert (await adds(await office.signed_up(ADA), key)).status == 201
    got = await adds(await office.signed_up("eve@example.com"), key)
    assert (got.status, got.code) == (409, "passkey_exists")


async def test_who_signed_in_long_ago_signs_in_again_first(office: Office) -> None:
    ada = await office.signed_up(ADA)
    made = await adds(ada, Authenticator())
    office.clock.ahead += timedelta(minutes=15)

    assert (await ada.post(f"{MINE}/challenges")).code == "sign_in_again"
    assert (await ada.delete(f"{MINE}/{made.body['id']}")).code == "sign_in_again"
    await ada.signs_in(ADA)
    assert (await ada.delete(f"{MINE}/{made.body['id']}")).status == 204


async def test_it_is_renamed_by_its_owner_unless_somebody_was_faster(office: Office) -> None:
    ada, eve = await office.signed_up(ADA), await office.signed_up("eve@example.com")
    path = f"{MINE}/{(await adds(ada, Authenticator())).body['id']}"

    assert (await eve.patch(path, {"name": "mine"})).code == "passkey_not_found"
    assert (await eve.delete(path)).code == "passkey_not_found"
    got = await ada.patch(path, {"name": "phone"}, headers={"If-Match": '"1"'})
    assert (got.status, got.body["name"], got.headers["ETag"]) == (200, "phone", '"2"')
    late = await ada.patch(path, {"name": "other"}, headers={"If-Match": '"1"'})
    assert (late.status, late.code) == (412, "changed_meanwhile")


async def test_removing_one_ends_sessions_elsewhere_and_leaves_weak_ones(office: Office) -> None:
    ada, key = await office.signed_up(ADA), Authenticator()
    made = await adds(ada, key)
    elsewhere, here = office.stranger(), office.stranger()
    await signs_in(elsewhere, key)
    await signs_in(here, key)
    assert (await here.delete(f"{MINE}/{made.body['id']}")).status == 204

    assert (await elsewhere.get("/me")).status == 401
    (session,) = (await here.get("/sessions")).body["data"]
    assert not session["is_strong"]
    assert (await signs_in(office.stranger(), key)).code == "passkey_refused"


async def test_the_last_way_to_sign_in_cannot_be_removed(office: Office) -> None:
    root = await office.operator("root@example.com")
    made = [await adds(root, Authenticator()) for _ in range(2)]
    paths = [f"{MINE}/{one.body['id']}" for one in made]

    got = await asyncio.gather(*(root.delete(path) for path in paths))
    assert sorted(one.status for one in got) == [204, 409]
    (refused,) = [one for one in got if one.status == 409]
    assert refused.code == "last_way_to_sign_in"
    assert "password" in refused.body["detail"]
    assert len((await root.get(MINE)).body["data"]) == 1


async def test_nobody_has_more_than_twenty(office: Office) -> None:
    office.clock.is_rushing = True
    ada = await office.signed_up(ADA)
    for _ in range(20):
        assert (await adds(ada, Authenticator())).status == 201
    assert (await adds(ada, Authenticator())).code == "too_many_passkeys"


async def test_an_installation_without_a_name_says_what_to_set(
    postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    changes = "management: {public_url: 'http://127.0.0.1:8081'}"
    async with open_office(postgres_url, redis_url, tmp_path, changes=changes) as office:
        ada = await office.signed_up(ADA)
        for browser, path in ((ada, f"{MINE}/challenges"), (ada, "/session/passkey/challenges")):
            got = await browser.post(path)
            assert (got.status, got.code) == (409, "no_host_name")
            assert "management.public_url" in got.body["detail"]
