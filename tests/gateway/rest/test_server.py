"""Requests over a socket: what a route does not say is refused before any handler runs."""

import pytest

from tests.gateway.management.office import PASSWORD, Office

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


async def test_a_bug_is_told_without_its_details(office: Office) -> None:
    ada = await office.signed_up("ada@example.com")
    await office.pool.execute("ALTER TABLE person RENAME COLUMN name TO called")

    got = await ada.get("/me")

    assert (got.status, got.code) == (500, "internal_error")
    assert got.headers["X-Request-Id"] in got.body["detail"]
    assert "column" not in got.body["detail"]
