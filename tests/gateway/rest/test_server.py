"""Requests over a socket: what a route does not say is refused before any handler runs."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from gateway.rest.caller import ANYBODY, Caller, Knock
from gateway.rest.rates import Rates
from gateway.rest.route import PREFIX, Answer, Asked, Download, Nothing, Route
from gateway.rest.server import Api, Given
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


async def test_what_stands_in_a_wrong_path_is_not_repeated(office: Office) -> None:
    got = await office.stranger().get("/quarry-lantern-17")
    assert got.status == 404
    assert "quarry" not in str(got.body)


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


async def let_in(route: Route, knock: Knock) -> Caller:
    assert route.name == "files.get"
    return Caller(actor="", address=knock.address)


async def at_once(
    asked: Asked[Any, Any], route: Route, body: bytes, work: Callable[[], Awaitable[Given]]
) -> Given:
    assert (asked.key, route.is_once, body) == (None, False, b""), "files are not made once"
    return await work()


async def downloaded(*chunks: bytes | Exception) -> bytes:
    """What somebody gets of a file that is made of these."""

    async def made() -> AsyncIterator[bytes]:
        for chunk in chunks:
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk
            await asyncio.sleep(0)

    async def handle(_parts: None, _asked: Asked[Nothing, Nothing]) -> Answer:
        return Answer(download=Download("text/csv", "all.csv", made()))

    route = Route(
        method="GET",
        path="/file",
        name="files.get",
        says="A file.",
        access=ANYBODY,
        handle=handle,
        media=("text/csv",),
    )
    application = web.Application()
    rates = Rates(time.monotonic)
    Api([route], None, guard=let_in, once=at_once, rates=rates, is_secure=False, proxies=0).add_to(
        application
    )
    async with (
        TestServer(application) as server,
        aiohttp.ClientSession() as http,
        http.get(server.make_url(f"{PREFIX}/file"), raise_for_status=True) as answer,
    ):
        assert answer.headers["Content-Disposition"] == 'attachment; filename="all.csv"'
        return await answer.read()


async def test_a_file_is_sent_as_it_is_made() -> None:
    assert await downloaded(b"a,b\r\n", b"1,2\r\n") == b"a,b\r\n1,2\r\n"
    assert await downloaded() == b""


@pytest.mark.parametrize("error", [OSError("away"), asyncpg.InterfaceError("x"), ValueError("bug")])
async def test_a_file_that_breaks_off_does_not_end_like_a_whole_one(error: Exception) -> None:
    with pytest.raises(aiohttp.ClientPayloadError):
        await downloaded(b"a,b\r\n", error)


async def test_a_file_that_cannot_be_begun_is_answered_with_a_problem() -> None:
    with pytest.raises(aiohttp.ClientResponseError) as caught:
        await downloaded(OSError("away"))
    assert caught.value.status == 503
