"""A connection to a server that breaks: replies come late, cut or never, requests get there."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.ledger.by_hand import serving

_DELAY_S_MAX = 0.5
_SILENT_S = 2.5  # until even a connection that says nothing is over


class Cutter:
    """Passes bytes on between a socket of its own and a server's, and hurts as it is told.

    Shares are of the replies. One that is cut ends its connection, after some of its bytes; one
    that is swallowed is never seen, and neither is anything after it.
    """

    def __init__(self, target: str, *, seed: int) -> None:
        self._target = target
        self._chance = random.Random(seed)  # noqa: S311 - a test that can be repeated
        self.cut_share = self.swallow_share = self.delay_share = 0.0
        self.cuts = self.swallows = self.delays = self.replies = 0

    @asynccontextmanager
    async def listening(self, folder: Path, name: str = "cut.sock") -> AsyncIterator[str]:
        """Serve at the socket whose path is given out."""
        path = str(folder / name)
        async with serving(self._serve, Path(path)):
            yield path

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        try:
            server, to_server = await asyncio.open_unix_connection(self._target)
        except OSError:
            return  # it is away, and so are we
        try:
            async with asyncio.TaskGroup() as tasks:
                forward = tasks.create_task(_pass_on(client, to_server))
                await self._answer(server, to_client)
                forward.cancel()
        finally:
            to_server.close()

    async def _answer(self, server: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        while reply := await _read(server):
            self.replies += 1
            if self._chance.random() < self.delay_share:
                self.delays += 1
                await asyncio.sleep(self._chance.uniform(0, _DELAY_S_MAX))
            if self._chance.random() < self.cut_share:
                self.cuts += 1
                client.write(reply[: self._chance.randrange(len(reply))])
                return
            if self._chance.random() < self.swallow_share:
                self.swallows += 1
                await asyncio.sleep(_SILENT_S)
                return
            client.write(reply)


async def _read(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read(65_536)
    except ConnectionError:
        return b""


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while sent := await _read(reader):
        writer.write(sent)
    writer.close()
