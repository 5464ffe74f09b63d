"""A worker's own state, looked at once a second: gauges and readiness."""

from collections.abc import Callable
from dataclasses import dataclass

from gateway.proxy.calls import Calls, Parts
from gateway.snapshots import Publisher
from ledger.waiting import RECOVERY_WAIT_S


@dataclass(slots=True, kw_only=True)
class Vitals:
    """What there is to look at."""

    calls: Calls
    parts: Parts
    dropped: Callable[[], int]  # lines of the log that nobody took
    publisher: Publisher
    _admitted_s: float | None = None  # when calls were last admitted everywhere

    def look(self) -> None:
        """Set every gauge and every check to what is."""
        metrics, journal = self.publisher.metrics, self.parts.journal
        metrics.calls_open.set(len(self.calls.live))
        metrics.calls_draining.set(self.calls.draining)
        allowances = self.parts.grace.allowances
        metrics.grace_unbooked.set(allowances.used_in_all)
        metrics.journal_unproven.set(self.parts.journals.unproven_count)
        metrics.journal_oldest_seconds.set(journal.unproven_oldest_s)
        metrics.journal_bytes.set(journal.disk_bytes)
        metrics.holds_lapsed.reach(self.parts.conveyor.lapsed_count)
        metrics.ends_unread.reach(self.parts.conveyor.broken_count)
        metrics.log_lines_dropped.reach(self.dropped())
        metrics.key_queries.reach(self.parts.authenticator.queries)
        for source, count in self.parts.authenticator.found.items():
            metrics.key_lookups.reach(count, (source,))
        providers: dict[tuple[str, str, int], str] = {}
        for name, one in self.calls.terms.config.providers.items():
            providers.setdefault(one.base_url[:3], name)  # of several at one place, the first
        for origin, pool in self.parts.upstream.pools.items():
            provider = providers.get(origin, "other")
            metrics.upstream_connections.set(pool.idle, (provider, "idle"))
            metrics.upstream_connections.set(pool.in_use, (provider, "busy"))
            metrics.upstream_connections.set(pool.waiting, (provider, "waiting"))
        self._check()

    def _check(self) -> None:
        readiness = self.publisher.readiness
        if trouble := self._trouble():
            readiness.bad("redis", trouble)
        else:
            readiness.good("redis")
        closed = self.parts.closed.partitions
        if len(closed) >= self.calls.terms.config.ledger.partitions:
            readiness.bad("backlog", "Postgres is behind; every partition is closed")
        else:
            readiness.good("backlog")
        if self.parts.journal.is_full:
            readiness.bad("journal", "full")
        else:
            readiness.good("journal")

    def _trouble(self) -> str:
        """Why no call can be admitted; "": some can.

        A recovery is the same for all gateways, and calls wait for it: who said at once that it is
        not ready would take the whole service away for a second in which nothing fails.
        """
        conveyor, now_s = self.parts.conveyor, self.parts.monotonic_s()
        if not conveyor.is_connected:
            return "not connected"
        if conveyor.admits:
            self._admitted_s = now_s
            return ""
        count = len(conveyor.inactive)
        is_served = count < self.calls.terms.config.ledger.partitions
        waits = self._admitted_s is not None and now_s - self._admitted_s <= RECOVERY_WAIT_S
        if is_served or waits:
            return ""
        return f"recovering {count} partitions"
