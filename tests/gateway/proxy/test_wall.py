"""What no head may say, and how long a client may take: each rule over a socket."""

import asyncio
from dataclasses import replace

import orjson
import pytest

from gateway import errors
from gateway.proxy.answer import refuse
from gateway.proxy.exchange import Answered, Exchange
from gateway.proxy.wall import Addresses, Wall, answer_of
from gateway.settings import Limits
from tests.gateway.proxy.door import WALL, Door, Line, body_of, post
from tests.smuggled import smuggled

JSON = b"Content-Type: application/json\r\n"
LIMITS = Limits(body_grace_s=0.2, body_bytes_per_s_min=1_000, body_timeout_s=20)
WIDE = replace(WALL, connections_max=9_999, connections_per_address_max=9_999, header_timeout_s=5)
CHUNKED = (
    b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


class Reader:
    """A handler that reads the body as calls do, and remembers what it was given."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.begun = asyncio.Event()

    async def __call__(self, exchange: Exchange) -> Answered:
        self.begun.set()
        try:
            body = await body_of(exchange, LIMITS)
        except errors.GatewayError as error:
            return refuse(exchange, error, "")
        self.bodies.append(body)
        return exchange.answer(200, JSON, b"{}")


async def answers(line: Line, data: bytes) -> bytes:
    """All that comes back for these bytes, until the other side closes."""
    line.writer.write(data)
    async with asyncio.timeout(30):
        try:
            return await line.rest()
        finally:
            line.writer.close()


async def test_nothing_that_could_be_read_in_two_ways_reaches_a_handler() -> None:
    table = smuggled("tg_live_nobody")
    reader = Reader()
    async with Door.opened(reader, wall=WIDE) as door:
        lines = [await door.line() for _ in table]
        found = await asyncio.gather(*map(answers, lines, table.values()))

    odd = {name for name, said in zip(table, found, strict=True) if said.count(b"HTTP/1.1 ") != 1}
    assert odd == set(), "one answer each"
    assert {name for name, said in zip(table, found, strict=True) if said[9:10] != b"4"} == set()
    assert reader.bodies == []
    assert len(table) >= 200


@pytest.mark.parametrize(
    "host", ["tollgate", "a.example:8080", "my_service:80", "[::1]:8080", "127.0.0.1", "A-1.b"]
)
async def test_hosts_as_clients_send_them_are_good(host: str) -> None:
    async with Door.opened(Reader()) as door:
        line = await door.line()
        request = post(b"{}").replace(b"tollgate", host.encode())

        assert [(await line.ask(request))[0] for _ in range(2)] == [200, 200]


async def test_a_wall_that_is_replaced_holds_for_the_connections_that_are_new() -> None:
    async with Door.opened(Reader()) as door:
        before = await door.line()
        assert (await before.ask(post(b"{}")))[0] == 200
        large = post(b"{}", f"X-Large: {'a' * 500}")

        door.server.wall = replace(WALL, header_bytes_max=400, connections_max=2)

        after, too_many = await door.line(), await door.line()
        assert (await after.ask(large))[0] == 431
        assert (await too_many.ask(post(b"{}")))[0] == 503
        assert (await before.ask(large))[0] == 200


async def test_a_host_is_looked_at_again_when_it_changes() -> None:
    async with Door.opened(Reader()) as door:
        line = await door.line()
        await line.ask(post(b"{}"))

        assert (await line.ask(post(b"{}").replace(b"tollgate", b"to,ll")))[0] == 400
        assert await line.rest() == b""


async def test_a_body_that_cannot_be_read_ends_the_wait_of_who_reads_it() -> None:
    reader = Reader()
    async with Door.opened(reader) as door:
        line = await door.line()
        line.writer.write(CHUNKED + b"2\r\n{}\r\n")
        await reader.begun.wait()

        async with asyncio.timeout(5):
            assert (await line.ask(b"nonsense\r\n"))[0] == 400
            assert await line.rest() == b""
    assert reader.bodies == []


async def test_a_body_that_drips_is_refused_after_its_grace() -> None:
    async with Door.opened(Reader()) as door:
        line = await door.line()
        line.writer.write(post(b"x" * 10_000)[:-9_999])
        drips = asyncio.ensure_future(_drip(line, 0.05))

        status, headers, body = await line.ask(b"")

        assert (status, headers["connection"]) == (408, "close")
        assert orjson.loads(body)["error"]["code"] == "request_timeout"
        drips.cancel()


async def _drip(line: Line, every_s: float) -> None:
    while True:
        line.writer.write(b"x")
        await asyncio.sleep(every_s)


async def test_a_body_as_fast_as_it_must_be_may_take_longer_than_its_grace() -> None:
    reader = Reader()
    async with Door.opened(reader) as door:
        line = await door.line()
        line.writer.write(post(b"x" * 5_000)[:-5_000])
        for _ in range(10):
            line.writer.write(b"x" * 500)
            await asyncio.sleep(0.05)

        assert (await line.ask(b""))[0] == 200
    assert len(reader.bodies[0]) == 5_000


async def test_chunks_that_are_mostly_extensions_are_refused() -> None:
    reader = Reader()
    async with Door.opened(reader) as door:
        line = await door.line()
        line.writer.write(CHUNKED)
        await reader.begun.wait()
        for _ in range(40):
            line.writer.write(b"1;" + b"a" * 8_000 + b"\r\nx\r\n")
            await asyncio.sleep(0)

        assert (await line.ask(b""))[0] == 400
        assert await line.rest() == b""


async def test_a_connection_that_closes_blames_no_body_for_what_it_drops_itself() -> None:
    reader = Reader()
    async with Door.opened(reader) as door:
        line = await door.line()
        line.writer.write(post(b"x" * 500_000)[:-499_999])
        await reader.begun.wait()
        (guard,) = door.server.connections
        guard.close()

        status, _, body = await line.ask(b"x" * 400_000)

        assert (status, orjson.loads(body)["error"]["code"]) == (408, "request_timeout")


async def test_chunks_of_one_byte_are_read() -> None:
    reader = Reader()
    async with Door.opened(reader) as door:
        line = await door.line()
        for part in (CHUNKED, *[b"1\r\nx\r\n" * 1_000] * 50):
            line.writer.write(part)
            await line.writer.drain()

        assert (await line.ask(b"0\r\n\r\n"))[0] == 200
    assert reader.bodies == [b"x" * 50_000]


@pytest.mark.parametrize("parts", [1, 20])
async def test_all_headers_together_have_a_limit(parts: int) -> None:
    head = post(b"{}", *[f"X-{number}: {'a' * 900}" for number in range(60)])
    async with Door.opened(Reader()) as door:
        line = await door.line()
        step = len(head) // parts + 1
        for start in range(0, len(head), step):
            line.writer.write(head[start : start + step])
            await asyncio.sleep(0.001)

        assert (await line.ask(b""))[0] == 431
        assert await line.rest() == b""


async def test_a_request_behind_another_ones_large_body_is_no_large_head() -> None:
    reader = Reader()
    async with Door.opened(reader) as door:
        line = await door.line()
        data = post(b"x" * 100_000) + post(b"y" * 100_000)
        for start in range(0, len(data), 7_000):
            line.writer.write(data[start : start + 7_000])
            await line.writer.drain()

        assert [(await line.ask(b""))[0] for _ in range(2)] == [200, 200]
    assert [len(body) for body in reader.bodies] == [100_000, 100_000]


async def test_no_more_requests_are_read_ahead_than_the_queue_holds() -> None:
    go = asyncio.Event()

    async def late(exchange: Exchange) -> Answered:
        await go.wait()
        return exchange.answer(200, JSON, b"{}")

    async with Door.opened(late) as door:
        line = await door.line()
        line.writer.write(post(b"x") * 20_000)
        async with asyncio.timeout(10):
            while not (door.server.connections and door.server.connections[0]._buffer_paused):
                await asyncio.sleep(0.01)

        assert len(door.server.connections[0]._messages) <= 32
        go.set()
        line.writer.close()


@pytest.mark.parametrize("closes", [False, True])
async def test_a_client_that_takes_no_answer_is_cut(
    closes: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    async def large(exchange: Exchange) -> Answered:
        return exchange.answer(200, JSON, b"x" * 20_000_000, close=closes)

    async with Door.opened(large) as door:
        line = await door.line()
        line.writer.write(post(b"{}"))
        async with asyncio.timeout(10):
            while not door.server.connections:
                await asyncio.sleep(0.01)
            while door.server.connections:
                await asyncio.sleep(0.01)


async def test_a_client_that_takes_its_answer_slowly_gets_all_of_it() -> None:
    size = 12_000_000

    async def large(exchange: Exchange) -> Answered:
        return exchange.answer(200, JSON, b"x" * size)

    async with Door.opened(large) as door:
        line = await door.line()
        line.writer.write(post(b"{}"))
        async with asyncio.timeout(30):
            await line.reader.readuntil(b"\r\n\r\n")
            for _ in range(size // 600_000):
                assert await line.reader.readexactly(600_000) == b"x" * 600_000
                await asyncio.sleep(0.02)  # slow on purpose


def test_neighbours_of_one_ipv6_network_count_together() -> None:
    addresses = Addresses()

    counts = [
        addresses.enter(one)
        for one in ("2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", "::ffff:10.0.0.1", "10.0.0.1")
    ]

    assert counts == [1, 2, 1, 1, 2]


async def test_a_request_without_a_host_is_told_what_is_missing() -> None:
    async with Door.opened(Reader()) as door:
        line = await door.line()

        status, _, body = await line.ask(b"GET / HTTP/1.1\r\nAccept: a\r\n\r\n")

    assert (status, b"Missing Host header" in body) == (400, True)


def test_what_a_client_sent_is_not_repeated_to_it() -> None:
    for said in ("Invalid HTTP header: b'secret'", "Bad status line 'secret'", "x:\n\n  b'secret'"):
        assert b"secret" not in answer_of(400, said)[1]


def test_a_wall_is_as_its_limits_say() -> None:
    wall = Wall.of(Limits(headers_max=11, keep_alive_s=7), stall_s_max=3)

    assert (wall.headers_max, wall.keep_alive_s, wall.stall_s_max) == (11, 7, 3)
