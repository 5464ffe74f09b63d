"""CPU of the upstream client alone: keep-alive requests against the least a server can do."""

import argparse
import asyncio
import json
import multiprocessing
import resource
import socket
import time
from typing import cast

import uvloop

from gateway.upstream import Deadlines, Upstream
from providers.adapter import Secret, Target, UpstreamRequest

_BODY = b'{"id":"x","usage":{"prompt_tokens":9,"completion_tokens":1}}' * 8
_HEADERS = b"".join(b"X-Header-%d: some value of a header\r\n" % number for number in range(12))
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n%bContent-Length: %d\r\n\r\n%b" % (
    _HEADERS,
    len(_BODY),
    _BODY,
)
_DEADLINES = Deadlines(connect_s=5, first_byte_s=30, idle_s=30)


class _Server(asyncio.Protocol):
    """Answers every segment: fine for requests that fit in one."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        del data
        self._transport.write(_ANSWER)


def _serve(listener: socket.socket) -> None:
    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(_Server, sock=listener)
        await server.serve_forever()

    uvloop.run(serve())


async def _measure(port: int, *, connections: int, seconds: float) -> dict[str, float]:
    upstream = Upstream()
    target = Target(
        provider="local",
        model="m",
        scheme="http",
        host="127.0.0.1",
        port=port,
        path="/v1",
        api_key=Secret("sk-x"),
    )
    request = UpstreamRequest(
        "POST",
        "/v1/chat/completions",
        (("Authorization", "Bearer sk-x"), ("Content-Type", "application/json")),
        b'{"model":"m","messages":[{"role":"user","content":"hello"}]}',
    )
    calls = 0

    async def loop() -> None:
        nonlocal calls
        while time.perf_counter() < until:
            answer = await upstream.send(request, target, deadlines=_DEADLINES)
            while await answer.read():
                pass
            answer.release()
            calls += 1

    started = time.perf_counter()
    until = started + seconds
    before = resource.getrusage(resource.RUSAGE_SELF)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(connections):
            tasks.create_task(loop())
    after = resource.getrusage(resource.RUSAGE_SELF)
    wall = time.perf_counter() - started
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    await upstream.close()
    return {
        "requests_per_s": round(calls / wall),
        "requests_per_cpu_s": round(calls / cpu),
        "cpu_us_per_request": round(cpu / calls * 1e6, 2),
    }


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5)
    arguments = parser.parse_args()
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    server = multiprocessing.get_context("fork").Process(target=_serve, args=(listener,))
    server.start()
    try:
        measured = _measure(port, connections=arguments.connections, seconds=arguments.seconds)
        print(json.dumps(uvloop.run(measured)))
    finally:
        server.terminate()
        server.join()


if __name__ == "__main__":
    main()
