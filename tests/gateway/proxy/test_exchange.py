"""One request and its answer, as bytes on a socket."""

import asyncio
import socket
from datetime import timedelta
from email.utils import parsedate_to_datetime

import pytest

from gateway.copied import Copy
from gateway.proxy.exchange import Answered, ClientGone, Exchange
from tests.gateway.proxy.door import Door, post

JSON = b"Content-Type: application/json\r\n"


async def echo(exchange: Exchange) -> Answered:
    body = await exchange.content.read()
    return exchange.answer(200, JSON, body)


async def test_a_client_that_asks_for_it_is_closed_after_its_answer() -> None:
    async with Door.opened(echo) as door:
        line = await door.line()

        _, headers, _ = await line.ask(post(b"x", "Connection: close"))

        assert headers["connection"] == "close"
        assert await line.rest() == b""


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
                await exchange.drained()
        except ClientGone:
            ended.set_result(exchange.is_gone)
            raise ConnectionResetError from None

    async with Door.opened(flood) as door:
        line = await door.line()
        line.writer.write(post(b"{}"))

        async with asyncio.timeout(10):
            assert await ended
            with pytest.raises(ConnectionResetError):  # so nothing waits for it in any buffer
                await line.rest()


async def test_a_client_that_takes_nothing_of_what_the_system_keeps_for_it_is_cut() -> None:
    async def large(exchange: Exchange) -> Answered:
        return exchange.answer(200, JSON, b"x" * 1_000_000)

    loop = asyncio.get_running_loop()
    async with Door.opened(large) as door:
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            slow.setblocking(False)
            await loop.sock_connect(slow, ("127.0.0.1", door.port))
            await loop.sock_sendall(slow, post(b"{}"))

            async with asyncio.timeout(10):
                while not door.server.connections:
                    await asyncio.sleep(0.01)
                while door.server.connections:
                    await asyncio.sleep(0.01)


async def test_a_header_is_found_however_it_is_written() -> None:
    async def told(exchange: Exchange) -> Answered:
        return exchange.answer(200, JSON, f"{exchange.header('x-name')}".encode())

    async with Door.opened(told) as door:
        line = await door.line()

        assert (await line.ask(post(b"", "X-NAME: one")))[2] == b"one"
        assert (await line.ask(post(b"")))[2] == b"None"


async def test_the_query_of_a_path_is_decoded_and_other_paths_have_none() -> None:
    async def told(exchange: Exchange) -> Answered:
        return exchange.answer(200, JSON, f"{exchange.path} {exchange.query_string}".encode())

    async with Door.opened(told) as door:
        line = await door.line()

        assert (await line.ask(post(b"", path="/a%62?c=%64")))[2] == b"/ab c=d"
        assert (await line.ask(post(b"", path="/a")))[2] == b"/a "


async def test_an_answer_to_head_has_a_length_and_no_body() -> None:
    async def told(exchange: Exchange) -> Answered:
        return exchange.answer(200, JSON, b"{}", close=True)

    async with Door.opened(told) as door:
        line = await door.line()
        line.writer.write(b"HEAD / HTTP/1.1\r\nHost: t\r\n\r\n")

        head, end, body = (await line.rest()).partition(b"\r\n\r\n")

        assert b"Content-Length: 2\r\n" in head
        assert (end, body) == (b"\r\n\r\n", b"")


async def test_an_answer_carries_the_date_of_its_second() -> None:
    async with Door.opened(echo) as door:
        line = await door.line()
        _, first, _ = await line.ask(post(b""))
        door.server.dates.line = b"Date: remembered\r\n"
        _, second, _ = await line.ask(post(b""))
        async with asyncio.timeout(5):
            while door.server.dates.line:
                await asyncio.sleep(0.05)
        _, third, _ = await line.ask(post(b""))

    assert second["date"] == "remembered"
    made, renewed = (parsedate_to_datetime(headers["date"]) for headers in (first, third))
    assert timedelta(0) <= renewed - made < timedelta(seconds=10)


@pytest.mark.parametrize("pieces", [[b""], [b"ab", b"cde"], [b"x" * 70_000]])
async def test_a_body_that_came_with_its_head_is_taken_whole(pieces: list[bytes]) -> None:
    async def take(exchange: Exchange) -> Answered:
        body = exchange.whole_body()
        if body is None:
            body = await exchange.content.read()
        return exchange.answer(200, JSON, body)

    async with Door.opened(take) as door:
        line = await door.line()
        head = post(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece)

        assert (await line.ask(head + chunks + b"0\r\n\r\n"))[2] == b"".join(pieces)
        assert (await line.ask(post(b"".join(pieces))))[2] == b"".join(pieces)


async def test_a_body_still_on_its_way_is_not_taken_for_whole() -> None:
    async def told(exchange: Exchange) -> Answered:
        return exchange.answer(200, JSON, repr(exchange.whole_body()).encode())

    async with Door.opened(told) as door:
        line = await door.line()

        _, headers, body = await line.ask(post(b"12345")[:-1])

    assert (body, headers["connection"]) == (b"None", "close")


async def test_a_reader_of_a_body_is_told_when_its_connection_is_lost() -> None:
    broken: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

    async def read(exchange: Exchange) -> Answered:
        try:
            await exchange.content.read()
        except ConnectionError as error:
            broken.set_result(error)
        return exchange.answer(200, JSON, b"")

    async with Door.opened(read) as door:
        line = await door.line()
        line.writer.write(post(b"12345")[:-1])
        await line.writer.drain()
        line.writer.close()

        async with asyncio.timeout(5):
            await broken


@pytest.mark.parametrize("is_stream", [False, True])
async def test_what_a_client_is_sent_is_copied_for_who_asks_for_it(*, is_stream: bool) -> None:
    copy = Copy()

    async def copied(exchange: Exchange) -> Answered:
        exchange.copy = copy
        if not is_stream:
            return exchange.answer(200, JSON, b"one two three")
        exchange.start(200, JSON, b"one ")
        exchange.write_chunk(b"two ")
        return exchange.finish(b"three")

    async with Door.opened(copied) as door:
        line = await door.line()
        line.writer.write(post(b"x", "Connection: close"))
        await line.rest()
    assert copy.data == b"one two three"
