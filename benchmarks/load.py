"""The load: as many calls as can be answered, over some connections, by a process of its own.

wrk where it is installed, else `benchmarks.loader`; both print the same line.
"""

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import PIPE, Popen
from typing import NamedTuple

BODY = (
    '{"model":"gpt-benchmark","messages":[{"role":"system","content":"You are a helpful assistant.'
    '"},{"role":"user","content":"Say hello, and ask how you can help."}],"max_tokens":64,'
    '"temperature":0.7}'
)
PATH = "/v1/chat/completions"
_LATE_S = 20.0

Headers = Mapping[str, str]


class Loaded(NamedTuple):
    """What the load saw."""

    requests: int
    seconds: float
    refused: int  # answers that say no
    failed: int  # connections that broke, answers that never came
    p50_us: float
    p99_us: float
    cpu_s: float  # of the load itself

    @property
    def rps(self) -> float:
        """Good answers per second."""
        return (self.requests - self.refused) / self.seconds


def generator() -> str:
    """What makes the load."""
    return "wrk" if shutil.which("wrk") else "benchmarks.loader"


async def load(
    url: str, *, connections: int, seconds: float, headers: Sequence[Headers] = ({},)
) -> Loaded:
    """Load `url`, with each of `headers` in turn."""
    lines = ["\n".join(f"{name}: {value}" for name, value in each.items()) for each in headers]
    process = Popen([*_command(connections, seconds), url + PATH, "--", BODY, *lines], stdout=PIPE)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(seconds + _LATE_S):
            said = await asyncio.to_thread(process.stdout.read)
            _, _, used = await asyncio.to_thread(os.wait4, process.pid, 0)
    except BaseException:
        process.kill()
        raise
    finally:
        process.stdout.close()
        process.returncode = 0  # it was waited for above, or will be by whoever ends us
    line = said.decode().strip().splitlines()[-1]
    return Loaded(**json.loads(line), cpu_s=used.ru_utime + used.ru_stime)


def _command(connections: int, seconds: float) -> list[str]:
    if wrk := shutil.which("wrk"):
        script = Path(__file__).with_name("wrk.lua")
        # wrk knows whole seconds only.
        duration = f"-d{max(1, round(seconds))}s"
        return [wrk, "-t1", f"-c{connections}", duration, "-s", str(script)]
    return [sys.executable, "-m", "benchmarks.loader", str(connections), str(seconds)]
