"""Requests over a socket: what a route does not say is refused before any handler runs."""

from pathlib import Path

import pytest

from gateway.rest.server import address_of
from tests.gateway.management.office import PASSWORD, Office, open_office

SIGN_UP = {"email": "eve@example.com", "password": PASSWORD}


async def test_answers_are_kept_by_nobody_and_have_an_id(office: Office) -> None:
    got = await office.stranger().get("/me")
    assert got.headers["Cache-Control"] == "no-store"
    assert len(got.headers["X-Request-Id"]) == 36


async def test_another_method_says_which_there_are(office: Office) -> None:
    got = await office.stranger().put("/people", SIGN_UP)
    assert (got.status, got.headers["Allow"]) == (405, "POST")


@pytest.mark.parametrize("path", ["/nothing", "", "/me/", "/people/x", "/organizations/7"])
async def test_what_is_not_there_says_where_the_list_is(office: Office, path: str) -> None:
    got = await office.stranger().get(path)
    assert (got.status, got.code) == (404, "unknown_url")
    assert "openapi.json" in got.body["detail"]


async def test_only_json_is_read_and_not_too_much_of_it(office: Office) -> None:
    eve = office.stranger()
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert (await eve.post("/people", data=b"email=x", headers=form)).status == 415
    assert (await eve.post("/people", data=b"{}" + b" " * 300_000)).status == 413
    assert (await eve.post("/people", data=b'{"email": ')).code == "invalid_json"
    assert (await eve.post("/people", data=b"")).code == "invalid_json"


async def test_a_route_without_a_body_takes_none(office: Office) -> None:
    ada = await office.signed_up("ada@example.com")
    got = await ada.ask("DELETE", "/session", data=b"{}")
    assert (got.status, got.code) == (400, "invalid_body")


async def test_a_query_that_is_not_asked_for_is_refused(office: Office) -> None:
    got = await (await office.signed_up("ada@example.com")).get("/me?colour=red")
    assert (got.status, got.code) == (400, "invalid_query")


@pytest.mark.parametrize(
    ("forwarded", "proxies", "address"),
    [
        ("203.0.113.7", 0, "10.0.0.1"),  # anybody may send the header
        (None, 1, "10.0.0.1"),
        ("203.0.113.7", 1, "203.0.113.7"),
        ("198.51.100.1, 203.0.113.7", 1, "203.0.113.7"),
        ("198.51.100.1,203.0.113.7, 10.0.0.9", 2, "203.0.113.7"),
        ("203.0.113.7", 2, "203.0.113.7"),
    ],
)
def test_an_address_is_what_ones_own_proxies_saw(
    forwarded: str | None, proxies: int, address: str
) -> None:
    assert address_of("10.0.0.1", forwarded, proxies=proxies) == address


async def test_behind_a_proxy_people_do_not_share_their_limits(
    postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    changes = "management: {proxies: 1}"
    async with open_office(postgres_url, redis_url, tmp_path, changes=changes) as office:
        eve = office.stranger()
        for number in range(30):
            here = {"X-Forwarded-For": f"203.0.113.{number}"}
            wrong = {"email": f"eve{number}@example.com", "password": "x"}
            assert (await eve.post("/session", wrong, headers=here)).status == 401


async def test_a_bug_is_told_without_its_details(office: Office) -> None:
    ada = await office.signed_up("ada@example.com")
    await office.pool.execute("ALTER TABLE person RENAME COLUMN name TO called")

    got = await ada.get("/me")

    assert (got.status, got.code) == (500, "internal_error")
    assert got.headers["X-Request-Id"] in got.body["detail"]
    assert "column" not in got.body["detail"]
