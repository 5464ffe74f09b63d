"""A small load generator, for machines without wrk.

python -m benchmarks.loader CONNECTIONS SECONDS URL -- BODY HEADERS [HEADERS...]
"""

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Iterator
from typing import cast
from urllib.parse import urlsplit

import httptools
import uvloop

_ERROR_MIN = 400


class _Tally:
    """What all connections saw."""

    def __init__(self) -> None:
        self.latencies_s: list[float] = []
        self.refused = self.failed = 0


class _Caller(asyncio.Protocol):
    """One connection: the next request as soon as the last is answered."""

    def __init__(self, requests: Iterator[bytes], tally: _Tally) -> None:
        self._requests, self._tally = requests, tally
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport
        self._sent_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._call()

    def connection_lost(self, exc: Exception | None) -> None:
        self._tally.failed += exc is not None

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        self._tally.latencies_s.append(time.perf_counter() - self._sent_s)
        self._tally.refused += self._parser.get_status_code() >= _ERROR_MIN
        # A keep-alive parser goes on with the next message by itself.
        self._call()

    def close(self) -> None:
        """Stop calling."""
        self._transport.abort()

    def _call(self) -> None:
        self._sent_s = time.perf_counter()
        self._transport.write(next(self._requests))


def _request(path: str, host: str, *, headers: str, body: bytes) -> bytes:
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", "Content-Type: application/json"]
    lines += [f"Content-Length: {len(body)}", *headers.splitlines(), "", ""]
    return "\r\n".join(lines).encode() + body


async def _load(url: str, requests: list[bytes], *, connections: int, seconds: float) -> None:
    address, tally = urlsplit(url), _Tally()
    host, port = address.hostname or "localhost", address.port or 80
    turns = itertools.cycle(requests)
    loop = asyncio.get_running_loop()
    callers = [
        (await loop.create_connection(lambda: _Caller(turns, tally), host, port))[1]
        for _ in range(connections)
    ]
    began_s = time.perf_counter()
    await asyncio.sleep(seconds)
    took_s = time.perf_counter() - began_s
    for caller in callers:
        caller.close()
    seen = sorted(tally.latencies_s) or [0.0]
    figures = {
        "requests": len(tally.latencies_s),
        "seconds": took_s,
        "refused": tally.refused,
        "failed": tally.failed,
        "p50_us": seen[len(seen) // 2] * 1e6,
        "p99_us": seen[len(seen) * 99 // 100] * 1e6,
    }
    print(json.dumps(figures))


def main(arguments: list[str]) -> None:
    """Load a URL and print one line of JSON."""
    connections, seconds, url, _, body, *headers = arguments
    address = urlsplit(url)
    requests = [
        _request(address.path, address.netloc, headers=each, body=body.encode()) for each in headers
    ]
    uvloop.run(_load(url, requests, connections=int(connections), seconds=float(seconds)))


if __name__ == "__main__":
    main(sys.argv[1:])
