"""The audit log as a file."""

import csv
import io
from datetime import datetime
from typing import Any

import aiohttp
import orjson
import pytest

from gateway.management import audit_export
from ledger.chain import Audited, audit_hash
from tests.gateway.management.office import Browser, Office
from tests.gateway.management.team import Team, founded


@pytest.fixture
async def team(office: Office) -> Team:
    return await founded(office)


async def fetched(office: Office, browser: Browser, query: str = "") -> tuple[int, str, str]:
    """Status, type and text of the export."""
    url = f"{office.url}/api/v1/audit-log/export{query}"
    cookies = {one.key: one.value for one in browser.cookies()}
    async with (
        aiohttp.ClientSession(cookies=cookies) as http,
        http.get(url, headers=browser.headers) as answer,
    ):
        return answer.status, answer.headers["Content-Type"], await answer.text()


async def test_every_line_is_in_the_file_and_its_chain_can_be_followed_there(team: Team) -> None:
    for number in range(3):
        await team.owner.patch("/organization", {"name": f"Acme {number}"})
    status, media, text = await fetched(team.office, team.owner)

    assert (status, media) == (200, "application/x-ndjson")
    lines = [orjson.loads(line) for line in text.splitlines()]
    listed = (await team.owner.get("/audit-log")).body["data"]
    hashes = ("previous_hash", "hash")
    assert [{k: v for k, v in line.items() if k not in hashes} for line in lines] == listed[::-1]
    end = b""
    for line in lines:
        assert bytes.fromhex(line["previous_hash"]) == end
        end = bytes.fromhex(line["hash"])
        assert audit_hash(bytes.fromhex(line["previous_hash"]), _audited(team, line)) == end


def _audited(team: Team, line: dict[str, Any]) -> Audited:
    at = datetime.fromisoformat(line["at"])
    at_us = round(at.timestamp() * 1_000_000)
    said = {name: line[name] for name in ("actor", "action", "target", "before", "after")}
    return Audited(team.id, line["number"], at_us, **said, address=line["address"])


async def test_a_spreadsheet_gets_the_same_and_computes_nothing(team: Team) -> None:
    await team.office.pool.execute("UPDATE person SET email = '=1+2@example.com'")
    await team.owner.patch("/organization", {"name": 'a "name", with; all'})
    status, media, text = await fetched(team.office, team.owner, "?format=csv")

    assert (status, media) == (200, "text/csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["number"] for row in rows] == ["1", "2"]
    assert rows[1]["actor"] == "'=1+2@example.com"
    assert orjson.loads(rows[1]["after"]) == {"name": 'a "name", with; all'}
    assert rows[1]["address"] == "127.0.0.1"


async def test_a_log_longer_than_a_page_is_whole(team: Team) -> None:
    count = audit_export._PAGE + 5
    for _ in range(count // 201 + 1):
        await _many(team)
    _, _, text = await fetched(team.office, team.owner)
    numbers = [orjson.loads(line)["number"] for line in text.splitlines()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > audit_export._PAGE


async def _many(team: Team) -> None:
    """Lines as they are written, but for their hashes."""
    await team.office.pool.execute(
        "INSERT INTO audit_log SELECT organization_id, number + n, at, actor, action, target,"
        " before, after, address, previous_hash, hash FROM (SELECT * FROM audit_log WHERE"
        " organization_id = $1 ORDER BY number DESC LIMIT 1) AS l, generate_series(1, 201) AS n",
        team.id,
    )
    await team.office.pool.execute(
        "UPDATE organization SET audit_number = audit_number + 201 WHERE id = $1", team.id
    )


async def test_who_may_not_read_the_log_gets_no_file(team: Team) -> None:
    people = await team.cast()
    assert (await fetched(team.office, people["member"]))[0] == 403
    assert (await fetched(team.office, people["admin"]))[0] == 200
    status, media, _ = await fetched(team.office, team.owner, "?format=xls")
    assert (status, media) == (400, "application/problem+json")
