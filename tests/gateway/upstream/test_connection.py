"""Deadlines, the pace of sending, cancelling: what one connection does with time and trouble."""

import asyncio

import pytest

from gateway.upstream import (
    Deadlines,
    UpstreamCut,
    UpstreamTimeout,
)
from tests.gateway.upstream.wire import (
    CHAT,
    CHUNKED,
    OK,
    PATIENCE_S,
    gauges,
    whole,
    wire,
)


async def test_a_large_body_is_sent_no_faster_than_the_vendor_takes_it() -> None:
    body = b"".join(b"%08x" % number for number in range(3 * 1024 * 1024))
    async with wire() as ours:
        call = ours.call(CHAT._replace(body=body))
        peer = await ours.peer()
        _, received = await peer.request()
        assert received == body
        await peer.send(OK)
        assert await whole(await call) == b"ok"
        assert gauges(ours) == (1, 1, 0, 0)


async def test_an_answer_that_comes_before_the_body_was_read_counts_and_ends_the_connection() -> (
    None
):
    async with wire() as ours:
        call = ours.call(CHAT._replace(body=bytes(64 * 1024 * 1024)))
        peer = await ours.peer()
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        answer = await call
        assert (answer.status, await whole(answer)) == (413, b"big")
        assert gauges(ours) == (0, 0, 0, 0)


async def test_a_vendor_that_stops_reading_the_request_is_given_up_after_the_idle_time() -> None:
    deadlines = Deadlines(connect_s=PATIENCE_S, first_byte_s=PATIENCE_S, idle_s=0.05)
    async with wire() as ours:
        call = ours.call(CHAT._replace(body=bytes(64 * 1024 * 1024)), deadlines=deadlines)
        await ours.peer()
        with pytest.raises(UpstreamTimeout) as caught:
            await call
        assert (caught.value.phase, caught.value.sent) == ("send", True)


async def test_a_vendor_silent_before_its_head_is_given_up_and_sees_the_close() -> None:
    deadlines = Deadlines(connect_s=PATIENCE_S, first_byte_s=0.05, idle_s=PATIENCE_S)
    async with wire() as ours:
        call = ours.call(deadlines=deadlines)
        peer = await ours.peer()
        await peer.request()
        with pytest.raises(UpstreamTimeout) as caught:
            await call
        error = caught.value
        assert (error.phase, error.sent, error.timeout) == ("head", True, True)
        assert await peer.is_closed()


async def test_a_head_that_trickles_in_has_one_deadline_for_all_of_it() -> None:
    deadlines = Deadlines(connect_s=PATIENCE_S, first_byte_s=0.1, idle_s=PATIENCE_S)
    async with wire() as ours:
        call = ours.call(deadlines=deadlines)
        peer = await ours.peer()
        await peer.request()

        async def trickle() -> None:
            while True:
                await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
                await asyncio.sleep(0.02)

        trickling = ours.start(trickle())
        with pytest.raises(UpstreamTimeout) as caught:
            await call
        assert caught.value.answered
        assert not trickling.done()


async def test_a_stall_between_chunks_is_given_up_after_the_idle_time() -> None:
    deadlines = Deadlines(connect_s=PATIENCE_S, first_byte_s=PATIENCE_S, idle_s=0.05)
    async with wire() as ours:
        call = ours.call(deadlines=deadlines)
        peer = await ours.peer()
        await peer.answer(CHUNKED + b"2\r\nok\r\n")
        answer = await call
        assert await answer.read() == b"ok"
        with pytest.raises(UpstreamTimeout) as caught:
            await answer.read()
        assert caught.value.phase == "body"
        assert await peer.is_closed()
        assert gauges(ours) == (0, 0, 0, 0)


async def test_a_stream_may_last_much_longer_than_the_idle_time() -> None:
    deadlines = Deadlines(connect_s=PATIENCE_S, first_byte_s=PATIENCE_S, idle_s=0.25)
    loop = asyncio.get_running_loop()
    async with wire() as ours:
        call = ours.call(deadlines=deadlines)
        peer = await ours.peer()
        await peer.answer(CHUNKED)
        answer = await call
        started_s = loop.time()
        while loop.time() - started_s < 0.6:
            reading = ours.start(answer.read())
            await asyncio.sleep(0.03)
            await peer.send(b"1\r\nx\r\n")
            assert await reading == b"x"
        await peer.send(b"0\r\n\r\n")
        assert await answer.read() == b""


async def test_a_slow_reader_is_not_taken_for_a_silent_vendor() -> None:
    deadlines = Deadlines(connect_s=PATIENCE_S, first_byte_s=PATIENCE_S, idle_s=0.05)
    async with wire() as ours:
        call = ours.call(deadlines=deadlines)
        peer = await ours.peer()
        await peer.answer(CHUNKED)
        answer = await call
        await asyncio.sleep(0.2)  # the client drinks nothing for four times the idle time
        await peer.send(b"2\r\nok\r\n0\r\n\r\n")
        assert await whole(answer) == b"ok"


async def test_a_cancelled_send_closes_the_connection() -> None:
    async with wire() as ours:
        call = ours.call()
        peer = await ours.peer()
        await peer.request()
        call.cancel()
        assert await peer.is_closed()
        assert gauges(ours) == (0, 0, 0, 0)


async def test_a_cancelled_read_closes_the_connection() -> None:
    async with wire() as ours:
        call = ours.call()
        peer = await ours.peer()
        await peer.answer(CHUNKED)
        reading = ours.start((await call).read())
        await asyncio.sleep(0)
        reading.cancel()
        assert await peer.is_closed()
        assert gauges(ours) == (0, 0, 0, 0)


@pytest.mark.parametrize("way", ["abort", "release"])
async def test_an_answer_given_up_in_the_middle_is_closed_at_once(way: str) -> None:
    async with wire() as ours:
        call = ours.call()
        peer = await ours.peer()
        await peer.answer(CHUNKED + b"2\r\nok\r\n")
        answer = await call
        getattr(answer, way)()
        assert gauges(ours) == (0, 0, 0, 0)
        assert await peer.is_closed()
        assert await answer.read() == b"ok"
        with pytest.raises(UpstreamCut):
            await answer.read()


async def test_an_answer_that_is_over_cannot_harm_the_next_call_on_its_connection() -> None:
    async with wire() as ours:
        call = ours.call()
        peer = await ours.peer()
        await peer.answer()
        first = await call
        call = ours.call()
        await peer.answer(CHUNKED)
        second = await call
        first.abort()
        assert await first.read() == b"ok"
        await peer.send(b"2\r\nhi\r\n0\r\n\r\n")
        assert await whole(second) == b"hi"
