"""What is answered before there are prices, and that nobody is left with it afterwards."""

import asyncio
from collections.abc import AsyncIterator

import orjson
import pytest

from gateway.front import Front
from gateway.proxy.exchange import Answered, Exchange
from gateway.settings import Limits, Listener
from tests.gateway.proxy.door import Line, post


async def served(exchange: Exchange) -> Answered:
    return exchange.answer(200, b"", b"served")


def asked(method: str, path: str) -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: t\r\n\r\n".encode()


class Street:
    """A front, and connections to it that are closed before it is."""

    def __init__(self) -> None:
        self.front = Front(Listener(host="127.0.0.1", port=0), Limits())
        self._lines: list[Line] = []

    async def line(self) -> Line:
        assert self.front._listening is not None
        (sock,) = self.front._listening.sockets
        line = Line(*await asyncio.open_connection(*sock.getsockname()))
        self._lines.append(line)
        return line

    async def leave(self) -> None:
        for line in self._lines:
            line.writer.close()
        await self.front.shut()


@pytest.fixture
async def street() -> AsyncIterator[Street]:
    made = Street()
    yield made
    await made.leave()


@pytest.mark.parametrize(
    ("request_", "status", "said"),
    [
        (asked("GET", "/healthz"), 200, {"status": "ok"}),
        (
            asked("GET", "/readyz?verbose=1"),
            503,
            {"ready": False, "checks": {"prices": "starting"}},
        ),
    ],
    ids=["healthz", "readyz"],
)
async def test_probes_hear_that_it_lives_and_is_not_ready(
    street: Street, request_: bytes, status: int, said: object
) -> None:
    await street.front.open()
    line = await street.line()

    answered, headers, body = await line.ask(request_)

    assert (answered, orjson.loads(body)) == (status, said)
    assert headers["connection"] == "close"
    assert await line.rest() == b""


@pytest.mark.parametrize(
    "request_",
    [
        post(b"{}"),
        post(b"{}", path="/healthz"),
        asked("GET", "/v1/models"),
        asked("GET", "/nonsense"),
        b"POST /v1/embeddings HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\n\r\n",
    ],
    ids=["call", "posted probe", "models", "unknown path", "empty call"],
)
async def test_whatever_else_is_asked_is_to_be_asked_again(street: Street, request_: bytes) -> None:
    await street.front.open()
    line = await street.line()

    status, headers, body = await line.ask(request_)

    error = orjson.loads(body)["error"]
    assert (status, error["type"], error["code"]) == (503, "server_error", "ledger_unavailable")
    assert headers["retry-after"] == "1"
    assert headers["x-request-id"]
    assert headers["connection"] == "close"


async def test_a_connection_from_before_is_served_and_one_from_after_asks_nobody_else(
    street: Street,
) -> None:
    await street.front.open()
    early = await street.line()
    while not street.front.server.connections_open:
        await asyncio.sleep(0)

    await street.front.open(served)

    assert street.front.server.handler is served
    for line in (early, early, await street.line()):
        assert (await line.ask(asked("GET", "/")))[2] == b"served"


async def test_one_that_has_prices_at_once_never_says_otherwise(street: Street) -> None:
    await street.front.open(served)

    assert (await (await street.line()).ask(asked("GET", "/readyz")))[2] == b"served"


async def test_one_that_never_opened_can_be_shut() -> None:
    await Front(Listener(host="127.0.0.1", port=0), Limits()).shut()
