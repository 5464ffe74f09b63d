"""The other end of the upstream client's connections, driven byte by byte by the test itself."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from gateway.upstream import Answer, Deadlines, Limits, Upstream
from providers.adapter import Secret, Target, UpstreamRequest

PATIENCE_S = 10.0  # a test that waits longer has failed
PATIENT = Deadlines(connect_s=PATIENCE_S, first_byte_s=PATIENCE_S, idle_s=PATIENCE_S)
CHAT = UpstreamRequest(
    "POST",
    "/v1/chat/completions",
    (("Authorization", "Bearer sk-vendor"), ("Content-Type", "application/json")),
    b'{"model":"m"}',
)
GET = UpstreamRequest("GET", "/v1/models", (("Authorization", "Bearer sk-vendor"),), b"")
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream\r\n\r\n"
)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

_T = TypeVar("_T")


class Peer:
    """The vendor's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def request(self) -> tuple[bytes, bytes]:
        """Read a request: its head and its body."""
        async with asyncio.timeout(PATIENCE_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = 0
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            return head, await self.reader.readexactly(length)

    async def send(self, data: bytes) -> None:
        """Write and make sure that the system has it."""
        self.writer.write(data)
        async with asyncio.timeout(PATIENCE_S):
            await self.writer.drain()

    async def answer(self, data: bytes = OK) -> None:
        """Read a request and answer it."""
        await self.request()
        await self.send(data)

    async def is_closed(self) -> bool:
        """Wait for the client to close; True if it sent nothing before."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                return not await self.reader.read()
            except ConnectionError:
                return True

    async def is_closed_early(self) -> bool:
        """Wait for the client to close, whatever it sent before."""
        async with asyncio.timeout(PATIENCE_S):
            await self.reader.read()
            return self.reader.at_eof()

    def close(self) -> None:
        """End the connection as a program does that exits in order."""
        self.writer.close()

    def reset(self) -> None:
        """End the connection with a TCP reset."""
        self.writer.transport.abort()


class Wire:
    """A listening vendor, and a client to call it."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.target: Target
        self._server: asyncio.Server
        self._accepted: asyncio.Queue[Peer] = asyncio.Queue()
        self._peers: list[Peer] = []
        self._tasks: list[asyncio.Future[Any]] = []

    async def listen(self, tls: ssl.SSLContext | None, host: str) -> None:
        """Begin to accept connections on a free port."""
        server = self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=tls)
        port = server.sockets[0].getsockname()[1]
        self.target = Target(
            provider="vendor",
            model="m",
            scheme="https" if tls else "http",
            host=host,
            port=port,
            path="/v1",
            api_key=Secret("sk-vendor"),
        )

    async def end_listening(self) -> None:
        """From now on the port refuses connections."""
        self._server.close()

    def start(self, work: Coroutine[Any, Any, _T]) -> "asyncio.Future[_T]":
        """Run beside the test; ended with it."""
        task = asyncio.ensure_future(work)
        self._tasks.append(task)
        return task

    def call(
        self,
        request: UpstreamRequest = CHAT,
        *,
        deadlines: Deadlines = PATIENT,
    ) -> "asyncio.Future[Answer]":
        """Send a request, beside the test."""
        return self.start(self.upstream.send(request, self.target, deadlines=deadlines))

    async def peer(self) -> Peer:
        """The next connection that the client makes."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._accepted.get()

    def more_connections(self) -> int:
        """How many connections the client has made that no test has asked for."""
        return self._accepted.qsize()

    async def warm(self) -> Peer:
        """A connection that has carried a request and rests in the pool."""
        call = self.call()
        peer = await self.peer()
        await peer.answer()
        assert await whole(await call) == b"ok"
        return peer

    async def end(self) -> None:
        """Stop whatever still runs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.upstream.close()
        for peer in self._peers:
            peer.reset()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        self._peers.append(peer)
        self._accepted.put_nowait(peer)


@asynccontextmanager
async def wire(
    *,
    limits: Limits | None = None,
    upstream: Upstream | None = None,
    tls: ssl.SSLContext | None = None,
    host: str = "127.0.0.1",
) -> AsyncIterator[Wire]:
    """A vendor on a free port and a client for it; both are gone at the end."""
    ours = Wire(upstream or Upstream(limits))
    await ours.listen(tls, host)
    try:
        yield ours
    finally:
        await ours.end()
        await ours.end_listening()


async def whole(answer: Answer) -> bytes:
    """Read an answer to its end and release it."""
    chunks = []
    async with asyncio.timeout(PATIENCE_S):
        while chunk := await answer.read():
            chunks.append(chunk)
    answer.release()
    return b"".join(chunks)


def gauges(ours: Wire) -> tuple[int, int, int, int]:
    """Of the one origin: connections open, idle, in use, and callers in the queue."""
    (pool,) = ours.upstream.pools.values()
    return pool.open, pool.idle, pool.in_use, pool.waiting
