"""Other gateways, run as their makers say, each with one process on the measured core.

They are installed outside of the tree, once, and are not metered: they only pass calls on.
"""

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.load import Headers
from benchmarks.nginx import Nginx, end, free_port, until_listening
from benchmarks.processes import Cores, descendants, pin

LITELLM = "litellm[proxy]==1.106.0"
PORTKEY = "@portkey-ai/gateway@1.15.2"
_START_S_MAX = 120.0
_MASTER_KEY = "sk-benchmark-0123456789"


class Peer(NamedTuple):
    """A running gateway of somebody else's."""

    url: str
    pids: tuple[int, ...]
    headers: Headers


@asynccontextmanager
async def litellm(
    installed: Path, folder: Path, upstream: Nginx, cores: Cores
) -> AsyncIterator[Peer]:
    """A LiteLLM proxy with one worker and a master key, without a database."""
    home = installed / "litellm"
    program = home / "bin" / "litellm"
    if not program.exists():
        await _run(sys.executable, "-m", "venv", str(home))
        await _run(str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", LITELLM)
    config = folder / "litellm.yaml"
    target = {
        "model": "openai/gpt-benchmark",
        "api_base": f"{upstream.url}/v1",
        "api_key": "sk-upstream",
    }
    # JSON is YAML.
    config.write_text(
        json.dumps(
            {
                "model_list": [{"model_name": "gpt-benchmark", "litellm_params": target}],
                "general_settings": {"master_key": _MASTER_KEY},
            }
        )
    )
    port = free_port()
    command = [str(program), "--config", str(config), "--port", str(port), "--host", "127.0.0.1"]
    async with _running(command, port, folder, cores) as pids:
        yield Peer(f"http://127.0.0.1:{port}", pids, {"Authorization": f"Bearer {_MASTER_KEY}"})


@asynccontextmanager
async def portkey(
    installed: Path, folder: Path, upstream: Nginx, cores: Cores
) -> AsyncIterator[Peer]:
    """Portkey's gateway on Node.js, told by headers where to send a call."""
    home = installed / "portkey"
    program = home / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    if not program.exists():
        home.mkdir(parents=True, exist_ok=True)
        await _run("npm", "install", "--silent", "--prefix", str(home), PORTKEY)
    node = shutil.which("node")
    assert node, "Portkey needs Node.js"
    port = free_port()
    command = [node, str(program), f"--port={port}", "--headless"]
    async with _running(command, port, folder, cores) as pids:
        yield Peer(
            f"http://127.0.0.1:{port}",
            pids,
            {
                "Authorization": "Bearer sk-upstream",
                "x-portkey-provider": "openai",
                "x-portkey-custom-host": f"{upstream.url}/v1",
            },
        )


async def _run(*command: str) -> None:
    await asyncio.to_thread(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)


@asynccontextmanager
async def _running(
    command: list[str], port: int, folder: Path, cores: Cores
) -> AsyncIterator[tuple[int, ...]]:
    with (folder / f"{Path(command[0]).name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            await until_listening(port, process, within_s=_START_S_MAX)
            pids = (process.pid, *descendants(process.pid))
            for pid in pids:
                pin(pid, cores.measured)
            yield pids
        finally:
            end(process)
