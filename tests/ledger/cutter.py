"""A connection to Redis that breaks: requests get there, and their replies do not always come."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.ledger.by_hand import serving


class Cutter:
    """Passes bytes on between a socket of its own and Redis, and cuts as often as it is told."""

    def __init__(self, target: str, *, seed: int) -> None:
        self._target = target
        self._chance = random.Random(seed)  # noqa: S311 - a test that can be repeated
        self.cut_share = 0.0  # of the replies
        self.cuts = 0

    @asynccontextmanager
    async def listening(self, folder: Path) -> AsyncIterator[str]:
        """Serve at the socket whose path is given out."""
        path = str(folder / "cut.sock")
        async with serving(self._serve, Path(path)):
            yield path

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        redis, to_redis = await asyncio.open_unix_connection(self._target)
        try:
            async with asyncio.TaskGroup() as tasks:
                forward = tasks.create_task(_pass_on(client, to_redis))
                await self._answer(redis, to_client)
                forward.cancel()
        finally:
            to_redis.close()

    async def _answer(self, redis: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        while reply := await redis.read(65_536):
            if self._chance.random() < self.cut_share:
                self.cuts += 1
                client.write(reply[: self._chance.randrange(len(reply))])
                return
            client.write(reply)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while sent := await reader.read(65_536):
            writer.write(sent)
    except ConnectionError:
        pass
    finally:
        writer.close()
