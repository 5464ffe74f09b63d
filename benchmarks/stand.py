"""The gateway as it is measured: a whole deployment, its worker alone on its core.

Nothing is left out: real keys, holds, journal, settlement, log, and the flusher into Postgres.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.load import Headers
from benchmarks.processes import Cores, cpu_s, descendants, pin
from tests.scenarios.deployment import Deployment

_CREDIT_USD = "1000000"
_FLUSHED = "SELECT coalesce(sum(calls), 0)::bigint FROM usage_hourly"
_ROLES = {
    "gateway.process worker": "worker",
    "gateway.process control": "control",
    "valkey": "valkey",
    "postgres": "postgres",
}


class Stand:
    """A running deployment and the keys of its organizations."""

    def __init__(self, deployment: Deployment, secrets: list[str]) -> None:
        self._deployment, self._secrets = deployment, secrets

    @classmethod
    @asynccontextmanager
    async def started(
        cls,
        folder: Path,
        *,
        vendor_port: int,
        cores: Cores,
        organizations: int = 1,
        changes: Mapping[str, Any] | None = None,
    ) -> AsyncIterator["Stand"]:
        """One worker, pinned; this process and all others must be elsewhere already."""
        folder.mkdir()
        started = Deployment.started(folder, vendor_port=vendor_port, changes=changes)
        async with started as deployment:
            stand = cls(deployment, [])
            pin(stand.worker, cores.measured)
            for _ in range(organizations):
                key = await deployment.new_key(credit_usd=_CREDIT_USD)
                stand._secrets.append(key.secret)
            yield stand

    @property
    def url(self) -> str:
        """Where its data plane listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        """The port of its data plane."""
        return self._deployment.ports["data"]

    @property
    def worker(self) -> int:
        """The process id of its worker."""
        (pid,) = self.processes()["worker"]
        return pid

    @property
    def headers(self) -> list[Headers]:
        """What calls carry, one for each organization."""
        return [{"Authorization": f"Bearer {secret}"} for secret in self._secrets]

    def processes(self) -> dict[str, list[int]]:
        """The process ids of each role."""
        found: dict[str, list[int]] = {role: [] for role in _ROLES.values()}
        for pid, command in descendants(self._deployment.ports["pid"]).items():
            for mark, role in _ROLES.items():
                if mark in command:
                    found[role].append(pid)
                    break
        return found

    def cpu_s(self) -> dict[str, float]:
        """CPU time used so far by each role."""
        return {role: cpu_s(pids) for role, pids in self.processes().items()}

    async def flushed(self) -> int:
        """Calls that Postgres has the records of."""
        connection = await self._deployment.postgres()
        try:
            return int(await connection.fetchval(_FLUSHED))
        finally:
            await connection.close()

    async def until_flushed(self, *, within_s: float = 30.0) -> int:
        """Wait until the count of records no longer grows; returns it."""
        until_s = time.monotonic() + within_s
        before = -1
        while (now := await self.flushed()) != before and time.monotonic() < until_s:
            before = now
            await asyncio.sleep(0.5)
        return now
