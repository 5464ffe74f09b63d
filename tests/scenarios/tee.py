"""A TCP relay that keeps what the vendor said, byte for byte: an oracle with no code of ours."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

_READ_BYTES = 65_536


class Tee:
    """Passes bytes on between the gateway and one vendor."""

    def __init__(self, vendor_port: int) -> None:
        self._vendor_port = vendor_port
        self._said: list[bytearray] = []  # by the vendor, one for each connection
        self.port = 0

    @classmethod
    @asynccontextmanager
    async def to(cls, vendor_port: int) -> AsyncIterator["Tee"]:
        """A relay to this port of this machine."""
        tee = cls(vendor_port)
        server = await asyncio.start_server(tee._relay, "127.0.0.1", 0)
        tee.port = server.sockets[0].getsockname()[1]
        try:
            yield tee
        finally:
            server.close()

    def reported(self) -> list[dict[str, Any]]:
        """Every usage that the vendor reported so far."""
        return [usage for said in self._said for usage in _usages(bytes(said))]

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_vendor, to_vendor = await asyncio.open_connection("127.0.0.1", self._vendor_port)
        said = bytearray()
        self._said.append(said)
        async with asyncio.TaskGroup() as group:
            group.create_task(_pass(reader, to_vendor, bytearray()))
            group.create_task(_pass(from_vendor, writer, said))


async def _pass(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray
) -> None:
    try:
        while data := await reader.read(_READ_BYTES):
            kept += data
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


def _usages(said: bytes) -> Iterator[dict[str, Any]]:
    """Reports in raw HTTP; llama.cpp never breaks one between two chunks."""
    decoder = json.JSONDecoder()
    text, mark = said.decode("latin-1"), '"usage":'
    place = text.find(mark)
    while place >= 0:
        usage, _ = decoder.raw_decode(text, place + len(mark))
        if usage is not None:
            yield usage
        place = text.find(mark, place + 1)
