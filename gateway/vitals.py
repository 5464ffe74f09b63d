"""A worker's own state, told once a second: gauges, readiness, how late its loop wakes up."""

import asyncio
import resource
from dataclasses import dataclass

from gateway.journals import Journals
from gateway.metrics import Metrics
from gateway.proxy.calls import Calls
from gateway.readiness import Readiness
from gateway.snapshots import Publisher
from gateway.upstream import Upstream
from ledger.conveyor import Conveyor
from ledger.journal import Journal

EVERY_S = 1.0
_LAG_EVERY_S = 0.1
_KIB = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """What there is to look at."""

    calls: Calls
    conveyor: Conveyor
    journal: Journal
    journals: Journals
    upstream: Upstream
    metrics: Metrics
    readiness: Readiness
    publisher: Publisher

    async def tell(self) -> None:
        """Once a second, for ever."""
        while True:
            self.look()
            self.publisher.publish()
            await asyncio.sleep(EVERY_S)

    def look(self) -> None:
        """Set every gauge and every check to what is."""
        metrics, journal = self.metrics, self.journal
        metrics.calls_open.set(len(self.calls.live))
        metrics.calls_draining.set(self.calls.draining)
        metrics.journal_unproven.set(self.journals.unproven_count)
        metrics.journal_oldest_seconds.set(journal.unproven_oldest_s)
        metrics.journal_bytes.set(journal.disk_bytes)
        providers = {
            (target.scheme, target.host, target.port): target.provider
            for route in self.calls.terms.config.exact.values()
            for target in route.targets
        }
        for origin, pool in self.upstream.pools.items():
            provider = providers.get(origin, "other")
            metrics.upstream_connections.set(pool.idle, (provider, "idle"))
            metrics.upstream_connections.set(pool.in_use, (provider, "busy"))
        used = resource.getrusage(resource.RUSAGE_SELF)
        process = (self.publisher.process,)
        metrics.cpu_seconds.set(used.ru_utime + used.ru_stime, process)
        metrics.memory_bytes.set(used.ru_maxrss * _KIB, process)
        self._check()

    def _check(self) -> None:
        readiness, conveyor = self.readiness, self.conveyor
        if not conveyor.is_connected:
            readiness.bad("redis", "not connected")
        elif len(conveyor.inactive) > 0:
            readiness.bad("redis", f"recovering {len(conveyor.inactive)} partitions")
        else:
            readiness.good("redis")
        if self.journal.is_full:
            readiness.bad("journal", "full")
        else:
            readiness.good("journal")

    async def watch_loop(self) -> None:
        """How late the loop wakes us, for ever: what every call on it waits."""
        loop = asyncio.get_running_loop()
        process = (self.publisher.process,)
        while True:
            due_s = loop.time() + _LAG_EVERY_S
            await asyncio.sleep(_LAG_EVERY_S)
            self.metrics.loop_lag_seconds.observe(int((loop.time() - due_s) * 1e6), process)
