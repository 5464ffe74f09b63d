"""Signing up: an address is proved, an account is made, and nobody learns who has one."""

from datetime import timedelta
from pathlib import Path

from tests.gateway.management.office import PASSWORD, Office, open_office


async def test_somebody_signs_up_proves_their_address_and_has_an_account(office: Office) -> None:
    ada = await office.signed_up("Ada@Example.com")

    me = (await ada.get("/me")).body
    assert (me["email"], me["name"], me["is_operator"]) == ("ada@example.com", "Ada", False)
    (own,) = (await ada.get("/organizations")).body["data"]
    assert (own["id"], own["kind"], own["role"]) == (me["account_id"], "personal", "owner")


async def test_whether_an_address_is_known_is_told_by_mail_alone(office: Office) -> None:
    await office.signed_up("ada@example.com")
    eve = office.stranger()

    said = [
        await eve.post(path, {"email": email, **more})
        for path, more in (
            ("/people", {"password": PASSWORD}),
            ("/verifications", {}),
            ("/password-resets", {}),
        )
        for email in ("ada@example.com", "nobody@example.com")
    ]

    assert {got.status for got in said} == {202}
    for known, unknown in zip(said[::2], said[1::2], strict=True):
        assert known.body["detail"].replace("ada", "nobody") == unknown.body["detail"]
    subjects = [mail["subject"] for mail in await office.mails_to("ada@example.com")]
    assert subjects[1:] == ["You have an account already", "Choose a new password"]


async def test_a_password_that_is_easily_guessed_is_refused(office: Office) -> None:
    eve = office.stranger()
    for password in ("short", "password1234", "ada.lovelace@example.com", "1234567890"):
        asked = {"email": "ada.lovelace@example.com", "password": password}
        got = await eve.post("/people", asked)
        assert (got.status, got.code, got.body["param"]) == (400, "weak_password", "password")


async def test_a_link_works_once_and_for_a_day(office: Office) -> None:
    eve = office.stranger()
    await eve.post("/people", {"email": "eve@example.com", "password": PASSWORD})
    first = await office.secret_mailed_to("eve@example.com")
    office.clock.ahead += timedelta(hours=25)
    late = await eve.post("/verifications/confirm", {"secret": first})
    await eve.post("/verifications", {"email": "eve@example.com"})
    second = await office.secret_mailed_to("eve@example.com")

    assert (late.status, late.code) == (400, "invalid_link")
    assert (await eve.post("/verifications/confirm", {"secret": second})).status == 200
    assert (await eve.post("/verifications/confirm", {"secret": second})).code == "invalid_link"


async def test_links_are_not_sent_again_and_again(office: Office) -> None:
    eve = office.stranger()
    await eve.post("/people", {"email": "eve@example.com", "password": PASSWORD})
    for _ in range(3):
        await eve.post("/verifications", {"email": "eve@example.com"})

    assert len(await office.mails_to("eve@example.com")) == 1


async def test_one_changes_ones_own_name(office: Office) -> None:
    ada = await office.signed_up("ada@example.com")
    read = await ada.get("/me")
    etag = {"If-Match": read.headers["ETag"]}

    changed = await ada.patch("/me", {"name": "Ada Lovelace"}, headers=etag)
    late = await ada.patch("/me", {"name": "Late"}, headers=etag)

    assert (changed.status, changed.body["name"]) == (200, "Ada Lovelace")
    assert late.status == 412


async def test_where_only_the_invited_may_sign_up_nobody_else_can(
    postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    changes = "management: {sign_up: invited}"
    async with open_office(postgres_url, redis_url, tmp_path, changes=changes) as office:
        asked = {"email": "eve@example.com", "password": PASSWORD}
        got = await office.stranger().post("/people", asked)
        assert (got.status, got.code) == (403, "invitation_required")
