"""What the gateway adds to one call when nothing else goes on: one connection, in pairs.

Blocks of calls go direct, through nginx and through the gateway in turn, so that whatever else the
machine does meets all of them. Added is a call's time less the median of the direct block before.
"""

import socket
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from benchmarks.load import BODY, PATH
from benchmarks.nginx import Nginx
from benchmarks.options import Options, Outcome
from benchmarks.processes import per_call_us
from benchmarks.stand import Stand

_BLOCK = 50
_WARM = 300


class _Line:
    """One keep-alive connection, used by one caller that waits for each answer."""

    def __init__(self, port: int, headers: Mapping[str, str]) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        lines = [f"POST {PATH} HTTP/1.1", f"Host: 127.0.0.1:{port}"]
        lines += ["Content-Type: application/json", f"Content-Length: {len(BODY)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._request = "\r\n".join([*lines, "", BODY]).encode()

    def call_us(self) -> float:
        """Make one call; how long it took."""
        began_ns = time.perf_counter_ns()
        self._socket.sendall(self._request)
        answer = self._socket.recv(65_536)
        while not _is_whole(answer):
            answer += self._socket.recv(65_536)
        took_us = (time.perf_counter_ns() - began_ns) / 1e3
        assert answer.startswith(b"HTTP/1.1 200 "), answer[:500]
        return took_us

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


async def measure(options: Options, folder: Path) -> Outcome:
    """The time added to a call, and what each process spends on it."""
    cores = options.cores
    async with AsyncExitStack() as stack:
        upstream = stack.enter_context(Nginx.answering(folder))
        await upstream.until_ready()
        proxy = stack.enter_context(Nginx.passing(folder, upstream, cores=cores.measured))
        await proxy.until_ready()
        started = Stand.started(folder / "gateway", vendor_port=upstream.port, cores=cores)
        stand = await stack.enter_async_context(started)
        lines = {
            "direct": _Line(upstream.port, {}),
            "nginx": _Line(proxy.port, {}),
            "gateway": _Line(stand.port, stand.headers[0]),
        }
        for line in lines.values():
            stack.callback(line.close)
            for _ in range(_WARM):
                line.call_us()
        before = stand.cpu_s()
        blocks = _blocks(lines, seconds=options.seconds * options.repeats)
        await stand.until_flushed()
        spent = per_call_us(before, stand.cpu_s(), len(blocks) * _BLOCK)
    added = {name: _added(blocks, name) for name in ("gateway", "nginx")}
    return Outcome(
        figures={
            "added_p50_us": added["gateway"]["added_p50_us"],
            "added_p99_us": added["gateway"]["added_p99_us"],
        },
        details={
            "calls": len(blocks) * _BLOCK,
            "direct_p50_us": round(
                _quantile([us for one in blocks for us in one["direct"]], 50), 1
            ),
            "nginx": added["nginx"],
            "cpu_us_per_call_of": spent,
        },
        objections=() if cores.are_apart else ("there is one core only",),
    )


def _blocks(lines: Mapping[str, _Line], *, seconds: float) -> list[dict[str, list[float]]]:
    blocks: list[dict[str, list[float]]] = []
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s or not blocks:
        blocks.append(
            {name: [line.call_us() for _ in range(_BLOCK)] for name, line in lines.items()}
        )
    return blocks


def _added(blocks: Sequence[Mapping[str, Sequence[float]]], name: str) -> dict[str, Any]:
    differences = [
        us - statistics.median(block["direct"]) for block in blocks for us in block[name]
    ]
    return {f"added_p{at}_us": round(_quantile(differences, at), 1) for at in (50, 90, 99)}


def _quantile(values: Sequence[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


def _is_whole(answer: bytes) -> bool:
    head, border, body = answer.partition(b"\r\n\r\n")
    if not border:
        return False
    length = head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0]
    return len(body) >= int(length)
