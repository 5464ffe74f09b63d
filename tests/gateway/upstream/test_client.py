"""The client as a whole: what was sent when it failed, and its end."""

import asyncio

import pytest

from gateway.upstream import (
    UpstreamCut,
    UpstreamError,
    UpstreamUnreachable,
)
from tests.gateway.upstream.wire import (
    CHAT,
    CHUNKED,
    PATIENT,
    Wire,
    gauges,
    wire,
)


async def test_on_sent_is_called_once_something_was_sent_and_not_before() -> None:
    sent: list[int] = []
    async with wire() as ours:
        call = ours.call(on_sent=lambda: sent.append(1))
        await (await ours.peer()).answer()
        await call
        assert sent == [1]
    async with wire() as ours:
        await nobody_listens(ours)
        with pytest.raises(UpstreamUnreachable):
            await ours.call(on_sent=lambda: sent.append(2))
    assert sent == [1]


async def nobody_listens(ours: Wire) -> None:
    """Point the target to a port where nobody listens."""
    server = await asyncio.start_server(lambda _, __: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    ours.target = type(ours.target)(
        provider="vendor",
        model="m",
        scheme="http",
        host="127.0.0.1",
        port=port,
        path="/v1",
        api_key=ours.target.api_key,
    )


async def test_a_refused_connection_and_an_unknown_name_were_never_sent() -> None:
    async with wire() as ours:
        await nobody_listens(ours)
        with pytest.raises(UpstreamUnreachable) as caught:
            await ours.call()
        assert (caught.value.phase, caught.value.sent) == ("connect", False)
        assert gauges(ours) == (0, 0, 0, 0)


async def test_closing_ends_answers_under_way_as_cut_and_refuses_new_calls() -> None:
    async with wire() as ours:
        call = ours.call()
        peer = await ours.peer()
        await peer.answer(CHUNKED)
        answer = await call
        reading = ours.start(answer.read())
        await asyncio.sleep(0)
        await ours.upstream.close()
        with pytest.raises(UpstreamCut):
            await reading
        with pytest.raises(UpstreamError) as caught:
            await ours.upstream.send(CHAT, ours.target, deadlines=PATIENT)
        assert not caught.value.sent
        assert await peer.is_closed()
