"""Who runs the installation: made by the command line, signed in by a link."""

from datetime import timedelta

import pytest

from gateway.errors import BadRequest
from gateway.management import operators
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
