"""The listener: what it answers, what it refuses to wait for, and when it closes."""

import asyncio
from dataclasses import replace

import orjson

from gateway.proxy.exchange import Answered, ClientGone, Exchange
from tests.gateway.proxy.door import WALL, Door, post

JSON = b"Content-Type: application/json\r\n"


async def echo(exchange: Exchange) -> Answered:
    body = await exchange.content.read()
    return exchange.answer(200, JSON, body)


async def test_a_connection_carries_one_call_after_the_other() -> None:
    async with Door.opened(echo) as door:
        line = await door.line()

        for body in (b"one", b"two", b"three"):
            status, headers, echoed = await line.ask(post(body))

            assert (status, echoed) == (200, body)
            assert "connection" not in headers


async def test_a_client_that_asks_for_it_is_closed_after_its_answer() -> None:
    async with Door.opened(echo) as door:
        line = await door.line()

        _, headers, _ = await line.ask(post(b"x", "Connection: close"))

        assert headers["connection"] == "close"
        assert await line.rest() == b""


async def test_a_head_that_drips_in_is_cut_at_its_deadline() -> None:
    async with Door.opened(echo) as door:
        line = await door.line()
        line.writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: to")

        async with asyncio.timeout(5):
            assert await line.rest() == b""


async def test_the_deadline_of_a_head_does_not_hurt_the_wait_for_the_next_call() -> None:
    async with Door.opened(echo) as door:
        line = await door.line()
        await line.ask(post(b"x"))
        await asyncio.sleep(WALL.header_timeout_s * 1.5)

        assert (await line.ask(post(b"y")))[2] == b"y"


async def test_what_is_not_http_is_answered_in_json_and_closed() -> None:
    async with Door.opened(echo) as door:
        line = await door.line()

        status, headers, body = await line.ask(b"NOT HTTP AT ALL\r\n\r\n")

        assert status == 400
        assert orjson.loads(body)["error"]["code"] == "bad_http"
        assert headers["connection"] == "close"
        assert await line.rest() == b""


async def test_a_body_in_two_lengths_is_refused() -> None:
    async with Door.opened(echo) as door:
        line = await door.line()

        status, _, _ = await line.ask(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
        )

        assert status == 400


async def test_an_answer_in_pieces_arrives_as_they_are_written() -> None:
    seen = asyncio.Event()

    async def stream(exchange: Exchange) -> Answered:
        exchange.start(200, b"Content-Type: text/event-stream\r\n", b"data: 1\n\n")
        await seen.wait()
        exchange.write_chunk(b"data: 2\n\n")
        return exchange.finish(b"data: 3\n\n")

    async with Door.opened(stream) as door:
        line = await door.line()
        line.writer.write(post(b"{}"))
        await line.reader.readuntil(b"data: 1\n\n\r\n")
        seen.set()

        assert await line.reader.readuntil(b"0\r\n\r\n") == (
            b"9\r\ndata: 2\n\n\r\n9\r\ndata: 3\n\n\r\n0\r\n\r\n"
        )


async def test_a_client_that_knows_no_chunks_gets_none_and_the_end_of_its_connection() -> None:
    async def pieces(exchange: Exchange) -> Answered:
        await exchange.content.read()
        exchange.start(200, JSON, b"one ")
        exchange.write_chunk(b"two ")
        return exchange.finish(b"three")

    async with Door.opened(pieces) as door:
        line = await door.line()
        line.writer.write(post(b"x", "Connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0"))

        head, _, body = (await line.rest()).partition(b"\r\n\r\n")

        assert b"chunked" not in head.lower()
        assert b"connection: close" in head.lower()
        assert body == b"one two three"


async def test_a_handler_learns_that_its_client_has_gone() -> None:
    gone, started = asyncio.Event(), asyncio.Event()
    raised: list[type[BaseException]] = []

    async def wait(exchange: Exchange) -> Answered:
        exchange.on_gone = gone.set
        started.set()
        await gone.wait()
        try:
            return exchange.answer(200, JSON, b"{}")
        except ClientGone as error:
            raised.append(type(error))
            raise ConnectionResetError from error

    async with Door.opened(wait) as door:
        line = await door.line()
        line.writer.write(post(b"{}"))
        await started.wait()
        line.writer.close()

        async with asyncio.timeout(5):
            await gone.wait()
            while not raised:
                await asyncio.sleep(0)
        assert raised == [ClientGone]


async def test_a_client_that_takes_nothing_counts_as_gone() -> None:
    ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def flood(exchange: Exchange) -> Answered:
        exchange.start(200, b"", b"x")
        try:
            while True:
                exchange.write_chunk(b"x" * 65536)
                await exchange.drained(0.1)
        except ClientGone:
            ended.set_result(exchange.is_gone)
            raise ConnectionResetError from None

    async with Door.opened(flood) as door:
        line = await door.line()
        line.writer.write(post(b"{}"))

        async with asyncio.timeout(10):
            assert await ended


async def test_connections_beyond_the_limit_are_closed_at_once() -> None:
    async with Door.opened(echo, wall=replace(WALL, connections_max=1)) as door:
        first = await door.line()
        await first.ask(post(b"x"))
        second = await door.line()

        assert await second.rest() == b""
        assert (await first.ask(post(b"y")))[2] == b"y"
        assert door.server.refused == 1


async def test_a_bug_in_a_handler_is_answered_in_json_without_its_text() -> None:
    async def broken(_exchange: Exchange) -> Answered:
        raise ZeroDivisionError("secret detail")

    async with Door.opened(broken) as door:
        line = await door.line()

        status, _, body = await line.ask(post(b"{}"))

        assert status == 500
        assert orjson.loads(body)["error"]["code"] == "internal_error"
        assert b"secret" not in body
