"""The box between a connection and its answer."""

import asyncio

import pytest

from gateway.upstream.inbox import Inbox


def inbox(*head: tuple[bytes, bytes]) -> Inbox:
    """One whose head has come."""
    ours = Inbox(is_bodyless=False)
    ours.status, ours.head, ours.named = 200, list(head), dict(head)
    return ours


def test_what_is_taken_is_everything_once() -> None:
    ours = inbox()
    ours.chunks, ours.size = [b"a", b"b"], 2
    assert (ours.take(), ours.take(), ours.size) == (b"ab", b"", 0)


def test_a_lone_chunk_is_given_as_it_is() -> None:
    chunk = bytes(1000)
    ours = inbox()
    ours.chunks = [chunk]
    assert ours.take() is chunk


@pytest.mark.parametrize(
    ("head", "ends"),
    [
        ([], True),
        ([(b"content-type", b"text/plain")], True),
        ([(b"content-length", b"3")], False),
        ([(b"transfer-encoding", b"chunked")], False),
    ],
)
def test_only_an_answer_without_framing_ends_with_its_connection(
    head: list[tuple[bytes, bytes]], *, ends: bool
) -> None:
    assert inbox(*head).ends_with_connection is ends


def test_an_answer_without_a_head_does_not_end_with_its_connection() -> None:
    assert not Inbox(is_bodyless=False).ends_with_connection


async def test_waking_twice_or_nobody_is_harmless() -> None:
    ours = inbox()
    ours.wake()
    ours.waiter = asyncio.get_running_loop().create_future()
    ours.wake()
    ours.wake()
    await ours.waiter
