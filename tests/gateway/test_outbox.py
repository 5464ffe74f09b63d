"""The writes of a turn leave together, in order, and none is lost to another's trouble."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway.outbox import BYTES_MAX, Outbox


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[asyncio.Transport, socket.socket]]:
    """A transport, and the socket at its other end."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
    try:
        yield transport, theirs
    finally:
        transport.abort()
        theirs.close()


async def outbox() -> Outbox:
    """An outbox whose last turn had several writes."""
    box = Outbox(asyncio.get_running_loop())
    async with connected() as (transport, theirs):
        box.put(transport, b"a")
        box.put(transport, b"b")
        while await received(theirs) != b"b":
            pass
    return box


async def received(sock: socket.socket) -> bytes:
    async with asyncio.timeout(5):
        return await asyncio.get_running_loop().sock_recv(sock, 1024)


async def test_nothing_leaves_before_all_that_is_ready_had_its_turn() -> None:
    box = await outbox()
    async with connected() as (transport, theirs):
        box.put(transport, b"one ")

        with pytest.raises(BlockingIOError):
            theirs.recv(1024)
        box.put(transport, b"two")
        assert await received(theirs) == b"one two"


async def test_a_write_leaves_at_once_where_the_turn_before_had_no_other() -> None:
    box = Outbox(asyncio.get_running_loop())
    async with connected() as (transport, theirs):
        for _ in range(3):
            box.put(transport, b"alone")
            assert theirs.recv(1024) == b"alone"
            await asyncio.sleep(0)  # the turn ends


async def test_what_follows_the_first_write_of_a_turn_leaves_after_it() -> None:
    box = Outbox(asyncio.get_running_loop())
    async with connected() as (transport, theirs):
        box.put(transport, b"one")
        box.put(transport, b"two")

        assert theirs.recv(1024) == b"one"
        assert await received(theirs) == b"two"


async def test_what_waits_can_be_written_at_once_and_is_written_once() -> None:
    box = await outbox()
    async with connected() as (transport, theirs):
        box.put(transport, b"last words")
        box.flush()
        transport.close()

        assert await received(theirs) == b"last words"
        assert await received(theirs) == b""


async def test_a_closed_connection_keeps_nothing_from_the_others() -> None:
    box = await outbox()
    async with connected() as (closed, _), connected() as (transport, theirs):
        box.put(closed, b"nobody is there")
        box.put(transport, b"somebody is")
        closed.abort()

        assert await received(theirs) == b"somebody is"


async def test_a_connection_that_refuses_is_cut_and_the_others_are_served(
    caplog: pytest.LogCaptureFixture,
) -> None:
    box = await outbox()
    async with connected() as (broken, its_end), connected() as (transport, theirs):
        broken.write_eof()
        assert await received(its_end) == b""
        box.put(broken, b"too late")
        box.put(transport, b"in time")

        assert await received(theirs) == b"in time"
        assert broken.is_closing()
    assert "cannot be written to" in caplog.text


async def test_who_writes_without_pause_sees_that_nobody_reads() -> None:
    box = await outbox()
    async with connected() as (transport, _):
        for _ in range(100):
            box.put(transport, bytes(BYTES_MAX // 4))

        assert transport.get_write_buffer_size() > BYTES_MAX
