"""Who gets which connection, who waits, and what is never used again."""

import asyncio
import os
import socket

import pytest

from gateway.upstream import Deadlines, Limits, UpstreamBusy, UpstreamCut, UpstreamError
from gateway.upstream.pool import AFTER_STREAM_S
from tests.gateway.upstream.wire import CHUNKED, OK, PATIENCE_S, Wire, gauges, whole, wire

STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
)


async def settled(ours: Wire) -> tuple[int, int, int, int]:
    """The gauges, once what the sockets already hold has been seen by the loop."""
    for _ in range(5):
        await asyncio.sleep(0)
    return gauges(ours)


async def test_a_connection_whose_answer_ended_carries_the_next_request() -> None:
    async with wire() as ours:
        peer = await ours.warm()
        call = ours.call()
        await peer.answer()
        answer = await call
        assert answer.reused
        assert await whole(answer) == b"ok"
        (pool,) = ours.upstream.pools.values()
        assert (pool.tallies.created, pool.tallies.reused) == (1, 1)
        assert ours.more_connections() == 0


async def test_the_connection_is_free_when_the_answer_has_come_even_if_nobody_has_read_it() -> None:
    async with wire(limits=Limits(connections_max=1)) as ours:
        call = ours.call()
        peer = await ours.peer()
        await peer.answer()
        first = await call
        call = ours.call()
        await peer.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\ntwo")
        second = await call
        assert await whole(second) == b"two"
        assert await whole(first) == b"ok"


async def test_a_vendor_may_close_after_a_stream_though_it_promised_to_keep_alive() -> None:
    async with wire() as ours:
        call = ours.call()
        peer = await ours.peer()
        await peer.answer(STREAM)
        assert await whole(await call) == b"data: [DONE]\n\n"
        call = ours.call()
        peer.close()
        other = await ours.peer()
        await other.answer()
        assert await whole(await call) == b"ok"


async def test_a_connection_that_outlives_its_stream_carries_the_next_request() -> None:
    async with wire() as ours:
        call = ours.call()
        peer = await ours.peer()
        await peer.answer(STREAM)
        await whole(await call)
        await asyncio.sleep(2 * AFTER_STREAM_S)  # it is not trusted for the first half of it
        call = ours.call()
        await peer.answer()
        assert (await call).reused


async def test_where_no_other_may_be_made_a_connection_just_after_its_stream_is_used() -> None:
    async with wire(limits=Limits(connections_max=1)) as ours:
        call = ours.call()
        peer = await ours.peer()
        await peer.answer(STREAM)
        await whole(await call)
        call = ours.call()
        await peer.answer()
        assert (await call).reused


async def test_the_connection_used_last_is_used_first() -> None:
    async with wire() as ours:
        calls = [ours.call(), ours.call()]
        peers = [await ours.peer(), await ours.peer()]
        await peers[0].answer()
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        await peers[1].answer()
        await asyncio.gather(*calls)
        call = ours.call()
        await peers[1].answer()
        assert await whole(await call) == b"ok"


async def test_a_connection_closed_while_idle_is_never_used_again() -> None:
    async with wire() as ours:
        peer = await ours.warm()
        peer.close()
        await peer.is_closed()
        assert await settled(ours) == (0, 0, 0, 0)
        assert await ours.warm() is not peer


async def test_a_connection_on_which_bytes_came_while_idle_is_closed() -> None:
    async with wire() as ours:
        peer = await ours.warm()
        await peer.send(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        assert await peer.is_closed()
        assert gauges(ours) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother",
        OK + b"H",
        OK + b"junk",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nokjunk",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=1\r\nContent-Length: 2\r\n\r\nok",
    ],
)
async def test_a_connection_is_not_used_again_unless_the_answer_ended_cleanly(
    answer: bytes,
) -> None:
    async with wire() as ours:
        call = ours.call()
        peer = await ours.peer()
        await peer.answer(answer)
        got = await call
        assert await whole(got) == b"ok"
        assert gauges(ours) == (0, 0, 0, 0)
        assert await peer.is_closed()


async def test_a_request_that_dies_on_a_reused_connection_says_so_and_is_not_sent_twice() -> None:
    async with wire() as ours:
        peer = await ours.warm()
        call = ours.call()
        await peer.request()
        peer.close()
        with pytest.raises(UpstreamCut) as caught:
            await call
        error = caught.value
        facts = (error.phase, error.sent, error.reused, error.answered)
        assert facts == ("head", True, True, False)
        assert ours.more_connections() == 0


async def test_an_idle_connection_is_closed_when_its_time_is_over() -> None:
    async with wire(limits=Limits(idle_s=0.03)) as ours:
        peer = await ours.warm()
        assert await peer.is_closed()
        assert gauges(ours) == (0, 0, 0, 0)


async def test_a_connection_past_its_age_is_closed_after_its_answer_and_not_within() -> None:
    async with wire(limits=Limits(age_s=0.02)) as ours:
        call = ours.call()
        peer = await ours.peer()
        await peer.answer(CHUNKED)
        answer = await call
        await asyncio.sleep(0.05)
        await peer.send(b"2\r\nok\r\n0\r\n\r\n")
        assert await whole(answer) == b"ok"
        assert gauges(ours) == (0, 0, 0, 0)


async def test_the_next_in_the_queue_gets_the_connection_that_becomes_free() -> None:
    async with wire(limits=Limits(connections_max=1)) as ours:
        first = ours.call()
        peer = await ours.peer()
        second = ours.call()
        third = ours.call()
        await peer.request()
        assert gauges(ours) == (1, 0, 1, 2)
        await asyncio.sleep(0.02)
        await peer.send(OK)
        await whole(await first)
        await peer.answer()
        await whole(await second)
        await peer.answer()
        await whole(await third)
        (pool,) = ours.upstream.pools.values()
        assert (pool.tallies.waits, pool.tallies.refused, pool.tallies.created) == (2, 0, 1)
        assert pool.tallies.waited_s >= 0.03
        assert gauges(ours) == (1, 1, 0, 0)


async def test_the_next_in_the_queue_makes_a_connection_when_another_was_closed() -> None:
    async with wire(limits=Limits(connections_max=1)) as ours:
        first = ours.call()
        peer = await ours.peer()
        second = ours.call()
        await peer.answer(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
        await whole(await first)
        await (await ours.peer()).answer()
        assert await whole(await second) == b"ok"
        assert gauges(ours) == (1, 1, 0, 0)


async def test_the_wait_for_a_connection_is_bounded_in_time_and_in_number() -> None:
    limits = Limits(connections_max=1, waiting_max=1)
    deadlines = Deadlines(connect_s=0.05, first_byte_s=PATIENCE_S, idle_s=PATIENCE_S)
    async with wire(limits=limits) as ours:
        ours.call().add_done_callback(lambda _: None)
        await (await ours.peer()).request()
        waits = ours.call(deadlines=deadlines)
        await asyncio.sleep(0)
        with pytest.raises(UpstreamBusy, match="too many"):
            await ours.call(deadlines=deadlines)
        with pytest.raises(UpstreamBusy, match="in time") as caught:
            await waits
        assert (caught.value.phase, caught.value.sent) == ("pool", False)
        assert gauges(ours) == (1, 0, 1, 0)
        (pool,) = ours.upstream.pools.values()
        assert pool.tallies.refused == 2


@pytest.mark.parametrize("steps", range(6))
async def test_a_waiter_cancelled_at_any_moment_loses_neither_connection_nor_slot(
    steps: int,
) -> None:
    async with wire(limits=Limits(connections_max=1)) as ours:
        first = ours.call()
        peer = await ours.peer()
        second = ours.call()
        await peer.answer()
        for _ in range(steps):
            await asyncio.sleep(0)
        second.cancel()
        await whole(await first)
        await asyncio.wait([second])
        opened, idle, in_use, waiting = gauges(ours)
        assert (opened, in_use, waiting) in {(1, 0, 0), (0, 0, 0)}
        assert opened == idle
        last = ours.call()
        await (await ours.peer() if opened == 0 else peer).request()
        last.cancel()


async def test_failed_connections_give_their_slot_back() -> None:
    async with wire(limits=Limits(connections_max=1)) as ours:
        peer = await ours.warm()
        peer.close()
        await peer.is_closed()
        await ours.end_listening()
        for _ in range(3):
            with pytest.raises(UpstreamError):
                await ours.call()
        assert gauges(ours) == (0, 0, 0, 0)
        (pool,) = ours.upstream.pools.values()
        assert pool.tallies.failed == 3


async def test_connections_that_end_as_they_begin_give_their_slot_back() -> None:
    async with wire(limits=Limits(connections_max=1)) as ours:
        for _ in range(50):
            call = ours.call()
            (await ours.peer()).reset()
            with pytest.raises(UpstreamCut):
                await call
        assert gauges(ours) == (0, 0, 0, 0)


async def test_an_old_idle_connection_is_asked_whether_it_still_stands() -> None:
    async with wire() as ours:
        peer = await ours.warm()
        (pool,) = ours.upstream.pools.values()
        in_a_while_s = asyncio.get_running_loop().time() + 5
        connection = pool.take(in_a_while_s)
        assert connection is not None
        pool.freed(connection, asyncio.get_running_loop().time())
        # The system has seen the end of the connection, the event loop has not yet.
        with socket.socket(fileno=os.dup(peer.writer.get_extra_info("socket").fileno())) as same:
            same.shutdown(socket.SHUT_WR)
        assert pool.take(in_a_while_s) is None
        assert gauges(ours) == (0, 0, 0, 0)


async def test_hundreds_of_answers_given_up_leave_no_connection_behind() -> None:
    async with wire(limits=Limits(connections_max=20)) as ours:

        async def vendor() -> None:
            while True:
                peer = await ours.peer()
                await peer.answer(CHUNKED + b"2\r\nok\r\n")

        serving = ours.start(vendor())

        async def leave(number: int) -> None:
            answer = await ours.call()
            if number % 3:
                await answer.read()
            answer.abort()

        await asyncio.gather(*(leave(number) for number in range(300)))
        assert gauges(ours) == (0, 0, 0, 0)
        assert not serving.done()
