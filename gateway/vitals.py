"""A worker's own state, looked at once a second: gauges and readiness."""

from collections.abc import Callable
from dataclasses import dataclass

from gateway.auth import Authenticator
from gateway.journals import Journals
from gateway.metrics import Metrics
from gateway.proxy.calls import Calls
from gateway.readiness import Readiness
from gateway.snapshots import Publisher
from gateway.upstream import Upstream
from ledger.conveyor import Conveyor
from ledger.journal import Journal


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """What there is to look at."""

    calls: Calls
    conveyor: Conveyor
    journal: Journal
    journals: Journals
    upstream: Upstream
    authenticator: Authenticator
    dropped: Callable[[], int]  # lines of the log that nobody took
    metrics: Metrics
    readiness: Readiness
    publisher: Publisher

    def look(self) -> None:
        """Set every gauge and every check to what is."""
        metrics, journal = self.metrics, self.journal
        metrics.calls_open.set(len(self.calls.live))
        metrics.calls_draining.set(self.calls.draining)
        metrics.journal_unproven.set(self.journals.unproven_count)
        metrics.journal_oldest_seconds.set(journal.unproven_oldest_s)
        metrics.journal_bytes.set(journal.disk_bytes)
        metrics.log_lines_dropped.reach(self.dropped())
        metrics.key_queries.reach(self.authenticator.queries)
        for source, count in self.authenticator.found.items():
            metrics.key_lookups.reach(count, (source,))
        providers = {
            one.base_url[:3]: name for name, one in self.calls.terms.config.providers.items()
        }
        for origin, pool in self.upstream.pools.items():
            provider = providers.get(origin, "other")
            metrics.upstream_connections.set(pool.idle, (provider, "idle"))
            metrics.upstream_connections.set(pool.in_use, (provider, "busy"))
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
