"""Many streams at once: a vendor that sends them and a client that times each chunk.

python -m benchmarks.streams vendor CHUNKS INTERVAL_S
python -m benchmarks.streams client URL STREAMS SECONDS WARM_S HEADERS

Each chunk carries the time at which it was sent, by the clock that both share.
"""

import asyncio
import json
import re
import sys
import time
from collections.abc import Iterator
from typing import cast
from urllib.parse import urlsplit

import uvloop

from benchmarks.load import PATH

_BODY = (
    b'{"model":"gpt-benchmark","messages":[{"role":"user","content":"Tell me a long story."}],'
    b'"max_tokens":4096,"stream":true}'
)
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_EVENT = (
    b'data: {"id":"chatcmpl-benchmark","object":"chat.completion.chunk","created":1767225600,'
    b'"model":"gpt-benchmark","choices":[{"index":0,"delta":{"content":"@%019d "},'
    b'"finish_reason":null}]}\n\n'
)
_LAST = (
    b'data: {"id":"chatcmpl-benchmark","object":"chat.completion.chunk","created":1767225600,'
    b'"model":"gpt-benchmark","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b'data: {"id":"chatcmpl-benchmark","object":"chat.completion.chunk","created":1767225600,'
    b'"model":"gpt-benchmark","choices":[],"usage":{"prompt_tokens":11,"completion_tokens":%d,'
    b'"total_tokens":%d}}\n\ndata: [DONE]\n\n'
)
_SENT = re.compile(rb"@(\d{19}) ")
_TAIL = 20  # bytes of a mark that the next piece may complete
_REQUEST_END = re.compile(rb"\r\n\r\n\{.*\}$", re.DOTALL)


class _Sender(asyncio.Protocol):
    """One connection of the vendor's: every request is answered with a stream."""

    def __init__(self, chunks: int, interval_s: float) -> None:
        self._chunks, self._interval_s = chunks, interval_s
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._received = b""
        self._sent, self._due_s = 0, 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if _REQUEST_END.search(self._received):
            self._received, self._sent = b"", 0
            self._transport.write(_HEAD)
            self._due_s = self._loop.time()
            self._send()

    def _send(self) -> None:
        if self._transport.is_closing():
            return
        if self._sent == self._chunks:
            last = _LAST % (self._chunks, self._chunks + 11)
            self._transport.write(_framed(last) + b"0\r\n\r\n")
            return
        self._transport.write(_framed(_EVENT % time.monotonic_ns()))
        self._sent += 1
        # From the plan and not from now, so that lateness does not add up.
        self._due_s += self._interval_s
        self._loop.call_at(self._due_s, self._send)


class _Reader(asyncio.Protocol):
    """One stream, as its client sees it."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._rest = b""
        self.is_measuring = False
        self.is_over = False
        self.delays_ns: list[int] = []
        self.status = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).write(self._request)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - why does not matter
        self.is_over = True

    def data_received(self, data: bytes) -> None:
        now_ns = time.monotonic_ns()
        self.status = self.status or data[9:12]
        data = self._rest + data
        end = 0
        for found in _SENT.finditer(data):
            end = found.end()
            if self.is_measuring:
                self.delays_ns.append(now_ns - int(found[1]))
        self._rest = data[max(end, len(data) - _TAIL) :]
        if b"[DONE]" in data:
            self.is_over = True


def _framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def _serve(chunks: int, interval_s: float) -> None:
    server = await asyncio.get_running_loop().create_server(
        lambda: _Sender(chunks, interval_s), "127.0.0.1", 0, backlog=4096
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def _read(url: str, headers: str, *, streams: int, seconds: float, warm_s: float) -> None:
    address, loop = urlsplit(url), asyncio.get_running_loop()
    host, port = address.hostname or "localhost", address.port or 80
    lines = [f"POST {PATH} HTTP/1.1", f"Host: {address.netloc}", "Content-Type: application/json"]
    lines += [f"Content-Length: {len(_BODY)}", *headers.splitlines(), "", ""]
    request = "\r\n".join(lines).encode() + _BODY
    readers: list[_Reader] = []
    for delay_s in _ramp(streams, warm_s):
        _, reader = await loop.create_connection(lambda: _Reader(request), host, port)
        readers.append(reader)
        await asyncio.sleep(delay_s)
    await asyncio.sleep(warm_s)
    print("open", flush=True)
    for reader in readers:
        reader.is_measuring = True
    await asyncio.sleep(seconds)
    for reader in readers:
        reader.is_measuring = False
    delays = sorted(delay for reader in readers for delay in reader.delays_ns)
    figures = {
        "streams": sum(not reader.is_over for reader in readers),
        "refused": sum(reader.status != b"200" for reader in readers),
        "chunks": len(delays),
        **{f"p{at}_ms": round(delays[len(delays) * at // 100] / 1e6, 3) for at in (50, 90, 99)},
    }
    print(json.dumps(figures), flush=True)


def _ramp(streams: int, seconds: float) -> Iterator[float]:
    """Pauses that spread the beginnings, and so the chunks, evenly."""
    return (seconds / streams for _ in range(streams))


def main(arguments: list[str]) -> None:
    """Be the vendor until killed, or the client until everything is measured."""
    match arguments:
        case ["vendor", chunks, interval_s]:
            uvloop.run(_serve(int(chunks), float(interval_s)))
        case ["client", url, streams, seconds, warm_s, headers]:
            uvloop.run(
                _read(
                    url,
                    headers,
                    streams=int(streams),
                    seconds=float(seconds),
                    warm_s=float(warm_s),
                )
            )
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
