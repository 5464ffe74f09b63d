"""What of a request reaches the vendor."""

import pytest

from gateway.upstream import (
    UpstreamRefused,
)
from tests.gateway.upstream.wire import CHAT, GET, OK, wire


async def test_the_request_is_written_whole_with_our_framing_and_asks_for_no_compression() -> None:
    async with wire() as ours:
        call = ours.call()
        peer = await ours.peer()
        head, body = await peer.request()
        await peer.send(OK)
        await call
    assert head.decode().split("\r\n") == [
        "POST /v1/chat/completions HTTP/1.1",
        f"Host: 127.0.0.1:{ours.target.port}",
        "Authorization: Bearer sk-vendor",
        "Content-Type: application/json",
        "x-tollgate-hop: 1",
        "Accept-Encoding: identity",
        "Connection: keep-alive",
        "Content-Length: 13",
        "",
        "",
    ]
    assert body == b'{"model":"m"}'


async def test_a_get_says_nothing_about_a_body() -> None:
    async with wire() as ours:
        call = ours.call(GET)
        peer = await ours.peer()
        head, _ = await peer.request()
        await peer.send(OK)
        await call
    assert b"content-length" not in head.lower()


@pytest.mark.parametrize(
    "header",
    [
        ("X-A", "one\r\nX-B: two"),
        ("X-A", "one\ntwo"),
        ("X-A", "one\rtwo"),
        ("X-A", "nul\0"),
        ("X-A", "snow \u2603"),
        ("X A", "space"),
        ("X-A:", "colon"),
        ("", "empty"),
        ("Host", "elsewhere"),
        ("content-length", "3"),
        ("Transfer-Encoding", "chunked"),
        ("Connection", "close"),
        ("Upgrade", "websocket"),
    ],
)
async def test_a_header_that_could_change_the_request_is_refused_before_anything_is_sent(
    header: tuple[str, str],
) -> None:
    async with wire() as ours:
        with pytest.raises(UpstreamRefused) as caught:
            await ours.call(CHAT._replace(headers=(header,)))
        assert not caught.value.sent
        assert not ours.upstream.pools
        assert header[1] not in str(caught.value)


@pytest.mark.parametrize("path", ["/a b", "/a\r\nX: y", "v1", "/\u00e9", "/a\0"])
async def test_a_path_that_could_change_the_request_is_refused(path: str) -> None:
    async with wire() as ours:
        with pytest.raises(UpstreamRefused):
            await ours.call(CHAT._replace(path=path))
