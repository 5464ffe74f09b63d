"""Other servers are asked, but never one inside our network that somebody else names."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from gateway import outward
from gateway.outward import BODY_BYTES_MAX, Declined, NoAnswer, is_public, origin_of


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0"),  # noqa: S104 - nothing listens
        *("100.64.0.1", "224.0.0.1", "255.255.255.255", "192.0.2.1"),
        *("::1", "::", "fe80::1", "fe80::1%eth0", "fd00::1", "ff02::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "host", ""),
    ],
)
def test_addresses_of_our_own_networks_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1111", "64:ff9b::101:101"])
def test_others_are(address: str) -> None:
    assert is_public(address)


@asynccontextmanager
async def answering() -> AsyncIterator[str]:
    """A server of our own: its URL."""

    async def said(_: web.Request) -> web.Response:
        return web.json_response({"is": "said"})

    async def moved(_: web.Request) -> web.Response:
        raise web.HTTPFound("/said")

    async def endless(_: web.Request) -> web.Response:
        return web.Response(body=b"1" * (BODY_BYTES_MAX + 1))

    async def no_json(_: web.Request) -> web.Response:
        return web.Response(text="<html>")

    application = web.Application()
    for handler in (said, moved, endless, no_json):
        application.router.add_get(f"/{handler.__name__}", handler)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_what_the_operator_named_is_asked_wherever_it_is() -> None:
    async with answering() as url, outward.opened() as asking:
        assert await asking.get(f"{url}/said", known=origin_of(url)) == {"is": "said"}


@pytest.mark.parametrize("path", ["moved", "endless", "no_json", "nothing"])
async def test_an_answer_of_another_kind_is_none(path: str) -> None:
    async with answering() as url, outward.opened() as asking:
        with pytest.raises(NoAnswer):
            await asking.get(f"{url}/{path}", known=origin_of(url))
        with pytest.raises(Declined, match="404"):
            await asking.get(f"{url}/unknown", known=origin_of(url))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]"])
async def test_what_anybody_else_names_is_asked_in_public_only(host: str) -> None:
    named = origin_of("https://issuer.example")
    async with answering() as url, outward.opened() as asking:
        port = origin_of(url).port
        with pytest.raises(NoAnswer, match="is no public address"):
            await asking.get(f"https://{host}:{port}/said", known=named)
        with pytest.raises(NoAnswer, match="without TLS"):
            await asking.get(f"http://{host}:{port}/said", known=named)


@pytest.mark.parametrize("url", ["ftp://a.example", "nothing", "https://a.example:x", "file:///x"])
async def test_what_is_no_url_is_not_asked(url: str) -> None:
    async with outward.opened() as asking:
        with pytest.raises(NoAnswer, match="no URL"):
            await asking.get(url, known=origin_of("https://issuer.example"))
