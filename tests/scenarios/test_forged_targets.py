"""Nothing that a client or a vendor says decides whom the gateway connects to.

The judge is a listener on this machine that the gateway has no business with: it must never be
connected to, whatever form its address is given in, wherever that stands.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway.config import ConfigErrors, load
from tests.scenarios.caller import CHAT, RESPONSES, asks, caller, post, request
from tests.scenarios.deployment import Deployment, Key
from tests.vendor import Vendor

pytestmark = pytest.mark.scenario

AT_ONCE = 16
_HOSTS = (
    *("127.0.0.1", "localhost", "127.1", "0", "0.0.0.0", "2130706433", "0x7f000001"),  # noqa: S104 - whom to call, not where to listen
    *("0x7f.1", "0177.0.0.1", "017700000001", "127.0.0.1.", "LOCALHOST.", "127.000.000.001"),
    *("[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:127.0.0.1]"),
    *("[64:ff9b::7f00:1]", "[::127.0.0.1]", "[fe80::1%25lo]", "169.254.169.254", "[fd00:ec2::254]"),
    *("\u2460\u2461\u2466.\u24ea.\u24ea.\u2460", "127\u30020\u30020\u30021", "loc%61lhost"),
)
_WRAPPINGS = (
    *("http://{0}:{1}/", "https://{0}:{1}/v1", "http://api.openai.com@{0}:{1}/"),
    *("http://{0}:{1}#@api.openai.com/", "//{0}:{1}/", "http:\\\\{0}:{1}\\"),
)
_ODD = (
    *("http://api.openai.com\\@127.0.0.1:{1}/", "http://127.0.0.1:{1}\\@api.openai.com/"),
    *("http://127.0.0.1\t:{1}/", "http://127.0.0.1:{1}?@api.openai.com/", "http:127.0.0.1:{1}/"),
    *("http:///127.0.0.1:{1}/", "http://a:b@127.0.0.1:{1}/", "gopher://127.0.0.1:{1}/_GET"),
    *("file:///etc/passwd", "dict://127.0.0.1:{1}/", "http://127.0.0.1:{1}%2f@api.openai.com/"),
    *(
        "http://127.0.0.1%00.api.openai.com:{1}/",
        "http://127.0.0.1:{1}\r\nHost: x/",
        "http://[::1/",
    ),
)
_HEADERS = ("Location", "X-Base-Url", "X-Forwarded-Host", "X-Portkey-Custom-Host", "X-Upstream-Url")


def urls(port: int) -> list[str]:
    """The listener's address in many forms."""
    forms = [wrapping.format(host, port) for host in _HOSTS for wrapping in _WRAPPINGS]
    return [*forms, *(odd.format("", port) for odd in _ODD)]


class Listener:
    """Who must not be connected to."""

    def __init__(self) -> None:
        self.port, self.connections = 0, 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Listener"]:
        """On every address of this machine."""
        everywhere = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        self.port = everywhere.getsockname()[1]
        async with await asyncio.start_server(self._serve, sock=everywhere):
            yield self

    async def _serve(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.close()


async def tell_as_client(tollgate: Deployment, key: Key, url: str) -> None:
    """Give the address wherever a client may hope that it is used."""
    image: list[Any] = [{"type": "image_url", "image_url": {"url": url}}]
    extras = {"base_url": url, "api_base": url, "provider": {"base_url": url}, "webhook_url": url}
    calls: list[tuple[str, dict[str, Any]]] = [
        (CHAT, asks(CHAT, "gpt-4o-mini", max_tokens=5, **extras)),
        (CHAT, {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": image}]}),
        (CHAT, asks(CHAT, url)),
        (CHAT, asks(CHAT, f"vendor/{url}")),
        (RESPONSES, asks(RESPONSES, "gpt-4o-mini", max_output_tokens=5, background=False)),
    ]
    for path, body in calls:
        await post(tollgate, key, path, body)
    plain = url.isascii() and url.isprintable()
    headers = dict.fromkeys(_HEADERS, url) if plain else {}
    async with caller(tollgate) as line:
        await line.send(request(CHAT, key.secret, asks(CHAT, "gpt-4o-mini"), headers=headers))
        await line.answer()


async def tell_as_vendor(
    tollgate: Deployment, key: Key, vendor: Vendor, name: str, url: str
) -> None:
    """Send the caller elsewhere, with every status that can."""
    for status in (301, 302, 303, 307, 308):
        plain = url.isascii() and url.isprintable()
        headers = {"location": url if plain else "http://localhost/", "refresh": "0"}
        model = await vendor.script(f"{name}x{status}", status=status, headers=headers)
        answer = await post(tollgate, key, CHAT, asks(CHAT, model, max_tokens=5))
        assert answer.status == 502


async def test_no_address_in_a_call_or_an_answer_is_ever_connected_to(
    tollgate: Deployment, vendor_apart: Vendor
) -> None:
    key = await tollgate.new_key(credit_usd="100000")
    turn = asyncio.Semaphore(AT_ONCE)
    async with Listener().listening() as listener:
        forms = urls(listener.port)

        async def one(number: int, url: str) -> None:
            async with turn:
                await tell_as_client(tollgate, key, url)
                if number % 10 == 0:
                    await tell_as_vendor(tollgate, key, vendor_apart, f"t23x{number}", url)

        async with asyncio.TaskGroup() as group:
            for number, url in enumerate(forms):
                group.create_task(one(number, url))
        assert listener.connections == 0
        # The judge judges: it counts whoever does connect.
        _, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.close()
        async with asyncio.timeout(5):
            while not listener.connections:
                await asyncio.sleep(0.01)
    print(
        f"T23: {len(forms)} forms of an address in {len(_HEADERS)} headers, 6 fields, model names"
        " and redirects: 0 connections"
    )


def test_a_providers_url_names_one_host_in_plain_letters_or_is_refused(
    tollgate: Deployment,
) -> None:
    path = tollgate.folder / "forged.yaml"
    refused = 0
    forms = urls(8_000)
    for url in forms:
        path.touch(mode=0o600)
        path.write_text(
            f"providers: {{own: {{kind: custom, allow_http: true, base_url: {url!r}}}}}"
        )
        try:
            found = load(path, {}).providers["own"].base_url
        except ConfigErrors:
            refused += 1
        else:
            assert f"//{found.host}" in url.lower() or f"//[{found.host}]" in url.lower()
            assert f":{found.port}" in url
            assert "api.openai.com" not in url
    assert 0 < refused < len(forms)
    print(
        f"T23: {refused} of {len(forms)} refused as a provider's URL, the others are as they read"
    )
