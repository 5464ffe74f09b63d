"""Runs the real `tollgate` command as a process of its own."""

import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.gateway.tenancy import PEPPER

ROOT = Path(__file__).parent.parent.parent


class Ran(NamedTuple):
    """What a command said, and how it ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """What it said, if that is JSON."""
        return json.loads(self.out)


class CommandLine:
    """A terminal of an operator, in a folder of its own and with an environment of its own."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self.folder, self.environ = folder, dict(environ)

    async def run(self, *arguments: str) -> Ran:
        """`tollgate ARGUMENTS`."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "gateway.cli",
            *arguments,
            cwd=self.folder,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", **self.environ},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            out, err = await process.communicate()
        assert process.returncode is not None
        return Ran(process.returncode, out.decode(), err.decode())

    async def done(self, *arguments: str) -> Ran:
        """`run`, and it must succeed."""
        ran = await self.run(*arguments)
        assert ran.code == 0, ran
        return ran


def operator(folder: Path, postgres_url: str, redis_url: str) -> CommandLine:
    """A terminal on configured stores, with a configuration that says nothing else."""
    (folder / "config.yaml").write_text("{}\n")
    environ = {
        "TOLLGATE_POSTGRES__URL": postgres_url,
        "TOLLGATE_REDIS__URL": redis_url,
        "TOLLGATE_AUTH__PEPPER": PEPPER.reveal(),
    }
    return CommandLine(folder, environ)
