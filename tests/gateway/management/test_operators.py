"""Who runs the installation: made by the command line, signed in by a link."""

from datetime import timedelta

import pytest

from gateway.errors import BadRequest
from gateway.management import operators
from tests.gateway.management.ada import ADA, with_app
from tests.gateway.management.office import Office


async def test_the_link_signs_an_operator_in_and_makes_their_account(office: Office) -> None:
    root = await office.operator("root@example.com")

    person = (await root.get("/session")).body["person"]

    assert (person["is_operator"], person["email"]) == (True, "root@example.com")
    assert person["account_id"] is not None


async def test_somebody_who_is_known_becomes_an_operator_and_stays_who_they_are(
    office: Office,
) -> None:
    ada = await office.signed_up("ada@example.com")
    before = (await ada.get("/me")).body
    await office.operator("Ada@Example.com")

    after = (await ada.get("/me")).body

    assert (after["id"], after["account_id"]) == (before["id"], before["account_id"])
    assert after["is_operator"]


async def test_the_link_is_of_no_use_after_half_an_hour(office: Office) -> None:
    desk = office.desk
    secret = await operators.make(
        desk.pool,
        "root@example.com",
        digest=desk.digest,
        random_bytes=desk.random_bytes,
        now=desk.now() - timedelta(minutes=31),
    )
    got = await office.stranger().post("/session/link", {"secret": secret.reveal()})
    assert got.code == "invalid_link"


@pytest.mark.parametrize("email", ["root", "a@b@c", "a b@c", "a@b\nTo: x@y", ""])
async def test_what_is_no_address_makes_no_operator(office: Office, email: str) -> None:
    desk = office.desk
    with pytest.raises(BadRequest):
        await operators.make(
            desk.pool, email, digest=desk.digest, random_bytes=desk.random_bytes, now=desk.now()
        )


async def audited(office: Office, email: str) -> list[tuple[str, str, str]]:
    """Who did what to somebody, as their own audit log has it."""
    rows = await office.pool.fetch(
        "SELECT a.actor, a.action, a.after->>'reason' AS reason FROM audit_log AS a"
        " JOIN person AS p ON p.account_id = a.organization_id"
        " WHERE p.email = $1 AND a.action LIKE 'person.%' ORDER BY a.number",
        email,
    )
    return [(row["actor"], row["action"], row["reason"]) for row in rows]


async def test_who_lost_their_second_factor_is_let_in_by_an_operator(office: Office) -> None:
    ada, root = await with_app(office), await office.operator("root@example.com")
    lost = {"email": "Ada@Example.com", "reason": "showed her passport"}

    assert (await root.post("/operator/factor-resets", lost)).status == 204

    assert (await ada.browser.get("/me")).status == 401, "her sessions are over"
    wrong = await ada.signs_in(password="not her password")
    assert wrong.code == "wrong_credentials", "the password is still wanted"
    assert (await ada.signs_in()).status == 201
    assert await office.pool.fetchval("SELECT count(*) FROM recovery_code") == 0
    assert await audited(office, ADA) == [
        ("root@example.com", "person.factor_reset", "showed her passport")
    ]
    mail = (await office.mails_to(ADA))[-1]
    assert mail["subject"] == "An operator reset the second factor of your account"
    assert "showed her passport" in mail["text"]


async def test_there_must_be_somebody_with_a_second_factor_to_reset_it(office: Office) -> None:
    await office.signed_up(ADA)
    root = await office.operator("root@example.com")

    nobody = {"email": "nobody@example.com", "reason": "asked"}
    assert (await root.post("/operator/factor-resets", nobody)).code == "person_not_found"
    none = {"email": ADA, "reason": "asked"}
    got = await root.post("/operator/factor-resets", none)
    assert got.code == "no_one_time_passwords"
    assert await audited(office, ADA) == []


async def test_a_reset_is_done_once_under_one_key(office: Office) -> None:
    ada, root = await with_app(office), await office.operator("root@example.com")
    lost, key = {"email": ADA, "reason": "asked"}, {"Idempotency-Key": "one"}
    got = [await root.post("/operator/factor-resets", lost, headers=key) for _ in range(2)]

    assert [one.status for one in got] == [204, 204]
    assert len(await audited(ada.office, ADA)) == 1
