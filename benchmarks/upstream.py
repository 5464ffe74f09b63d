"""The upstream client alone: calls per second over keep-alive connections, without a gateway."""

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path

from benchmarks.load import BODY, PATH
from benchmarks.nginx import Nginx
from benchmarks.options import Options, Outcome
from benchmarks.processes import staying_on
from gateway.upstream import Deadlines, Upstream
from providers.adapter import Secret, Target, UpstreamRequest

_DEADLINES = Deadlines(connect_s=5, first_byte_s=30, idle_s=30)
_REQUEST = UpstreamRequest(
    "POST",
    PATH,
    (("Authorization", "Bearer sk-upstream"), ("Content-Type", "application/json")),
    BODY.encode(),
)


async def measure(options: Options, folder: Path) -> Outcome:
    """As many calls as one core can send and read."""
    async with AsyncExitStack() as stack:
        nginx = stack.enter_context(Nginx.answering(folder))
        await nginx.until_ready()
        upstream = Upstream()
        stack.push_async_callback(upstream.close)
        stack.enter_context(staying_on(options.cores.measured))
        began_s, used_s = time.monotonic(), time.process_time()
        counts = await asyncio.gather(
            *(
                _called(upstream, nginx.port, until_s=began_s + options.seconds)
                for _ in range(options.connections)
            )
        )
        took_s, used_s = time.monotonic() - began_s, time.process_time() - used_s
    return Outcome(
        details={
            "calls_per_s": round(sum(counts) / took_s),
            "cpu_us_per_call": round(used_s / sum(counts) * 1e6, 1),
        }
    )


async def _called(upstream: Upstream, port: int, *, until_s: float) -> int:
    """Call again and again; how often it was."""
    target = Target(
        provider="nginx",
        model="gpt-benchmark",
        scheme="http",
        host="127.0.0.1",
        port=port,
        path="/v1",
        api_key=Secret("sk-upstream"),
    )
    calls = 0
    while time.monotonic() < until_s:
        answer = await upstream.send(_REQUEST, target, deadlines=_DEADLINES)
        while await answer.read():
            pass
        answer.release()
        calls += 1
    return calls
