"""A client of raw HTTP: it sees every byte of an answer, and may leave at any moment."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import msgspec

from tests.scenarios.deployment import Deployment, Key

PATIENCE_S = 120.0
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
_PIECE_BYTES = 65_536
_OVER = (b"\r\n0\r\n\r\n", b"}")  # how a stream and a body end


class Head(NamedTuple):
    """How an answer begins; names in lower case."""

    status: int
    headers: dict[str, str]


class Answer(NamedTuple):
    """A whole answer. `body` is without its chunks, and otherwise every byte that came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def tree(self) -> Any:
        """The body as JSON."""
        return msgspec.json.decode(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object in it."""
        found: dict[str, Any] = self.tree["error"]
        return found


class Caller:
    """One connection, for one call after the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    @asynccontextmanager
    async def at(cls, host: str, port: int) -> AsyncIterator["Caller"]:
        """A connection to a port, cut at the end."""
        reader, writer = await asyncio.open_connection(host, port)
        try:
            yield cls(reader, writer)
        finally:
            writer.transport.abort()

    async def send(self, data: bytes) -> None:
        """Bytes as they are."""
        self._writer.write(data)
        await self._writer.drain()

    @property
    def port(self) -> int:
        """Our end's, which tells the connection from others."""
        found: int = self._writer.get_extra_info("sockname")[1]
        return found

    def leave(self) -> None:
        """Close the connection, whatever is still to come."""
        self._writer.transport.abort()

    async def head(self) -> Head:
        """Wait for the head of an answer."""
        text = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = text.strip().split("\r\n")
        pairs = (line.split(":", 1) for line in lines)
        return Head(int(first.split(" ")[1]), {n.lower(): v.strip() for n, v in pairs})

    async def pieces(self, head: Head) -> AsyncIterator[bytes]:
        """The body behind `head`, as it comes; `EOFError` if it is cut."""
        if head.headers.get("transfer-encoding") == "chunked":
            while size := await self._chunk_bytes():
                yield await self._reader.readexactly(size)
                await self._reader.readexactly(2)
            await self._reader.readexactly(2)
            return
        left = int(head.headers["content-length"])
        while left:
            piece = await self._reader.read(min(left, _PIECE_BYTES))
            if not piece:
                raise EOFError("the answer was cut")
            left -= len(piece)
            yield piece

    async def _chunk_bytes(self) -> int:
        line = await self._reader.readline()
        if not line.endswith(b"\n"):
            raise EOFError("the answer was cut")
        return int(line, 16)

    async def answer(self) -> Answer:
        """Wait for a whole answer; `EOFError` if it is cut."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.rest(await self.head())

    async def rest(self, head: Head) -> Answer:
        """What comes behind `head`; `EOFError` if it is cut."""
        body = b"".join([piece async for piece in self.pieces(head)])
        return Answer(head.status, head.headers, body)

    async def some(self, count: int) -> bytes:
        """So many bytes of what comes, head and all; fewer if it is over before."""
        seen = b""
        async with asyncio.timeout(PATIENCE_S):
            while len(seen) < count and not seen.endswith(_OVER):
                piece = await self._reader.read(count - len(seen))
                if not piece:
                    break
                seen += piece
        return seen

    async def is_closed(self) -> bool:
        """Whether the other end has nothing more to say; waits until that is certain."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                return not await self._reader.read(1)
            except ConnectionError:
                return True

    async def post(self, path: str, secret: str, body: bytes | Mapping[str, Any]) -> Answer:
        """One call and its answer."""
        await self.send(request(path, secret, body))
        return await self.answer()


def request(
    path: str,
    secret: str,
    body: bytes | Mapping[str, Any],
    *,
    headers: Mapping[str, str] | None = None,
    method: str = "POST",
) -> bytes:
    """The bytes of a request."""
    payload = body if isinstance(body, bytes) else msgspec.json.encode(body)
    fields = {
        "Host": "tollgate",
        "Authorization": f"Bearer {secret}",
        "Content-Type": "application/json",
        "Content-Length": str(len(payload)),
        **(headers or {}),
    }
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + payload


@asynccontextmanager
async def caller(tollgate: Deployment) -> AsyncIterator[Caller]:
    """A connection to the deployment."""
    async with Caller.at("127.0.0.1", tollgate.ports["data"]) as made:
        yield made


async def post(
    tollgate: Deployment, key: Key, path: str, body: bytes | Mapping[str, Any]
) -> Answer:
    """One call on a connection of its own."""
    async with caller(tollgate) as line:
        return await line.post(path, key.secret, body)


def asks(path: str, model: str, **fields: Any) -> dict[str, Any]:
    """The least that a path wants in a call."""
    if path == CHAT:
        content: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
    elif path == RESPONSES or path.endswith("/embeddings"):
        content = {"input": "hello"}
    else:
        content = {"prompt": "hello"}
    return {"model": model, **content, **fields}
