"""The listener: what it answers, what it refuses to wait for, and when it closes."""

import asyncio
import gc
import hashlib
import inspect
from contextlib import suppress
from dataclasses import replace

import orjson
import pytest
from aiohttp.web_protocol import RequestHandler

from gateway.proxy.exchange import Answered, Exchange, Memory
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


@pytest.mark.parametrize(
    ("limit", "status"), [("connections_max", 503), ("connections_per_address_max", 429)]
)
async def test_connections_beyond_a_limit_are_told_when_to_return_and_closed(
    limit: str, status: int
) -> None:
    wall = replace(WALL, **{limit: 1})
    async with Door.opened(echo, wall=wall) as door:
        first = await door.line()
        await first.ask(post(b"x"))
        second, silent = await door.line(), await door.line()

        told, headers, body = await second.ask(post(b"x"))

        assert (told, headers["retry-after"], headers["connection"]) == (status, "1", "close")
        assert orjson.loads(body)["error"]["code"] == "too_many_connections"
        assert await second.rest() == b""
        with suppress(ConnectionResetError):
            assert await silent.rest() == b""
        assert (await first.ask(post(b"y")))[2] == b"y"
        assert door.turned_away == [limit, limit]


async def test_the_connections_of_an_address_count_until_they_are_lost() -> None:
    async with Door.opened(echo, wall=replace(WALL, connections_per_address_max=1)) as door:
        for _ in range(3):
            line = await door.line()
            assert (await line.ask(post(b"x")))[0] == 200
            line.writer.close()
            async with asyncio.timeout(5):
                while door.server.connections:
                    await asyncio.sleep(0.01)


async def test_a_bug_in_a_handler_is_answered_in_json_without_its_text() -> None:
    async def broken(_exchange: Exchange) -> Answered:
        raise ZeroDivisionError("secret detail")

    async with Door.opened(broken) as door:
        line = await door.line()

        status, _, body = await line.ask(post(b"{}"))

        assert status == 500
        assert orjson.loads(body)["error"]["code"] == "internal_error"
        assert b"secret" not in body


async def test_requests_sent_at_once_are_answered_in_their_order() -> None:
    async with Door.opened(echo) as door:
        line = await door.line()
        bodies = [b"%d" % number for number in range(100)]  # aiohttp's queue holds 32

        line.writer.write(b"".join(post(body) for body in bodies))

        assert [(await line.ask(b""))[2] for _ in bodies] == bodies


async def test_what_is_not_http_is_answered_after_the_requests_before_it() -> None:
    started, go = asyncio.Event(), asyncio.Event()

    async def late(exchange: Exchange) -> Answered:
        started.set()
        await go.wait()
        return await echo(exchange)

    async with Door.opened(late) as door:
        line = await door.line()
        line.writer.write(post(b"one"))
        await started.wait()
        line.writer.write(b"NOT HTTP AT ALL\r\n\r\n")
        async with asyncio.timeout(5):
            while not door.server.connections[0]._messages:
                await asyncio.sleep(0.01)
        go.set()

        first, second = await line.ask(b""), await line.ask(b"")

        assert (first[2], second[0], await line.rest()) == (b"one", 400, b"")


async def test_an_idle_connection_is_closed_when_its_time_is_over() -> None:
    async with Door.opened(echo, wall=replace(WALL, keep_alive_s=0.2)) as door:
        line = await door.line()
        await line.ask(post(b"x"))

        async with asyncio.timeout(5):
            assert await line.rest() == b""


async def test_a_call_may_take_longer_than_a_connection_may_be_idle() -> None:
    async def slow(exchange: Exchange) -> Answered:
        await asyncio.sleep(0.3)
        return exchange.answer(200, JSON, b"{}")

    async with Door.opened(slow, wall=replace(WALL, keep_alive_s=0.1)) as door:
        line = await door.line()

        assert (await line.ask(post(b"x")))[0] == 200
        async with asyncio.timeout(5):
            assert await line.rest() == b""


async def test_stopping_closes_idle_connections_and_waits_for_calls() -> None:
    started, go, told = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def wait(exchange: Exchange) -> Answered:
        if exchange.raw_path == "/wait":
            exchange.on_gone = told.set
            started.set()
            await go.wait()
        return exchange.answer(200, JSON, b"{}")

    async with Door.opened(wait) as door:
        idle, busy = await door.line(), await door.line()
        await idle.ask(post(b"x"))
        busy.writer.write(post(b"x", path="/wait"))
        await started.wait()

        door.server.leave()
        assert len(door.server.close_idle()) == 1
        async with asyncio.timeout(5):
            assert await idle.rest() == b""
        stopping = asyncio.ensure_future(door.server.shutdown(60))
        await asyncio.sleep(0)  # a turn of the loop: it has begun
        go.set()

        async with asyncio.timeout(10):
            assert (await busy.ask(b""))[0] == 200
            assert await busy.rest() == b""
            await stopping
        assert not told.is_set()


async def test_who_leaves_says_so_with_its_last_answer_and_never_without_a_word() -> None:
    started, go = asyncio.Event(), asyncio.Event()

    async def stream(exchange: Exchange) -> Answered:
        if exchange.raw_path != "/stream":
            return exchange.answer(200, JSON, b"{}")
        exchange.start(200, JSON, b"first")
        started.set()
        await go.wait()
        return exchange.finish(b"last")

    async with Door.opened(stream) as door:
        idle, busy = await door.line(), await door.line()
        await idle.ask(post(b""))
        busy.writer.write(post(b"", path="/stream"))
        await started.wait()
        door.server.leave()
        go.set()

        assert "connection" not in (await busy.ask(b""))[1]
        for line, path in ((busy, "/stream"), (idle, "/"), (await door.line(), "/")):
            assert (await line.ask(post(b"", path=path)))[1]["connection"] == "close"
            assert await line.rest() == b""


async def test_stopping_cancels_the_calls_that_take_too_long() -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def hang(exchange: Exchange) -> Answered:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return exchange.answer(200, JSON, b"{}")

    async with Door.opened(hang) as door:
        line = await door.line()
        line.writer.write(post(b"x"))
        await started.wait()

        async with asyncio.timeout(5):
            await door.server.shutdown(0.05)
            await ended.wait()
            assert await line.rest() == b""


async def test_a_client_reads_why_its_body_was_refused_before_it_is_closed() -> None:
    async def refuse(exchange: Exchange) -> Answered:
        return exchange.answer(413, JSON, b"{}")

    async with Door.opened(refuse) as door:
        line = await door.line()
        body = b"x" * 5_000_000

        line.writer.write(post(body))
        await line.writer.drain()

        assert (await line.ask(b""))[0] == 413
        assert await line.rest() == b""


async def test_a_body_that_was_paused_goes_on_when_it_is_read() -> None:
    paused = asyncio.Event()

    async def late(exchange: Exchange) -> Answered:
        await paused.wait()
        return await echo(exchange)

    async with Door.opened(late) as door:
        line = await door.line()
        body = b"x" * 3_000_000
        line.writer.write(post(body))
        async with asyncio.timeout(10):
            while not any(guard._reading_paused for guard in door.server.connections):
                await asyncio.sleep(0.01)
            paused.set()

            assert (await line.ask(b""))[2] == body


async def test_a_connection_goes_on_after_an_upgrade_that_was_declined() -> None:
    async with Door.opened(echo) as door:
        line = await door.line()
        upgrade = post(b"one", "Connection: upgrade", "Upgrade: websocket")

        line.writer.write(upgrade + post(b"two"))

        assert [(await line.ask(b""))[2] for _ in range(2)] == [b"one", b"two"]
        assert (await line.ask(post(b"three")))[2] == b"three"


async def test_a_connection_lost_before_its_call_is_over_leaves_no_timer() -> None:
    async def linger(exchange: Exchange) -> Answered:
        gone = asyncio.Event()
        exchange.on_gone = gone.set
        answered = exchange.answer(200, JSON, b"{}")
        await gone.wait()
        return answered

    async with Door.opened(linger, wall=replace(WALL, keep_alive_s=0.1)) as door:
        line = await door.line()
        await line.ask(post(b"x"))
        (guard,) = door.server.connections
        await asyncio.sleep(0.2)  # the timer of the connection has come and gone
        line.writer.close()
        async with asyncio.timeout(5):
            while door.server.connections:
                await asyncio.sleep(0.01)

        timer = guard._keepalive_handle
        assert timer is None or timer.cancelled()


async def test_a_bug_in_the_middle_of_an_answer_cuts_it() -> None:
    async def broken(exchange: Exchange) -> Answered:
        exchange.start(200, JSON, b"one")
        raise ZeroDivisionError

    async with Door.opened(broken) as door:
        line = await door.line()
        line.writer.write(post(b"{}"))

        async with asyncio.timeout(5):
            with suppress(ConnectionResetError):
                assert not (await line.rest()).endswith(b"0\r\n\r\n")


async def test_an_idle_connection_keeps_nothing_of_the_call_before() -> None:
    gc.collect()  # what other tests left is not this one's
    async with Door.opened(echo) as door:
        line = await door.line()
        await line.ask(post(b"x"))
        await line.ask(post(b"y"))

        assert [each for each in gc.get_objects() if isinstance(each, Exchange)] == []


async def test_what_a_connection_remembers_is_forgotten_when_it_is_lost() -> None:
    memories: list[Memory] = []

    async def remember(exchange: Exchange) -> Answered:
        exchange.memory.shown.add("Bearer secret", b"digest")
        exchange.memory.client = ("o", "agent", "id")
        memories.append(exchange.memory)
        return exchange.answer(200, JSON, b"{}")

    async with Door.opened(remember) as door:
        line, other = await door.line(), await door.line()
        for asked in (line, line, other):
            await asked.ask(post(b"x"))
        one, again, theirs = memories
        line.writer.close()
        async with asyncio.timeout(5):
            while len(door.server.connections) > 1:
                await asyncio.sleep(0.01)

        assert one is again
        assert (one.shown.digest_of("Bearer secret"), one.client) == (None, ("", "", ""))
        assert theirs.shown.digest_of("Bearer secret") == b"digest"


@pytest.mark.parametrize(
    ("method", "known"),
    [
        ("start", "2e565fd40c8e04fb"),
        ("_handle_request", "a88a34ee65a2714c"),
        ("data_received", "1ee57ebe052e6c80"),
        ("connection_lost", "df2fe6e95fd04c7c"),
        ("shutdown", "5eb4bd473db61e84"),
        ("_process_keepalive", "b472e0fb8445ce42"),
    ],
)
def test_aiohttp_turns_requests_as_it_did_when_guard_start_was_written(
    method: str, known: str
) -> None:
    source = inspect.getsource(getattr(RequestHandler, method))

    assert hashlib.sha256(source.encode()).hexdigest()[:16] == known, (
        "a new aiohttp: compare its change with Guard.start, then write the new digest here"
    )
