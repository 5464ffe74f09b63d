"""The audit log over HTTP."""

import pytest

from tests.gateway.management.office import Browser, Office
from tests.gateway.management.rooms import joined, made_organization


@pytest.fixture
async def acme(office: Office) -> Browser:
    """It has a log of four lines."""
    acme = await made_organization(await office.signed_up("ada@example.com"), "Acme")
    for name in ("Acme 1", "Acme 2", "Acme 3"):
        await acme.patch("/organization", {"name": name})
    return acme


async def _tamper(office: Office, statement: str) -> None:
    """Do what only somebody with the keys of the database could."""
    async with office.pool.acquire() as connection, connection.transaction():
        await connection.execute("ALTER TABLE audit_log DISABLE TRIGGER append_only")
        await connection.execute(statement)


async def test_the_log_says_who_did_what_the_newest_first_in_pages(acme: Browser) -> None:
    first = (await acme.get("/audit-log?limit=3")).body
    second = (await acme.get(f"/audit-log?limit=3&cursor={first['next_cursor']}")).body
    lines = first["data"] + second["data"]
    assert [line["number"] for line in lines] == [4, 3, 2, 1]
    assert second["next_cursor"] is None
    newest = lines[0]
    assert (newest["actor"], newest["action"]) == ("ada@example.com", "organization.update")
    assert (newest["before"], newest["after"]) == ({"name": "Acme 2"}, {"name": "Acme 3"})
    assert (newest["target"], newest["address"]) == (
        acme.headers["X-Organization-Id"],
        "127.0.0.1",
    )


async def test_a_log_that_nobody_touched_is_whole(acme: Browser) -> None:
    got = (await acme.get("/audit-log/check")).body
    assert got == {"is_whole": True, "lines": 4, "whole_to": 4}


@pytest.mark.parametrize(
    ("statement", "whole_to"),
    [
        ("UPDATE audit_log SET actor = 'nobody' WHERE number = 3", 2),
        ("UPDATE audit_log SET after = '{}' WHERE number = 1", 0),
        ("UPDATE audit_log SET address = NULL WHERE number = 4", 3),
        ("DELETE FROM audit_log WHERE number = 2", 1),
        ("DELETE FROM audit_log WHERE number = 4", 3),
        ("UPDATE organization SET audit_number = 3 WHERE name = 'Acme 3'", 3),
    ],
)
async def test_a_check_says_up_to_which_line_the_log_is_whole(
    office: Office, acme: Browser, statement: str, whole_to: int
) -> None:
    await _tamper(office, statement)
    got = (await acme.get("/audit-log/check")).body
    assert (got["is_whole"], got["whole_to"]) == (False, whole_to)


async def test_what_happens_to_one_log_does_not_concern_another(
    office: Office, acme: Browser
) -> None:
    bob = await made_organization(await office.signed_up("bob@example.com"), "Bob's")
    await _tamper(office, "UPDATE audit_log SET actor = 'nobody' WHERE number = 3")
    assert (await bob.get("/audit-log/check")).body["is_whole"]
    assert {line["actor"] for line in (await bob.get("/audit-log")).body["data"]} == {
        "bob@example.com"
    }
    for path in ("/audit-log", "/audit-log/check"):
        assert (await bob.at(acme.headers["X-Organization-Id"]).get(path)).status == 404


async def test_members_do_not_read_the_log(office: Office, acme: Browser) -> None:
    bob = await joined(office, acme, "bob@example.com")
    for path in ("/audit-log", "/audit-log/check"):
        got = await bob.get(path)
        assert (got.status, got.code) == (403, "not_permitted")
