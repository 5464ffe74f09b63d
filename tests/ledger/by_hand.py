"""Servers made by hand, none of which outlives its test."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

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
