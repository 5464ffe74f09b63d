"""Bodies: what is taken, and what is refused before it is read."""

import asyncio
from dataclasses import replace

import orjson
import pytest

from gateway import errors
from gateway.proxy.answer import refuse
from gateway.proxy.exchange import Answered, Exchange
from gateway.proxy.intake import body_at_hand
from gateway.settings import Limits
from tests.gateway.proxy.door import Door, body_of, post

LIMITS = replace(Limits(), body_bytes_max=100_000, body_timeout_s=0.2)


async def read(exchange: Exchange) -> Answered:
    try:
        body = await body_of(exchange, LIMITS)
    except errors.GatewayError as error:
        return refuse(exchange, error, "id")
    return exchange.answer(200, b"", b"%d" % len(body))


@pytest.mark.parametrize("size", [0, 1, 70_000, 100_000])
async def test_a_body_within_the_limit_is_read_whole(size: int) -> None:
    async with Door.opened(read) as door:
        line = await door.line()

        assert (await line.ask(post(b"x" * size)))[2] == b"%d" % size


async def test_a_body_in_chunks_is_read_whole() -> None:
    async with Door.opened(read) as door:
        line = await door.line()
        head = post(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")

        assert (await line.ask(head + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"))[2] == b"5"


async def test_a_body_announced_too_large_is_refused_before_it_is_sent() -> None:
    async with Door.opened(read) as door:
        line = await door.line()
        head = post(b"").replace(b"Content-Length: 0", b"Content-Length: 50000000")

        status, headers, body = await line.ask(head)

        assert status == 413
        assert orjson.loads(body)["error"]["code"] == "request_too_large"
        assert headers["connection"] == "close"


async def test_a_body_that_grows_too_large_is_refused_while_it_comes() -> None:
    async with Door.opened(read) as door:
        line = await door.line()
        head = post(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")

        status, _, _ = await line.ask(head + b"186a1\r\n" + b"x" * 100_001 + b"\r\n")

        assert status == 413


async def test_a_body_too_large_that_came_with_its_head_is_refused() -> None:
    async def small(exchange: Exchange) -> Answered:
        with pytest.raises(errors.TooLarge):
            body_at_hand(exchange, replace(LIMITS, body_bytes_max=4))
        return exchange.answer(200, b"", b"refused")

    async with Door.opened(small) as door:
        line = await door.line()
        head = post(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")

        assert (await line.ask(head + b"5\r\nabcde\r\n0\r\n\r\n"))[2] == b"refused"


async def test_a_body_that_does_not_come_is_refused_at_its_deadline() -> None:
    async with Door.opened(read) as door:
        line = await door.line()

        async with asyncio.timeout(5):
            status, headers, _ = await line.ask(post(b"12345")[:-2])

        assert (status, headers["connection"]) == (408, "close")


@pytest.mark.parametrize(
    "line",
    ["Content-Type: text/plain", "Content-Type: multipart/form-data", "Content-Encoding: gzip"],
)
async def test_what_is_not_plain_json_is_refused(line: str) -> None:
    async with Door.opened(read) as door:
        connection = await door.line()

        assert (await connection.ask(post(b"{}", line)))[0] == 415


async def test_a_client_that_waits_to_be_asked_for_its_body_is_asked() -> None:
    async with Door.opened(read) as door:
        line = await door.line()
        line.writer.write(post(b"12345", "Expect: 100-continue")[:-5])

        assert await line.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert (await line.ask(b"12345"))[2] == b"5"
