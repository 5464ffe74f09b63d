"""Which worker serves which connection, as the kernel tells; and connections to each of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from tests.scenarios.caller import Caller, caller
from tests.scenarios.deployment import Deployment

_LISTED_S_MAX = 10.0
_TRIES_MAX = 400  # the kernel deals connections out at random; 4 workers take some twenty


def peers(pid: int, port: int) -> set[int]:
    """The ports of the clients that this process is connected to at `port`."""
    inodes = set()
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            inodes.add(str(link.readlink()).removeprefix("socket:[").removesuffix("]"))
    except OSError:  # it has ended meanwhile
        return set()
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {
        int(row[2].rsplit(":", 1)[1], 16)
        for row in rows
        if row[9] in inodes and int(row[1].rsplit(":", 1)[1], 16) == port
    }


@asynccontextmanager
async def lines_to_each(tollgate: Deployment, count: int) -> AsyncIterator[list[list[Caller]]]:
    """So many connections to each worker of it, the workers in any order."""
    async with AsyncExitStack() as stack:
        found: dict[int, list[Caller]] = {pid: [] for pid in tollgate.pids("worker")}
        assert len(found) == tollgate.workers
        for _ in range(_TRIES_MAX):
            if all(len(lines) >= count for lines in found.values()):
                break
            line = await stack.enter_async_context(caller(tollgate))
            # Not every accepted connection is one that its worker has taken up; an answer is.
            await line.send(b"GET /healthz HTTP/1.1\r\nHost: tollgate\r\n\r\n")
            await line.answer()
            found[await _server_of(line, tollgate, [*found])].append(line)
        yield [lines[:count] for lines in found.values()]


async def _server_of(line: Caller, tollgate: Deployment, pids: list[int]) -> int:
    """The worker that serves it. The kernel's table may lack a row while others come and go."""
    async with asyncio.timeout(_LISTED_S_MAX):
        while True:
            for pid in pids:
                if line.port in peers(pid, tollgate.ports["data"]):
                    return pid
            await asyncio.sleep(0.01)
