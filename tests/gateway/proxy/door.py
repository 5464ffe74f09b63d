"""A data-plane listener around any handler, and a client that speaks raw bytes to it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple, Self

from gateway.proxy.exchange import Exchange
from gateway.proxy.intake import body_at_hand, read_rest
from gateway.proxy.server import DataServer, Handler
from gateway.proxy.wall import TellTurnedAway, Wall, bind
from gateway.settings import Limits

WALL = Wall(
    header_timeout_s=0.2,
    headers_max=100,
    header_bytes_max=32 * 1024,
    keep_alive_s=30,
    connections_max=100,
    connections_per_address_max=100,
    stall_s_max=0.3,
)


class Line(NamedTuple):
    """One connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, data: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send these bytes and read one answer: status, headers in lower case, body."""
        self.writer.write(data)
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:-2])
        }
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await self.reader.readline(), 16):
                body += await self.reader.readexactly(size)
                await self.reader.readexactly(2)
            await self.reader.readexactly(2)
        else:
            body = await self.reader.readexactly(int(headers["content-length"]))
        return int(head[0].split()[1]), headers, body

    async def rest(self) -> bytes:
        """What comes until the other side closes."""
        return await self.reader.read()


class Door:
    """A listening data plane."""

    def __init__(self, port: int, server: DataServer) -> None:
        self.port, self.server = port, server
        self.turned_away: list[str] = []  # connections, by the limit that they met
        self._lines: list[Line] = []

    async def line(self) -> Line:
        """A new connection, closed with the door."""
        line = Line(*await asyncio.open_connection("127.0.0.1", self.port))
        self._lines.append(line)
        return line

    @classmethod
    @asynccontextmanager
    async def opened(
        cls, handler: Handler, *, wall: Wall = WALL, tell: TellTurnedAway | None = None
    ) -> AsyncIterator[Self]:
        """Listen on a free port of the loopback."""
        turned_away = list[str]()
        server = DataServer(handler, wall, tell=tell or (lambda _, by: turned_away.append(by)))
        listener = bind("127.0.0.1", 0, stall_s_max=wall.stall_s_max)
        listening = await asyncio.get_running_loop().create_server(server, sock=listener)
        door = cls(listener.getsockname()[1], server)
        door.turned_away = turned_away
        try:
            yield door
        finally:
            for line in door._lines:
                line.writer.close()
            listening.close()
            await server.shutdown(1)


async def body_of(exchange: Exchange, limits: Limits) -> bytes:
    """The whole body, read as calls read it."""
    body = body_at_hand(exchange, limits)
    return await read_rest(exchange, limits, lambda _: None) if body is None else body


def post(body: bytes, *lines: str, path: str = "/v1/chat/completions") -> bytes:
    """A request with a JSON body and these further header lines."""
    head = [f"POST {path} HTTP/1.1", "Host: tollgate", f"Content-Length: {len(body)}"]
    if not any(line.lower().startswith("content-type") for line in lines):
        head.append("Content-Type: application/json")
    return "\r\n".join([*head, *lines, "", ""]).encode() + body
