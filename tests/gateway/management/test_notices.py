"""Whose account is changed hears of it by mail, whoever did it."""

from tests.gateway.management.ada import ADA, CONFIRMATION, REMOVAL, wait, with_app, without_app
from tests.gateway.management.office import PASSWORD, Office

NEW = "harbour velvet eleven moths"


async def subjects(office: Office, email: str = ADA) -> list[str]:
    """What somebody was told, but for links they asked for."""
    return [row["subject"] for row in await office.mails_to(email) if "#" not in row["text"]]


async def test_setting_up_and_ending_one_time_passwords_is_told(office: Office) -> None:
    ada = await with_app(office)
    await ada.browser.post(REMOVAL, {"password": PASSWORD, "code": ada.code()})

    assert await subjects(office) == [
        "One-time passwords were set up for your account",
        "One-time passwords were removed from your account",
    ]


async def test_what_was_refused_is_not_told(office: Office) -> None:
    ada = await without_app(office)
    await ada.starts()
    await ada.browser.post(CONFIRMATION, {"code": ada.wrong()})
    await ada.browser.put("/me/password", {"old": "not her password", "new": NEW})

    assert await subjects(office) == []


async def test_a_used_recovery_code_is_told_with_how_many_are_left(office: Office) -> None:
    ada = await with_app(office)
    await ada.signs_in(code=ada.recovery[0])

    mail = (await office.mails_to(ADA))[-1]
    assert mail["subject"] == "A recovery code of your account was used"
    assert "9 of them are left." in mail["text"]
    assert "9 of them are left." in mail["html"]
    await ada.signs_in(code=ada.code())
    assert len(await subjects(office)) == 2, "a code of the app is nothing to tell"


async def test_new_recovery_codes_are_told(office: Office) -> None:
    ada = await with_app(office)
    await ada.browser.post("/me/recovery-codes", {"code": ada.code()})

    assert (await subjects(office))[-1] == "Your account has new recovery codes"


async def test_a_changed_password_is_told_from_where_and_what_to_do(office: Office) -> None:
    ada = await without_app(office)
    assert (await ada.browser.put("/me/password", {"old": PASSWORD, "new": NEW})).status == 204

    mail = (await office.mails_to(ADA))[-1]
    assert mail["subject"] == "Your password was changed"
    for text in (mail["text"], mail["html"]):
        assert "127.0.0.1" in text
        assert f"{office.desk.site}/sign-in" in text
        assert NEW not in text


async def test_a_password_that_was_reset_by_mail_is_told(office: Office) -> None:
    ada = await without_app(office)
    await ada.browser.post("/password-resets", {"email": ADA})
    wait(office)
    body = {"secret": await office.secret_mailed_to(ADA), "password": NEW}
    assert (await office.stranger().post("/password-resets/confirm", body)).status == 204

    assert await subjects(office) == ["Your password was changed"]
