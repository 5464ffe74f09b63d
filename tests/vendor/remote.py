"""Start a scripted vendor, tell it what to do, and ask it what it has seen."""

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tests.vendor.script import Entry, State
from tests.vendor.server import Book, listen

_PATIENCE_S = 20.0
_T = TypeVar("_T")


class Vendor:
    """A vendor that listens. Its `log` is the oracle: what it was asked, sent, and would charge."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port

    @property
    def url(self) -> str:
        """The base URL, as an SDK takes it."""
        return f"http://{self.host}:{self.port}/v1"

    @classmethod
    @contextlib.asynccontextmanager
    async def here(cls, *, log_max: int = 1_000_000) -> AsyncIterator["Vendor"]:
        """In this process and event loop: for tests of one call at a time."""
        server = await listen(Book(log_max=log_max))
        try:
            host, port = server.sockets[0].getsockname()[:2]
            yield cls(host, port)
        finally:
            server.close()

    @classmethod
    @contextlib.contextmanager
    def apart(cls, *arguments: str) -> Iterator["Vendor"]:
        """In a process of its own: for load, and for tests that must not wait for each other."""
        command = [sys.executable, "-m", "tests.vendor", "--attached", *arguments]
        root = Path(__file__).parents[2]
        with subprocess.Popen(
            command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            try:
                assert process.stdout is not None
                told = json.loads(process.stdout.readline())
                yield cls(told["host"], told["port"])
            finally:
                process.terminate()

    async def script(self, name: str, **fields: Any) -> str:
        """Register a script (the fields of `Script`); gives the model that asks for it.

        The name "" is what every other model is answered with.
        """
        await self._ask("/_script", msgspec.json.encode({"id": name} | fields), type_=object)
        return f"script-{name}" if name else "gpt-4o-mini"

    async def log(self, *, since: int = 0) -> list[Entry]:
        """Every request so far, in the order in which they came."""
        return await self._ask(f"/_log?since={since}", type_=list[Entry])

    async def forget(self) -> None:
        """Empty the log; requests under way are no longer in it."""
        await self._ask("/_forget", type_=object)

    async def state(self) -> State:
        """What is going on."""
        return await self._ask("/_state", type_=State)

    async def release(self) -> int:
        """Let everything go on that waits at a `hold_at`; gives how many."""
        return await self._ask("/_release", type_=int)

    async def until(self, is_so: Callable[[State], bool]) -> State:
        """The first state of which this is true, or `TimeoutError`."""
        async with asyncio.timeout(_PATIENCE_S):
            while not is_so(state := await self.state()):
                await asyncio.sleep(0.005)
            return state

    async def held(self, count: int) -> None:
        """Wait until so many requests wait for a release."""
        await self.until(lambda state: state.held >= count)

    async def quiet(self) -> list[Entry]:
        """Wait until no request is under way; the log."""
        await self.until(lambda state: state.open == 0)
        return await self.log()

    async def _ask(self, path: str, body: bytes = b"", *, type_: type[_T]) -> _T:
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            head = f"POST {path} HTTP/1.1\r\nHost: vendor\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            if not answer.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"the vendor says {answer!r}")
            length = int(answer.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            return msgspec.json.decode(await reader.readexactly(length), type=type_)
        finally:
            writer.close()
