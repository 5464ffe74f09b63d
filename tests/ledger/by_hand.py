"""Servers made by hand, none of which outlives its test."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(serve: Serve, place: Path | ssl.SSLContext) -> AsyncIterator[asyncio.Server]:
    """A server at a socket, or with TLS at a free port; ends when its connections have ended."""
    open_ones: set[asyncio.Task[object]] = set()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        open_ones.add(task)
        try:
            await serve(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    if isinstance(place, Path):
        server = await asyncio.start_unix_server(one, str(place))
    else:
        server = await asyncio.start_server(one, "127.0.0.1", 0, ssl=place)
    try:
        yield server
    finally:
        server.close()
        if open_ones:
            await asyncio.wait(open_ones, timeout=5.0)


@asynccontextmanager
async def dying_postgres(folder: Path) -> AsyncIterator[str]:
    """The URL of a Postgres that lets one in, and says in the same breath that it has crashed."""
    said = (
        _message(b"R", bytes(4))
        + _message(b"S", b"client_encoding\0UTF8\0")
        + _message(b"S", b"server_version\x0018.0\0")
        + _message(b"Z", b"I")
        + _message(b"E", b"SFATAL\0C57P02\0Mterminating connection because of crash\0\0")
    )

    async def serve(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        size = int.from_bytes(await client.readexactly(4), "big")
        await client.readexactly(size - 4)
        to_client.write(said)
        await client.read()

    async with serving(serve, folder / ".s.PGSQL.5432"):
        yield f"postgresql://tollgate@/tollgate?host={quote(str(folder), safe='')}"


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body


class Door:
    """In front of a server at a socket: while it is shut, who comes is let in and hears nothing."""

    def __init__(self, target: str) -> None:
        self._target = target
        self.opened = asyncio.Event()
        self.came = 0  # connections so far

    @asynccontextmanager
    async def standing(self, at: Path) -> AsyncIterator[None]:
        """Serve at this socket."""
        async with serving(self._serve, at):
            yield

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self.came += 1
        await self.opened.wait()
        server, to_server = await asyncio.open_unix_connection(self._target)
        async with asyncio.TaskGroup() as group:
            group.create_task(_pass_on(client, to_server))
            group.create_task(_pass_on(server, to_client))


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while sent := await reader.read(65_536):
            writer.write(sent)
    writer.close()
