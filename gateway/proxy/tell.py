"""What operators are told of each call: its metrics and its one line in the log."""

from gateway import errors
from gateway.credential import AuthError
from gateway.logs import Lines
from gateway.metrics import Metrics
from gateway.proxy.live import LiveCall
from ledger.admission import End, Refused
from ledger.record import Outcome
from ledger.usage import Source

_UNKNOWN_FIELD = "unknown_field:"


class Teller:
    """Counts and logs; never raises, never waits."""

    def __init__(self, metrics: Metrics, lines: Lines) -> None:
        self._metrics, self._lines = metrics, lines

    def not_held(self, refused: Refused) -> None:
        """The ledger refused a hold."""
        self._metrics.holds_refused.add((refused.code,))

    def ledger_away(self, why: str) -> None:
        """The ledger gave no answer to a hold."""
        self._metrics.ledger_unavailable.add((why,))

    def journal_full(self) -> None:
        """The journal had no room for a call or its end."""
        self._metrics.journal_full.add()

    def unmetered(self, cause: str) -> None:
        """A bug of ours cut the call short: its charge may be an estimate."""
        self._metrics.unmetered.add((cause,))

    def refused(self, error: errors.GatewayError, id_text: str, status: int) -> None:
        """A call was turned away; the ledger knows nothing of it."""
        self._metrics.refusals.add((error.code,))
        if isinstance(error, AuthError):
            self._metrics.auth_failures.add((error.reason,))
        self._lines.outcome(
            "call refused", {"call": id_text, "status": status}, {"code": error.code}
        )

    def ended(self, live: LiveCall, end: End) -> None:
        """A call has its end: every figure of it is known."""
        metrics, record = self._metrics, live.record
        provider, model = record.provider, live.route.name
        status = f"{record.status // 100}xx" if record.status else "none"
        metrics.calls.add((provider, model, record.outcome, status))
        if record.charge:
            metrics.charge.add((provider, model), record.charge)
        for unit, count in record.usage.items():
            metrics.usage.add((provider, model, unit), count)
        metrics.call_seconds.observe(_microseconds(live.ended_s - live.began_s), (provider,))
        ours_s = (live.sent_s - live.began_s) + (live.ended_s - live.upstream_done_s)
        if live.sent_s:
            metrics.overhead_seconds.observe(_microseconds(ours_s))
        metrics.hold_seconds.observe(_microseconds(live.admitted_s - live.asked_s))
        if live.first_byte_s:
            waited_s = live.first_byte_s - live.admitted_s
            metrics.first_token_seconds.observe(_microseconds(waited_s), (provider,))
        self._count_oddities(live)
        told = {"model": record.model_requested}
        if live.code:
            told["code"] = live.code
        self._lines.outcome("call ended", _ours(live, end), told)

    def _count_oddities(self, live: LiveCall) -> None:
        """What a good call has none of."""
        metrics, record = self._metrics, live.record
        provider = record.provider
        if record.charge > record.held:
            metrics.over_hold.add((provider,))
            metrics.over_hold_nanousd.add((provider,), record.charge - record.held)
        for failure in live.failures:
            metrics.upstream_errors.add(failure)
        if live.attempts > 1:
            metrics.upstream_retries.add((provider,), live.attempts - 1)
        if record.usage_source == Source.ESTIMATED:
            metrics.usage_estimated.add((provider,))
            if record.outcome == Outcome.SUCCESS:
                metrics.usage_missing.add((provider,))
        if any(flag.startswith(_UNKNOWN_FIELD) for flag in record.flags):
            metrics.usage_unknown_fields.add((provider,))


def _ours(live: LiveCall, end: End) -> dict[str, object]:
    record = live.record
    return {
        "call": live.id_text,
        "organization": record.organization_id,
        "key": record.key_id,
        "operation": record.operation,
        "provider": record.provider,
        "route": live.route.name,
        "outcome": record.outcome,
        "kind": end.kind,
        "status": record.status,
        "charge_nanos": end.charge,
        "usage": record.usage,
        "usage_source": record.usage_source,
        "attempts": record.attempts,
        "stream": record.stream,
        "first_byte_ms": record.first_byte_us // 1000,
        "duration_ms": int((live.ended_s - live.began_s) * 1000),
        "flags": record.flags,
    }


def _microseconds(seconds: float) -> int:
    return int(seconds * 1e6)
