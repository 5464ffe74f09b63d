"""What listens says nothing of what it is made of, whatever it is asked."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from gateway.listening import listening
from gateway.settings import Listener


async def _well(_request: web.Request) -> web.Response:
    return web.Response(text="well")


async def _badly(_request: web.Request) -> web.Response:
    raise KeyError("a bug")


async def _slowly(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"piece")
    return response


@pytest.fixture
async def port() -> AsyncIterator[int]:
    application = web.Application()
    for path, handler in (("/well", _well), ("/badly", _badly), ("/slowly", _slowly)):
        application.router.add_get(path, handler)
    async with listening(Listener(), application, backlog=8) as found:
        yield found


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ("GET /well HTTP/1.1", 200),
        ("GET /slowly HTTP/1.1", 200),
        ("HEAD /well HTTP/1.1", 200),
        ("GET /nowhere HTTP/1.1", 404),
        ("POST /well HTTP/1.1", 405),
        ("GET /badly HTTP/1.1", 500),
        ("GET /well HTTP/9.9", 400),
        ("no HTTP at all", 400),
        (f"GET /well?{'x' * 9_000} HTTP/1.1", 400),
        (f"GET /well HTTP/1.1\r\nX: {'x' * 9_000}", 400),
        ("GET /well HTTP/1.1\r\nX: \x00", 400),
        ("GET /well HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3", 400),
        ("GET /well HTTP/1.1\r\nExpect: what", 417),
    ],
)
async def test_no_answer_says_what_serves_it(port: int, asked: str, status: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{asked}\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    head = answer.partition(b"\r\n\r\n")[0].lower()
    assert int(answer.split(b" ", 2)[1]) == status, answer
    assert b"\r\nserver:" not in head
    assert b"\r\ndate:" in head
    if status in {400, 500}:
        assert b"\r\ncontent-type: application/problem+json" in head
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["status"] == status
    for word in (b"python", b"aiohttp"):
        assert word not in answer.lower()
