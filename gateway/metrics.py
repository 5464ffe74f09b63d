"""Every metric, in one table, and the plain integers behind them.

Counting is one dictionary update in the process that counts; snapshots.py adds the processes up and
observe.py shows the sum. A label's value is a configured name or one of a closed set; whatever else
clients make us meet is counted as "other", so that nobody can grow the page by inventing names.
"""

# ruff: noqa: RUF009 - the calls in the table make dataclass fields, as field() does

from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import ClassVar, TypeAlias

from ledger.record import Outcome
from ledger.usage import Unit

Labels: TypeAlias = tuple[str, ...]

OTHER = "other"
SERIES_MAX = 2_000  # of one metric; beyond it everything new is "other"
PARTITIONS_MAX = 100

# Why a call was turned away or went wrong: our error codes, and what they come from.
CAUSES = frozenset(
    {
        "address_not_allowed",
        "api_key_in_url",
        "auth_unavailable",
        "bad_http",
        "budget_exceeded",
        "call_too_large",
        "concurrency_limit_exceeded",
        "credit_held",
        "expired",
        "insufficient_credit",
        "internal_error",
        "invalid_api_key",
        "invalid_json",
        "invalid_request",
        "invalid_type",
        "invalid_value",
        "journal_full",
        "ledger_backlog",
        "ledger_busy",
        "ledger_unavailable",
        "loop_detected",
        "malformed",
        "meter_failed",
        "method_not_allowed",
        "missing",
        "missing_api_key",
        "model_not_allowed",
        "model_not_found",
        "model_not_priced",
        "no_usage",
        "not_found",
        "organization_suspended",
        "provider_credentials_refused",
        "rate_limit_exceeded",
        "recovering",
        "redis",
        "request_timeout",
        "request_too_large",
        "revoked",
        "too_many_bodies",
        "too_many_connections",
        "too_many_elements",
        "too_many_fields",
        "too_many_objects",
        "unknown",
        "unknown_url",
        "unsupported_encoding",
        "unsupported_media_type",
        "unsupported_parameter",
        "upstream_error",
        "upstream_overloaded",
        "upstream_refused",
        "upstream_timeout",
        "upstream_truncated",
        "upstream_unreachable",
        "vendor_state_unsupported",
    }
)

# Bounds in microseconds for names that end in _seconds; the page shows seconds.
_SHORT = (100, 200, 300, 500, 750, 1_000, 1_500, 2_500, 5_000, 10_000, 50_000, 250_000, 1_000_000)
_CALLS = tuple(
    1_000 * ms for ms in (50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 120_000)
)
_JOBS = tuple(1_000 * ms for ms in (5, 10, 50, 100, 500, 1_000, 2_000, 5_000, 10_000, 60_000))
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

_CLOSED: Mapping[str, Collection[str]] = {
    "outcome": frozenset(Outcome),
    "unit": frozenset(Unit),
    "status": frozenset({"2xx", "3xx", "4xx", "5xx", "none"}),  # none: the client left before
    "partition": frozenset(str(number) for number in range(PARTITIONS_MAX)),
    "limit": frozenset({"wallet", "cap", "rate", "slots", "no_wallet"}),
    "phase": frozenset(
        {"pool", "dns", "connect", "tls", "send", "head", "body", "status", "answer"}
    ),
    "state": frozenset({"idle", "busy", "waiting"}),
    "result": frozenset({"applied", "rejected"}),
    "source": frozenset({"process", "redis", "postgres", "unknown"}),
    "kind": frozenset({"recorded", "late", "corrected", "swept"}),
    "cause": CAUSES,
}


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Joined(StrEnum):
    """What the figures of several processes together are."""

    SUM = "sum"
    MAX = "max"


class _Names:
    """The values a label may have."""

    def __init__(self) -> None:
        self.configured: dict[str, Collection[str]] = {}

    def kept(self, label: str, value: str) -> str:
        allowed = self.configured.get(label) or _CLOSED.get(label, ())
        return value if value in allowed else OTHER


class _Family:
    """One metric with all its series."""

    kind: ClassVar[Kind]

    def __init__(self, name: str, text: str, labels: Labels) -> None:
        self.name, self.text, self.labels = name, text, labels
        self.names = _Names()

    def _known(self, labels: Labels, series: Mapping[Labels, object]) -> Labels:
        """The labels under which to count, once a series of these very labels is not there."""
        assert len(labels) == len(self.labels), self.name
        kept = tuple(map(self.names.kept, self.labels, labels))
        if kept not in series and len(series) >= SERIES_MAX:
            return (OTHER,) * len(labels)
        return kept


class Counter(_Family):
    """What only grows; nothing negative is added."""

    kind = Kind.COUNTER

    def __init__(self, name: str, text: str, labels: Labels) -> None:
        super().__init__(name, text, labels)
        self.series: dict[Labels, int] = {} if labels else {(): 0}

    def add(self, labels: Labels = (), amount: int = 1) -> None:
        try:
            self.series[labels] += amount
        except KeyError:
            known = self._known(labels, self.series)
            self.series[known] = self.series.get(known, 0) + amount

    def reach(self, total: int, labels: Labels = ()) -> None:
        """Bring it up to a total that somebody else counts."""
        if labels not in self.series:
            labels = self._known(labels, self.series)
        self.series[labels] = max(total, self.series.get(labels, 0))


class Gauge(_Family):
    """What goes up and down; its owner sets it. `joined` says how processes' figures join."""

    kind = Kind.GAUGE

    def __init__(self, name: str, text: str, labels: Labels, joined: Joined) -> None:
        super().__init__(name, text, labels)
        self.joined = joined
        self.series: dict[Labels, float] = {}

    def set(self, value: float, labels: Labels = ()) -> None:
        if labels not in self.series:
            labels = self._known(labels, self.series)
        self.series[labels] = value


class Histogram(_Family):
    """How values are spread. Those of `_seconds` are observed as whole microseconds."""

    kind = Kind.HISTOGRAM

    def __init__(self, name: str, text: str, labels: Labels, bounds: tuple[int, ...]) -> None:
        super().__init__(name, text, labels)
        self.bounds = bounds
        # Of each series the count per bucket, the count above the last bound, the values' sum.
        self.series: dict[Labels, list[int]] = {}

    def observe(self, value: int, labels: Labels = ()) -> None:
        try:
            cells = self.series[labels]
        except KeyError:
            known = self._known(labels, self.series)
            cells = self.series.setdefault(known, [0] * (len(self.bounds) + 2))
        cells[bisect_left(self.bounds, value)] += 1
        cells[-1] += value


Family: TypeAlias = Counter | Gauge | Histogram


def _counter(name: str, text: str, *labels: str) -> Counter:
    return field(default_factory=lambda: Counter(name, text, labels))


def _gauge(name: str, text: str, *labels: str) -> Gauge:
    return field(default_factory=lambda: Gauge(name, text, labels, Joined.SUM))


def _highest(name: str, text: str, *labels: str) -> Gauge:
    return field(default_factory=lambda: Gauge(name, text, labels, Joined.MAX))


def _histogram(name: str, text: str, *labels: str, bounds: tuple[int, ...]) -> Histogram:
    return field(default_factory=lambda: Histogram(name, text, labels, bounds))


@dataclass(slots=True, kw_only=True, eq=False)
class Metrics:
    """The metrics of one process. Each is shown as `tollgate_<name>`."""

    calls: Counter = _counter(
        "calls_total", "Admitted calls that ended", "provider", "model", "outcome", "status"
    )
    calls_open: Gauge = _gauge("calls_open", "Calls admitted and not yet ended")
    calls_draining: Gauge = _gauge("calls_draining", "Answers read on after their client left")
    refusals: Counter = _counter(
        "refusals_total", "Calls not admitted, connections turned away", "cause"
    )
    call_seconds: Histogram = _histogram(
        "call_seconds", "From the whole request to the last byte", "provider", bounds=_CALLS
    )
    overhead_seconds: Histogram = _histogram(
        "overhead_seconds",
        "Our own share of a call, all waiting for vendors left out",
        bounds=_SHORT,
    )
    first_token_seconds: Histogram = _histogram(
        "time_to_first_token_seconds", "Until the answer's first event", "provider", bounds=_CALLS
    )
    usage: Counter = _counter("usage_total", "What was consumed", "provider", "model", "unit")
    charge: Counter = _counter("charge_nanousd_total", "What was charged", "provider", "model")
    usage_missing: Counter = _counter(
        "usage_missing_total", "Answers whose vendor reported no usage", "provider"
    )
    usage_estimated: Counter = _counter(
        "usage_estimated_total", "Calls charged by an estimate", "provider"
    )
    usage_unknown_fields: Counter = _counter(
        "usage_unknown_fields_total", "Reports with a field that nobody prices", "provider"
    )
    unmetered: Counter = _counter(
        "unmetered_total", "Calls a bug of ours cut short; 0, always", "cause"
    )

    auth_failures: Counter = _counter("auth_failures_total", "Keys turned away", "cause")
    key_lookups: Counter = _counter("key_lookups_total", "Where keys were found", "source")
    key_queries: Counter = _counter("key_queries_total", "Queries of Postgres for unknown keys")
    holds_refused: Counter = _counter("holds_refused_total", "What admission lacked", "limit")
    holds_open: Gauge = _gauge("holds_open", "Holds in Redis that have not ended", "partition")
    holds_lapsed: Counter = _counter("holds_lapsed_total", "Open calls whose hold was swept")
    ends_unread: Counter = _counter("ends_unread_total", "Ends that Redis could not read: a bug")
    hold_seconds: Histogram = _histogram(
        "hold_seconds", "Waiting for the ledger's answer to a hold", bounds=_SHORT
    )
    ledger_unavailable: Counter = _counter(
        "ledger_unavailable_total", "Calls not admitted as the ledger was away", "cause"
    )
    grace_calls: Counter = _counter(
        "grace_calls_total", "Calls let in by their organization's grace as the ledger was away"
    )
    grace_refused: Counter = _counter(
        "grace_refused_total", "Calls refused although their organization has a grace"
    )
    grace_unbooked: Gauge = _gauge(
        "grace_unbooked_nanousd", "Let in by grace, and not known to be in Postgres yet"
    )
    over_hold: Counter = _counter("settles_over_hold_total", "Charges above their hold", "provider")
    over_hold_nanousd: Counter = _counter(
        "over_hold_nanousd_total", "What was charged above holds", "provider"
    )
    conveyor_batch: Histogram = _histogram(
        "conveyor_batch_items", "Steps sent to Redis in one batch", bounds=_ITEMS
    )
    conveyor_wait_seconds: Histogram = _histogram(
        "conveyor_wait_seconds", "How long a batch's oldest hold has waited for it", bounds=_SHORT
    )

    journal_unproven: Gauge = _gauge("journal_unproven_ends", "Ends Postgres is not known to have")
    journal_oldest_seconds: Gauge = _highest(
        "journal_unproven_oldest_seconds", "The age of the oldest of them"
    )
    journal_bytes: Gauge = _gauge("journal_bytes", "What the journals take on disk")
    journal_full: Counter = _counter(
        "journal_full_total", "Calls refused and ends kept in Redis alone as the journal was full"
    )
    ends: Counter = _counter(
        "ends_total", "Ends in Postgres: recorded; of them late; corrected; swept", "kind"
    )
    stream_backlog: Gauge = _gauge(
        "stream_backlog_entries", "Entries that Postgres has not got yet", "partition"
    )
    backlog_share: Gauge = _gauge(
        "backlog_share", "Of what may wait for Postgres; above 1 nothing is admitted"
    )
    flush_lag_seconds: Gauge = _highest(
        "flush_lag_seconds", "The age of the oldest of them", "partition"
    )
    flush_seconds: Histogram = _histogram("flush_seconds", "One flush", bounds=_JOBS)
    dead_letters: Counter = _counter("dead_letters_total", "Entries that could not be read")
    drift: Gauge = _gauge(
        "ledger_drift_nanousd", "Redis against Postgres, as last audited; 0, always", "partition"
    )
    epochs: Counter = _counter("epochs_total", "Notices that a partition must be recovered")
    recoveries: Counter = _counter("recoveries_total", "Recoveries of a partition")
    recovery_seconds: Histogram = _histogram("recovery_seconds", "One recovery", bounds=_JOBS)

    retention_success: Gauge = _highest(
        "retention_success_timestamp_seconds", "When logs of calls were last seen to be in time"
    )
    call_log_days_dropped: Counter = _counter(
        "call_log_days_dropped_total", "Days of call logs that nobody keeps any longer"
    )
    call_log_rows_deleted: Counter = _counter(
        "call_log_rows_deleted_total", "Logs of calls deleted from days that others keep"
    )

    contents_kept: Counter = _counter(
        "contents_kept_total", "Calls of which was kept what was said, for who opted in"
    )
    contents_dropped: Counter = _counter(
        "contents_dropped_total", "The same that was not kept, as too much waited for Postgres"
    )

    upstream_connections: Gauge = _gauge(
        "upstream_connections", "Connections to vendors", "provider", "state"
    )
    upstream_errors: Counter = _counter(
        "upstream_errors_total", "Attempts that failed, and where", "provider", "phase"
    )
    upstream_retries: Counter = _counter(
        "upstream_retries_total", "Attempts after the first", "provider"
    )

    config_reloads: Counter = _counter("config_reloads_total", "Changed configurations", "result")
    log_lines_dropped: Counter = _counter("log_lines_dropped_total", "Lines nobody took in time")
    loop_lag_seconds: Histogram = _histogram(
        "loop_lag_seconds", "How late the event loop wakes up", "process", bounds=_SHORT
    )
    cpu_seconds: Gauge = _gauge("process_cpu_seconds", "CPU time used so far", "process")
    memory_bytes: Gauge = _gauge("process_resident_memory_bytes", "Memory in use", "process")

    def __post_init__(self) -> None:
        names = _Names()
        for family in self.families():
            family.names = names
        for cause in ("internal_error", "meter_failed"):
            self.unmetered.add((cause,), 0)  # on the page from the start, as nobody hopes to see it

    def families(self) -> Iterator[Family]:
        """All of them, in the order of the table."""
        for declared in fields(self):
            yield getattr(self, declared.name)

    def configure(
        self, *, providers: Collection[str] = (), models: Collection[str] = (), process: str = ""
    ) -> None:
        """Takes the names that may be labels; what is empty stays as it was."""
        for label, names in (("provider", providers), ("model", models), ("process", [process])):
            if any(names):
                self.calls.names.configured[label] = frozenset(names)
