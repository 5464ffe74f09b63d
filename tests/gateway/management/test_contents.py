"""What was said in calls, over HTTP: who reads it, that it is audited, and how it is forgotten."""

from typing import Any
from uuid import UUID, uuid4

import pytest
import uuid_utils

from gateway.content import Said, Vault, day_of
from tests.gateway.management.office import Office
from tests.gateway.management.team import Team, founded


@pytest.fixture
async def team(office: Office) -> Team:
    return await founded(office)


async def said(team: Team, request: bytes, answer: bytes = b"an answer") -> str:
    """A worker has kept this; the call's id."""
    desk, call_id = team.office.desk, uuid_utils.uuid7().bytes
    vault = Vault(desk.sealer, desk.random_bytes)
    one = Said(UUID(team.id), call_id, request, answer)
    async with desk.pool.acquire() as connection, connection.transaction():
        keys = await vault.keys(connection, {(one.organization, day_of(call_id))})
        await vault.write(connection, [one], keys)
    return str(UUID(bytes=call_id))


async def test_what_was_said_is_listed_and_read_the_newest_first(team: Team) -> None:
    calls = [await said(team, b"request %d" % number) for number in range(3)]
    listed: list[Any] = []
    cursor = ""
    while cursor is not None:
        got = await team.owner.get(f"/contents?limit=2{cursor and '&cursor=' + cursor}")
        listed += got.body["data"]
        cursor = got.body["next_cursor"]
    assert [one["call_id"] for one in listed] == calls[::-1]
    got = await team.owner.get(f"/contents/{calls[1]}")
    assert (got.status, got.body) == (
        200,
        {
            "call_id": calls[1],
            "at": listed[1]["at"],
            "request": "request 1",
            "answer": "an answer",
            "is_cut": False,
        },
    )


async def test_bytes_that_are_no_text_are_shown_as_such(team: Team) -> None:
    call = await said(team, b"\xff{", b"")
    got = await team.owner.get(f"/contents/{call}")
    assert (got.body["request"], got.body["answer"]) == ("\N{REPLACEMENT CHARACTER}{", "")


async def test_only_those_who_administrate_read_and_each_reading_is_audited(team: Team) -> None:
    people, call = await team.cast(), await said(team, b"canary")
    got = await people["member"].get(f"/contents/{call}")
    assert (got.status, got.code) == (403, "not_permitted")
    assert await team.audited("content.read") == []
    assert (await people["admin"].get(f"/contents/{call}")).status == 200
    (line,) = await team.audited("content.read")
    assert (line["actor"], line["target"]) == ("admin@example.com", call)
    assert "canary" not in str(line)


async def test_of_what_is_not_kept_nothing_is_told(team: Team) -> None:
    got = await team.owner.get(f"/contents/{uuid4()}")
    assert (got.status, got.code) == (404, "content_not_found")


async def test_what_is_forgotten_is_gone_at_once(team: Team) -> None:
    call = await said(team, b"hello")
    assert (await team.owner.delete("/contents")).status == 204
    assert (await team.owner.get(f"/contents/{call}")).code == "content_not_found"
    assert (await team.owner.get("/contents")).body["data"] == []
    assert len(await team.audited("content.forget")) == 1


async def test_an_organization_that_is_deleted_has_said_nothing(team: Team) -> None:
    await said(team, b"hello")
    name = (await team.owner.get("/organization")).body["name"]
    gone = await team.owner.post("/organization/deletion", {"confirmation": name})
    assert gone.status == 204, gone
    assert await team.office.pool.fetchval("SELECT count(sealed) FROM content_key") == 0


async def test_what_another_installation_has_sealed_is_said_to_be_lost(team: Team) -> None:
    call = await said(team, b"hello")
    await team.office.pool.execute("UPDATE content_key SET sealed = sealed || '\\x00'")
    got = await team.owner.get(f"/contents/{call}")
    assert (got.status, got.code) == (409, "content_lost")
