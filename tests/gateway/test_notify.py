"""Nobody outside sends us to addresses inside, by whatever name; and nothing follows a redirect."""

import socket
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from gateway.notify import Notifier, Unanswered, flaw_of
from gateway.outward import is_public

INSIDE = [
    "0.0.0.0",  # noqa: S104 - nothing is bound to it
    *("127.0.0.1", "127.255.255.254", "10.0.0.1", "172.16.0.1", "172.31.255.255"),
    *("192.168.0.1", "169.254.169.254", "100.64.0.1", "100.100.100.200", "192.0.0.192"),
    *("198.18.0.1", "203.0.113.7", "224.0.0.1", "224.0.1.1", "239.255.255.250", "240.0.0.1"),
    *("255.255.255.255", "168.63.129.16", "::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254"),
    *("ff02::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1"),
    *("64:ff9b::7f00:1", "64:ff9b:1::a00:1", "2002:7f00:1::", "2001:0:7f00:1::"),
]
OUTSIDE = ["1.1.1.1", "8.8.8.8", "93.184.215.14", "2606:4700:4700::1111", "::ffff:1.1.1.1"]
URLS = [
    *(f"https://{f'[{one}]' if ':' in one else one}/hook" for one in INSIDE),
    *("https://127.1/", "https://2130706433/", "https://0x7f000001/", "https://0177.0.0.1/"),
    *("https://0x7f.1/", "https://127.0.0.1:8081/api/v1", "https://[::ffff:7f00:1]/"),
    *("http://example.com/", "ftp://example.com/", "file:///etc/passwd", "gopher://127.0.0.1/"),
    *("//example.com/", "example.com", "", "https://", "https:///x", "https://user:a@example.com/"),
    *("https://user@example.com/", "https://exa\nmple.com/", "https://[::1", "https://a:99999/"),
    "https://example.com/" + "a" * 2_000,
]


@pytest.mark.parametrize("address", INSIDE)
def test_an_address_that_is_not_the_internets_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", OUTSIDE)
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("url", URLS)
async def test_a_url_that_leads_inside_or_nowhere_is_refused_before_anything_is_sent(
    url: str,
) -> None:
    assert flaw_of(url, allows_private=False)
    with pytest.raises(Unanswered):
        await Notifier(allows_private=False).post(url, b"{}", {})


def test_what_leads_outside_is_not_refused() -> None:
    for host in ("example.com", "example.com:8443", "1.1.1.1", "[2606:4700:4700::1111]"):
        assert flaw_of(f"https://{host}/hook?a=b#c", allows_private=False) == ""


class Inside:
    """A server on loopback: it counts who comes."""

    def __init__(self) -> None:
        self.asked: list[web.Request] = []
        self.bodies: list[bytes] = []
        self.status, self.headers = 200, dict[str, str]()
        self.port = 0

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request)
        self.bodies.append(await request.read())
        return web.Response(status=self.status, headers=self.headers, text="x" * 100_000)


@pytest.fixture
async def inside() -> AsyncIterator[Inside]:
    server = Inside()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.port = runner.addresses[0][1]
    yield server
    await runner.cleanup()


async def test_a_name_that_leads_inside_is_refused(inside: Inside) -> None:
    with pytest.raises(Unanswered, match="not public"):
        await Notifier(allows_private=False).post(f"https://localhost:{inside.port}/", b"{}", {})
    assert not inside.asked


async def test_where_private_addresses_are_allowed_a_status_is_answered(inside: Inside) -> None:
    notifier, url = Notifier(allows_private=True), f"http://localhost:{inside.port}/a?b=c"
    inside.status = 202
    assert await notifier.post(url, b"{}", {"X-One": "1"}) == 202
    (request,) = inside.asked
    assert (request.method, request.path_qs, request.headers["X-One"]) == ("POST", "/a?b=c", "1")
    assert inside.bodies == [b"{}"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(inside: Inside, status: int) -> None:
    inside.status, inside.headers = status, {"Location": f"http://127.0.0.1:{inside.port}/other"}
    url = f"http://127.0.0.1:{inside.port}/"
    assert await Notifier(allows_private=True).post(url, b"{}", {}) == status
    assert len(inside.asked) == 1


async def test_failures_are_told_in_words_that_name_no_address(inside: Inside) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        cases = {
            f"http://127.0.0.1:{port}/": "it cannot be connected to",
            f"https://127.0.0.1:{inside.port}/": "its certificate is not accepted",
            "http://no-such-name.invalid/": "its name cannot be resolved",
        }
        for url, reason in cases.items():
            with pytest.raises(Unanswered) as told:
                await Notifier(allows_private=True).post(url, b"{}", {})
            assert str(told.value) == reason
