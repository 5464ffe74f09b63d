"""Both makers of load see the same: what was answered, what was refused."""

import asyncio
import json
import sys
from pathlib import Path
from subprocess import PIPE, Popen

from benchmarks.load import BODY, PATH, load
from benchmarks.nginx import Nginx


async def test_the_load_counts_the_answers(tmp_path: Path) -> None:
    with Nginx.answering(tmp_path) as nginx:
        await nginx.until_ready()
        loaded = await load(nginx.url, connections=2, seconds=1)

    assert loaded.requests > 0
    assert loaded.rps > 0
    assert (loaded.refused, loaded.failed) == (0, 0)
    assert loaded.p99_us >= loaded.p50_us > 0
    assert loaded.cpu_s > 0


async def test_where_wrk_is_missing_our_own_load_counts_them_too(tmp_path: Path) -> None:
    with Nginx.answering(tmp_path) as nginx:
        await nginx.until_ready()
        command = [sys.executable, "-m", "benchmarks.loader", "2", "0.2", nginx.url + PATH]
        with Popen([*command, "--", BODY, "Authorization: Bearer x"], stdout=PIPE) as process:
            said, _ = await asyncio.to_thread(process.communicate)

    told = json.loads(said)
    assert told["requests"] > 0
    assert (told["refused"], told["failed"]) == (0, 0)
    assert told["p99_us"] >= told["p50_us"] > 0
