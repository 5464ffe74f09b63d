"""What comes back, however the vendor cuts, frames or breaks it."""

import asyncio
import gzip
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.upstream import (
    UpstreamCut,
    UpstreamError,
    UpstreamGarbled,
)
from providers.adapter import UpstreamRequest
from tests.gateway.upstream.wire import (
    CHAT,
    CHUNKED,
    GET,
    OK,
    Wire,
    gauges,
    whole,
    wire,
)


async def failure(ours: Wire, answer: bytes, *, request: UpstreamRequest = CHAT) -> UpstreamError:
    """How a call ends whose answer is these bytes and then the connection's end."""
    call = ours.call(request)
    peer = await ours.peer()
    await peer.answer(answer)
    peer.close()
    with pytest.raises(UpstreamError) as caught:
        await whole(await call)
    return caught.value


async def test_head_and_body_in_one_segment_are_one_answer_that_never_suspends() -> None:
    async with wire() as ours:
        call = ours.call()
        await (await ours.peer()).answer(OK)
        answer = await call
        reading = answer.read()
        with pytest.raises(StopIteration) as returned:
            reading.send(None)
        assert returned.value.value == b"ok"


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(cuts=st.lists(st.integers(1, 400), max_size=12))
async def test_the_answer_does_not_depend_on_where_the_segments_break(cuts: list[int]) -> None:
    chunks = [b"data: %d\n\n" % number for number in range(20)]
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    wanted = b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + CHUNKED + body + b"0\r\nTrailer: x\r\n\r\n"
    borders = [0, *sorted(cut for cut in set(cuts) if cut < len(wanted)), len(wanted)]
    async with wire() as ours:
        call = ours.call()
        peer = await ours.peer()
        await peer.request()
        for start, stop in pairwise(borders):
            await peer.send(wanted[start:stop])
            await asyncio.sleep(0)
        answer = await call
        assert (answer.status, answer.content_type) == (200, "text/event-stream")
        assert answer.header(b"trailer") is None
        assert await whole(answer) == b"".join(chunks)
        assert gauges(ours) == (1, 1, 0, 0)


async def test_chunks_are_given_as_they_come() -> None:
    async with wire() as ours:
        call = ours.call()
        peer = await ours.peer()
        await peer.answer(CHUNKED)
        answer = await call
        for number in range(5):
            await peer.send(b"3\r\nn=%d\r\n" % number)
            assert await answer.read() == b"n=%d" % number
        await peer.send(b"0\r\n\r\n")
        assert await answer.read() == b""
        assert await answer.read() == b""


async def test_interim_answers_are_skipped() -> None:
    async with wire() as ours:
        call = ours.call()
        peer = await ours.peer()
        await peer.answer(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nX: y\r\n\r\n" + OK)
        answer = await call
        assert (answer.status, answer.header(b"x")) == (200, None)
        assert await whole(answer) == b"ok"


@pytest.mark.parametrize("status", [204, 304])
async def test_a_status_without_a_body_ends_with_its_head(status: int) -> None:
    async with wire() as ours:
        call = ours.call()
        peer = await ours.peer()
        await peer.answer(b"HTTP/1.1 %d Nothing\r\nContent-Length: 5\r\n\r\n" % status)
        assert await whole(await call) == b""
        assert gauges(ours) == (1, 1, 0, 0)


async def test_the_answer_to_head_has_no_body_and_its_connection_is_not_used_again() -> None:
    async with wire() as ours:
        call = ours.call(GET._replace(method="HEAD"))
        await (await ours.peer()).answer(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        assert await whole(await call) == b""
        assert gauges(ours) == (0, 0, 0, 0)


async def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    async with wire() as ours:
        call = ours.call()
        peer = await ours.peer()
        await peer.answer(b"HTTP/1.1 200 OK\r\n\r\nall there is")
        peer.close()
        assert await whole(await call) == b"all there is"
        assert gauges(ours) == (0, 0, 0, 0)


async def test_names_of_headers_mean_the_same_in_any_case() -> None:
    async with wire() as ours:
        call = ours.call()
        await (await ours.peer()).answer(
            b"HTTP/1.1 200 OK\r\nCONTENT-TYPE: Text/Event-Stream; charset=x\r\n"
            b"KEEP-ALIVE: timeout=1\r\nX-Twice: 1\r\nx-twice: 2\r\n"
            b"CONTENT-Encoding: identity\r\nCoNtEnT-LeNgTh: 0\r\n\r\n"
        )
        answer = await call
        assert answer.content_type == "Text/Event-Stream; charset=x"
        assert answer.is_event_stream
        assert answer.header(b"x-twice") == "2"
        assert answer.header(b"x-never") is None
        assert gauges(ours) == (0, 0, 0, 0), "it is kept no shorter than the vendor keeps it"


async def test_a_header_of_the_last_answer_is_not_one_of_this() -> None:
    async with wire() as ours:
        call = ours.call()
        peer = await ours.peer()
        await peer.answer(OK.replace(b"\r\n\r\n", b"\r\nRetry-After: 7\r\n\r\n"))
        assert (await call).header(b"retry-after") == "7"
        call = ours.call()
        await peer.answer(b"HTTP/1.1 103 Hints\r\nRetry-After: 9\r\n\r\n" + OK)
        assert (await call).header(b"retry-after") is None


async def test_what_is_left_of_an_answer_is_given_at_once_only_when_all_of_it_has_come() -> None:
    async with wire() as ours:
        call = ours.call()
        peer = await ours.peer()
        await peer.answer(CHUNKED + b"2\r\nok\r\n")
        answer = await call
        assert answer.rest() is None
        assert await answer.read() == b"ok"
        assert not answer.is_over
        await peer.send(b"3\r\nend\r\n0\r\n\r\n")
        while (rest := answer.rest()) is None:
            assert not answer.is_over
            await asyncio.sleep(0)
        assert rest == b"end"
        assert answer.is_over
        assert await answer.read() == b""


async def test_what_must_be_decoded_is_never_given_as_it_stands() -> None:
    packed = gzip.compress(b"ok")
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
    async with wire() as ours:
        call = ours.call()
        await (await ours.peer()).answer(head + packed)
        answer = await call
        assert answer.rest() is None
        assert await whole(answer) == b"ok"


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 2OO OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nokk",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nxx",
        CHUNKED.replace(b"Content-Type: ", b"TRANSFER-ENCODING: gzip\r\nX: ") + b"0\r\n\r\n",
        CHUNKED.replace(b"200 OK\r\n", b"200 OK\r\nTransfer-Encoding: gzip\r\n") + b"0\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 70_000 + b"\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 129 + b"Content-Length: 2\r\n\r\nok",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 4_000,
    ],
)
async def test_a_head_that_is_not_plain_http_is_garbled(answer: bytes) -> None:
    async with wire() as ours:
        error = await failure(ours, answer)
        assert isinstance(error, UpstreamGarbled)
        assert (error.phase, error.sent, error.answered) == ("head", True, True)
        assert gauges(ours) == (0, 0, 0, 0)


async def test_a_chunk_that_is_no_chunk_garbles_the_body_after_what_was_good() -> None:
    async with wire() as ours:
        call = ours.call()
        peer = await ours.peer()
        await peer.answer(CHUNKED + b"2\r\nok\r\nzz\r\n")
        answer = await call
        assert await answer.read() == b"ok"
        with pytest.raises(UpstreamGarbled) as caught:
            await answer.read()
        assert caught.value.phase == "body"


async def test_a_body_cut_short_gives_what_came_and_then_the_cut() -> None:
    async with wire() as ours:
        call = ours.call()
        peer = await ours.peer()
        await peer.answer(CHUNKED + b"2\r\nok\r\n")
        peer.close()
        answer = await call
        assert await answer.read() == b"ok"
        with pytest.raises(UpstreamCut) as caught:
            await answer.read()
        assert (caught.value.phase, caught.value.sent, caught.value.timeout) == (
            "body",
            True,
            False,
        )
        assert gauges(ours) == (0, 0, 0, 0)


async def test_a_reset_in_the_body_is_a_cut_even_where_the_connections_end_would_do() -> None:
    async with wire() as ours:
        call = ours.call()
        peer = await ours.peer()
        await peer.answer(b"HTTP/1.1 200 OK\r\n\r\npart")
        answer = await call
        assert await answer.read() == b"part"
        reading = ours.start(answer.read())
        peer.writer.get_extra_info("socket").setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER 0
        peer.reset()
        with pytest.raises(UpstreamCut):
            await reading


async def test_a_close_before_the_head_tells_that_nothing_came() -> None:
    async with wire() as ours:
        error = await failure(ours, b"")
        assert isinstance(error, UpstreamCut)
        facts = (error.phase, error.sent, error.reused, error.answered)
        assert facts == ("head", True, False, False)


async def test_a_vendor_is_read_no_faster_than_the_answer_is() -> None:
    async with wire() as ours:
        call = ours.call()
        peer = await ours.peer()
        await peer.request()
        total = 64 * 1024 * 1024
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        piece = bytes(1024 * 1024)
        written = 0

        async def pour() -> None:
            nonlocal written
            while written < total:
                peer.writer.write(piece)
                await peer.writer.drain()
                written += len(piece)

        pouring = ours.start(pour())
        answer = await call
        before = -1
        while written != before:  # until everything between the two ends is full
            before = written
            await asyncio.sleep(0.1)
        assert written < total // 2
        first = await answer.read()
        assert len(first) <= 768 * 1024
        assert len(first) + len(await whole(answer)) == total
        await pouring
