"""Clients that are slow on purpose: they are cut in time, and nobody beside them waits for them.

Slow heads, slow bodies and slow readers, so many of each, come back as soon as they are cut.
`LONG=1` has a thousand of each, and waits until the readers are cut as well, which takes a minute.
"""

import asyncio
import socket
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.scenarios.caller import CHAT, asks, request
from tests.scenarios.deployment import Deployment, Key
from tests.scenarios.measured import p99_s, rss_mib, until_calm
from tests.scenarios.scale import LONG
from tests.vendor import Vendor

pytestmark = pytest.mark.scenario

OF_EACH = 1_000 if LONG else 100
PAIRS = 5
DRIP_S = 4.0
CUT_S_MAX = 15.0  # the promise: head and grace 10 s, and what refusing takes
READER_CUT_S_MAX = 75.0  # it has 60 s to take 64 KiB
RSS_MIB_MAX = 200
_ESTABLISHED = "01"  # as /proc/net/tcp has it


class Siege:
    """The slow clients, and how long each was let."""

    def __init__(self, port: int, key: Key, stream: str) -> None:
        self._port = port
        ask = asks(CHAT, "vendor/m", max_tokens=5)
        whole = request(CHAT, key.secret, ask)
        large = request(CHAT, key.secret, b"x" * 1_000_000)
        read = request(CHAT, key.secret, asks(CHAT, stream, stream=True, max_tokens=500))
        self._kinds = {
            "head": (whole[:30], b"X"),
            "body": (large[: large.index(b"\r\n\r\n") + 5], b"x"),
            "reader": (read, b""),  # it drips by reading
        }
        self.cut_s: dict[str, list[float]] = {kind: [] for kind in self._kinds}
        self.made = Counter[str]()
        self._served: set[int] = set()  # the clients' ports

    @asynccontextmanager
    async def laid(self, of_each: int) -> AsyncIterator[None]:
        """So many of each kind, there until the end."""
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._client(kind, number / of_each), name=f"slow {kind}")
                for kind in self._kinds
                for number in range(of_each)
            ]
            tasks.append(group.create_task(self._look(), name="look"))
            async with asyncio.timeout(60):
                while sum(self.made.values()) < of_each * len(self._kinds):
                    await asyncio.sleep(0.05)
            yield
            for task in tasks:
                task.cancel()

    async def _client(self, kind: str, share: float) -> None:
        await asyncio.sleep(share)
        while True:
            began_s = time.monotonic()
            try:
                await self._once(kind)
            except OSError:
                self.cut_s[kind].append(time.monotonic() - began_s)

    async def _once(self, kind: str) -> None:
        """Until it is cut, which is an `OSError`."""
        first, drip = self._kinds[kind]
        with socket.create_connection(("127.0.0.1", self._port)) as sock:
            self.made[kind] += 1
            if kind == "reader":
                # Or the system would take the answer in its stead.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
                await self._read_slowly(sock, first)
            reader, writer = await asyncio.open_connection(sock=sock)
            try:
                writer.write(first)
                while not await self._is_told(reader):
                    writer.write(drip)
                raise ConnectionResetError
            finally:
                writer.transport.abort()

    async def _read_slowly(self, sock: socket.socket, first: bytes) -> None:
        loop = asyncio.get_running_loop()
        sock.setblocking(False)
        await loop.sock_sendall(sock, first)
        port = sock.getsockname()[1]
        while await loop.sock_recv(sock, 100):
            await asyncio.sleep(DRIP_S)
            if port not in self._served:
                break  # what came before could be read for minutes yet
        raise ConnectionResetError

    async def _look(self) -> None:
        """Whom the other side still serves."""
        local = f":{self._port:04X}"
        while True:
            rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines())
            ours = [row[2] for row in rows if row[1].endswith(local) and row[3] == _ESTABLISHED]
            self._served = {int(address.rpartition(":")[2], 16) for address in ours}
            await asyncio.sleep(1.0)

    async def _is_told(self, reader: asyncio.StreamReader) -> bool:
        try:
            async with asyncio.timeout(DRIP_S):
                await reader.read(100)
        except TimeoutError:
            return False
        return True


@pytest.mark.timeout(400)
async def test_slow_clients_are_cut_in_time_and_slow_nobody_down(
    folder: Path, vendor_apart: Vendor
) -> None:
    limits = {"connections_per_address_max": 10_000}
    async with Deployment.started(
        folder,
        vendor_port=vendor_apart.port,
        changes={"limits": limits, "providers": {"vendor": {"connections_max": 10_000}}},
    ) as tollgate:
        key, theirs = await tollgate.new_key(), await tollgate.new_key(credit_usd="1000")
        stream = await vendor_apart.script("slow", text="x" * 4_000, output_tokens=100)
        siege = Siege(tollgate.ports["data"], theirs, f"vendor/{stream}")
        await p99_s(tollgate, key)
        pids = tollgate.pids("worker")
        before_mib = rss_mib(pids)
        alone, beside, most_mib = [], [], 0.0
        for _ in range(PAIRS):
            await until_calm(pids)
            alone.append(await p99_s(tollgate, key))
            siege.made.clear()
            async with siege.laid(OF_EACH):
                await until_calm(pids)
                beside.append(await p99_s(tollgate, key))
                most_mib = max(most_mib, rss_mib(pids))
        siege.made.clear()
        async with siege.laid(OF_EACH):
            await asyncio.sleep((READER_CUT_S_MAX if LONG else CUT_S_MAX) + DRIP_S)
        assert tollgate.pids("worker") == pids
    ratios = [b / a for a, b in zip(alone, beside, strict=True)]
    more_ms = statistics.median(1000 * (b - a) for a, b in zip(alone, beside, strict=True))
    promised_s = {"head": CUT_S_MAX, "body": CUT_S_MAX, "reader": READER_CUT_S_MAX}
    cut = {kind: siege.cut_s[kind] for kind in promised_s if LONG or kind != "reader"}
    assert min(len(each) for each in cut.values()) >= OF_EACH
    longest = {kind: max(each) for kind, each in cut.items()}
    assert all(longest[kind] < promised_s[kind] + DRIP_S for kind in cut)
    assert most_mib - before_mib < RSS_MIB_MAX
    assert statistics.median(ratios) <= 1.2 or more_ms <= 1.0
    print(
        f"T15: 3 x {OF_EACH} slow clients: healthy p99 x {statistics.median(ratios):.2f},"
        f" {more_ms:+.2f} ms (median of {PAIRS} pairs; alone {1000 * statistics.median(alone):.1f}"
        f" ms); longest lived: {', '.join(f'{kind} {s:.1f} s' for kind, s in longest.items())};"
        f" memory {most_mib - before_mib:+.0f} MiB"
    )
