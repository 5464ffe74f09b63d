"""Clients that are slow on purpose, in a process of their own: their own work is not ours.

python -m tests.scenarios.siege PORT KEY MODEL OF_EACH

Slow heads, slow bodies and slow readers of MODEL's answer; who is cut comes back at once. A line is
printed when all are there; when the input ends, what became of them, as JSON:
{"cut": {"body": [10.02]}, "open": {"body": [3.1]}, "told": {"body": ["408"]}}.
"""

import asyncio
import json
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import PIPE
from typing import NamedTuple

from tests.scenarios.caller import CHAT, asks, request

KINDS = ("head", "body", "reader")
DRIP_S = 4.0
SPREAD_S = 10.0  # as long as the first of them are let: afterwards they come and go all the time
_ESTABLISHED = "01"  # as /proc/net/tcp has it
_ROOT = Path(__file__).parents[2]


class Let(NamedTuple):
    """How long slow clients of each kind were let, seconds, and what they were told."""

    cut: dict[str, list[float]]
    open: dict[str, list[float]]  # those that were connected yet when it ended: their age then
    told: dict[str, list[str]]  # every status that one of them got; "" is a close without a word


def nobody() -> Let:
    """Of each kind none yet."""
    return Let(
        cut={kind: [] for kind in KINDS},
        open={kind: [] for kind in KINDS},
        told={kind: [] for kind in KINDS},
    )


class Siege:
    """The slow clients, and how long each was let."""

    def __init__(self, port: int, secret: str, model: str) -> None:
        self._port = port
        whole = request(CHAT, secret, asks(CHAT, model, max_tokens=5))
        large = request(CHAT, secret, b"x" * 1_000_000)
        read = request(CHAT, secret, asks(CHAT, model, stream=True, max_tokens=500))
        self._kinds = {
            "head": (whole[: whole.index(b"\r\n") + 2] + b"X-Slow: ", b"x"),
            "body": (large[: large.index(b"\r\n\r\n") + 5], b"x"),
            "reader": (read, b""),  # it drips by reading
        }
        self.let = nobody()
        self._made = Counter[str]()
        self._served: set[int] = set()  # the clients' ports

    async def lay(self, group: asyncio.TaskGroup, of_each: int) -> list[asyncio.Task[None]]:
        """So many of each kind, there once this returns; cancel them all to end it."""
        tasks = [
            group.create_task(self._client(kind, SPREAD_S * number / of_each), name=f"slow {kind}")
            for kind in KINDS
            for number in range(of_each)
        ]
        tasks.append(group.create_task(self._look(), name="look"))
        async with asyncio.timeout(60):
            while sum(self._made.values()) < of_each * len(KINDS):
                await asyncio.sleep(0.05)
        return tasks

    async def _client(self, kind: str, after_s: float) -> None:
        await asyncio.sleep(after_s)
        while True:
            began_s = time.monotonic()
            try:
                await self._once(kind)
            except OSError:
                self.let.cut[kind].append(time.monotonic() - began_s)
            except asyncio.CancelledError:
                self.let.open[kind].append(time.monotonic() - began_s)
                raise

    async def _once(self, kind: str) -> None:
        """Until it is cut, which is an `OSError`."""
        first, drip = self._kinds[kind]
        with socket.create_connection(("127.0.0.1", self._port)) as sock:
            self._made[kind] += 1
            if kind == "reader":
                # Or the system would take the answer in its stead.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
                await self._read_slowly(sock, first)
            reader, writer = await asyncio.open_connection(sock=sock)
            try:
                writer.write(first)
                while (said := await self._said(reader)) is None:
                    writer.write(drip)
                self._note(kind, said)
                raise ConnectionResetError
            finally:
                writer.transport.abort()

    async def _read_slowly(self, sock: socket.socket, first: bytes) -> None:
        loop = asyncio.get_running_loop()
        sock.setblocking(False)
        await loop.sock_sendall(sock, first)
        port = sock.getsockname()[1]
        self._note("reader", await loop.sock_recv(sock, 100))
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

    async def _said(self, reader: asyncio.StreamReader) -> bytes | None:
        try:
            async with asyncio.timeout(DRIP_S):
                return await reader.read(100)
        except TimeoutError:
            return None

    def _note(self, kind: str, said: bytes) -> None:
        status = said[9:12].decode()  # after "HTTP/1.1 "
        if status not in self.let.told[kind]:
            self.let.told[kind].append(status)


@asynccontextmanager
async def besieged(port: int, secret: str, model: str, *, of_each: int) -> AsyncIterator[Let]:
    """So many of each kind meanwhile; how long each was let is there after the block."""
    command = (sys.executable, "-m", "tests.scenarios.siege", str(port), secret, model)
    siege = await asyncio.create_subprocess_exec(
        *command, str(of_each), cwd=_ROOT, stdin=PIPE, stdout=PIPE
    )
    let = nobody()
    assert siege.stdout is not None
    try:
        assert await siege.stdout.readline(), "the slow clients could not connect"
        yield let
        told, _ = await siege.communicate(b"")  # and end its input
        said = json.loads(told)
        for name, found in let._asdict().items():
            found.update(said[name])
    finally:
        if siege.returncode is None:
            siege.kill()
            await siege.wait()


async def main(port: int, secret: str, model: str, of_each: int) -> None:
    """Lay siege until the input ends."""
    os.nice(19)  # attackers have machines of their own
    siege = Siege(port, secret, model)
    async with asyncio.TaskGroup() as group:
        tasks = await siege.lay(group, of_each)
        print("laid", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        for task in tasks:
            task.cancel()
    print(json.dumps(siege.let._asdict()))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])))
