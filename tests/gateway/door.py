"""A relay in front of a server's unix socket that a test can shut, to see what an outage does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path


class Door:
    """Connections to `path` reach `server` while the door is open."""

    def __init__(self, path: Path, server: Path) -> None:
        self._path, self._server = path, server
        self._writers: set[asyncio.StreamWriter] = set()
        self._passing = asyncio.Event()  # of the connections made from now on
        self._forgotten: list[asyncio.Event] = []
        self._listener: asyncio.Server | None = None

    async def open(self) -> None:
        """Let connections through again."""
        self._passing.set()
        if self._listener is None:
            self._listener = await asyncio.start_unix_server(self._relay, self._path)

    async def shut(self) -> None:
        """Cut every connection and refuse new ones, as a server that died does."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self._path.unlink(missing_ok=True)
        for writer in self._writers:
            writer.transport.abort()

    def silence(self) -> None:
        """Accept everything and answer nothing, as a server that hangs does."""
        self._passing.clear()

    def forget(self) -> None:
        """Carry no byte of the present connections ever again, without ending them."""
        self._passing.clear()
        self._forgotten.append(self._passing)
        self._passing = asyncio.Event()
        self._passing.set()

    async def remove(self) -> None:
        """Let go of everything."""
        await self.shut()
        for passing in (self._passing, *self._forgotten):
            passing.set()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_unix_connection(self._server)
        self._writers |= {writer, server_writer}
        passing = self._passing
        async with asyncio.TaskGroup() as group:
            group.create_task(self._copy(reader, server_writer, passing))
            group.create_task(self._copy(server_reader, writer, passing))

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passing: asyncio.Event
    ) -> None:
        try:
            while chunk := await reader.read(65_536):
                await passing.wait()
                writer.write(chunk)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()


@asynccontextmanager
async def door_to(server: Path, path: Path) -> AsyncIterator[Door]:
    """An open door at `path`."""
    door = Door(path, server)
    await door.open()
    try:
        yield door
    finally:
        await door.remove()
