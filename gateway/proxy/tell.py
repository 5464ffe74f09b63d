"""What operators are told of each call: its metrics and its one line in the log."""

from typing import NamedTuple

from gateway import errors
from gateway.credential import AuthError
from gateway.logs import CALL_ENDED, Lines, json_of, told_of
from gateway.metrics import Labels, Metrics
from gateway.proxy.live import LiveCall
from ledger.admission import End, Refused
from ledger.record import Outcome
from ledger.usage import Source

_UNKNOWN_FIELD = "unknown_field:"
KINDS_MAX = 1_000  # of ends; a route has a handful of them
WHO_MAX = 10_000  # keys whose names are remembered as a line has them: about 3 MB
_LINE_MAX = 2_000  # characters; a line so long may have to be cut


class _Alike(NamedTuple):
    """What calls have in common that ended alike: their labels and most of their line."""

    calls: Labels
    charge: Labels
    usage: tuple[Labels, ...]
    line: str


class Teller:
    """Counts and logs; never raises, never waits."""

    def __init__(self, metrics: Metrics, lines: Lines) -> None:
        self._metrics, self._lines = metrics, lines
        self._alike: dict[tuple[object, ...], _Alike] = {}
        self._who: dict[tuple[str, str], str] = {}

    @property
    def remembered(self) -> int:
        """How many kinds of ends and keys it remembers."""
        return len(self._alike) + len(self._who)

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
        ours, told = {"call": id_text, "status": status}, {"code": error.code}
        if isinstance(error, errors.Unavailable):
            # While something is away every call comes to this, thousands a second.
            self._lines.outage("call refused", ours, told, cause=error.code)
        else:
            self._lines.outcome("call refused", ours, told)

    def turned_away(self, error: errors.GatewayError, limit: str) -> None:
        """A connection was one too many by this limit: what it would have asked is not known."""
        self._metrics.refusals.add((error.code,))
        told = {"code": error.code}
        self._lines.outage("connection refused", {"status": error.status_now}, told, cause=limit)

    def ended(self, live: LiveCall, end: End) -> None:
        """A call has its end: every figure of it is known."""
        record = live.record
        kind = (
            record.provider,
            live.route.name,
            record.operation,
            record.outcome,
            record.kind,
            record.status,
            record.usage_source,
            record.attempts,
            record.stream,
            record.charge > 0,
            *record.usage,
        )
        alike = self._alike.get(kind)
        if alike is None or record.flags or live.failures or record.charge > record.held:
            self._ended_plainly(live, end)
            if alike is None:
                self._remember(kind, live, end)
            return
        metrics = self._metrics
        metrics.calls.series[alike.calls] += 1
        if record.charge:
            metrics.charge.series[alike.charge] += record.charge
        counted = metrics.usage.series
        for labels, count in zip(alike.usage, record.usage.values(), strict=True):
            counted[labels] += count
        self._time(live)
        who = (record.organization_id, record.key_id)
        ours = alike.line % (
            live.id_text,
            self._who.get(who) or self._known_who(who),
            end.charge,
            *record.usage.values(),
            record.first_byte_us // 1000,
            (live.ended_s - live.began_s) * 1000,
        )
        self._lines.ended(ours, record.model_requested, live.code)

    def _ended_plainly(self, live: LiveCall, end: End) -> None:
        """The first call of a kind, and any that is odd."""
        metrics, record = self._metrics, live.record
        provider, model = record.provider, live.route.name
        metrics.calls.add(_labels_of(live))
        if record.charge:
            metrics.charge.add((provider, model), record.charge)
        for unit, count in record.usage.items():
            metrics.usage.add((provider, model, unit), count)
        self._time(live)
        self._count_oddities(live)
        told = told_of(record.model_requested, live.code)
        self._lines.outcome(CALL_ENDED, _ours(live, end), told)

    def _time(self, live: LiveCall) -> None:
        """How long each part of the call took."""
        metrics, provider = self._metrics, (live.record.provider,)
        began_s, ended_s, admitted_s = live.began_s, live.ended_s, live.admitted_s
        metrics.call_seconds.observe(int((ended_s - began_s) * 1e6), provider)
        if live.sent_s:
            ours_s = (live.sent_s - began_s) + (ended_s - live.upstream_done_s)
            metrics.overhead_seconds.observe(int(ours_s * 1e6))
        metrics.hold_seconds.observe(int((admitted_s - live.asked_s) * 1e6))
        if live.first_byte_s:
            waited_s = live.first_byte_s - admitted_s
            metrics.first_token_seconds.observe(int(waited_s * 1e6), provider)

    def _remember(self, kind: tuple[object, ...], live: LiveCall, end: End) -> None:
        """Let the next call of this kind go the short way, if it may."""
        metrics, record = self._metrics, live.record
        if record.flags or record.attempts > 1 or record.usage_source == Source.ESTIMATED:
            return
        labels, pair = _labels_of(live), (record.provider, live.route.name)
        units = tuple([(*pair, unit) for unit in record.usage])
        # What counts as "other" today may have a name tomorrow: only what has series of its own,
        # which stay for as long as the process, is remembered.
        if (
            labels not in metrics.calls.series
            or (record.charge and pair not in metrics.charge.series)
            or not metrics.usage.series.keys() >= {*units}
        ):
            return
        line = _line(live, end)
        if len(line) < _LINE_MAX:
            if len(self._alike) >= KINDS_MAX:
                self._alike.clear()
            self._alike[kind] = _Alike(labels, pair, units, line)

    def _known_who(self, who: tuple[str, str]) -> str:
        organization, key = who
        text = json_of({"organization": organization, "key": key})[1:-1]
        if len(self._who) >= WHO_MAX:
            self._who.clear()
        self._who[who] = text
        return text

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
        if record.flags and any(flag.startswith(_UNKNOWN_FIELD) for flag in record.flags):
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


def _labels_of(live: LiveCall) -> Labels:
    record = live.record
    status = f"{record.status // 100}xx" if record.status else "none"
    return (record.provider, live.route.name, record.outcome, status)


def _line(live: LiveCall, end: End) -> str:
    """Our part of the line of a call like this one, with places for what differs."""
    ours = _ours(live, end)
    units = ",".join([f"{_fixed(unit)}:%d" for unit in live.record.usage])
    places = {"call": '"%s"', "charge_nanos": "%d", "usage": f"{{{units}}}"}
    places |= {"first_byte_ms": "%d", "duration_ms": "%d"}
    members = []
    for name, value in ours.items():
        if name == "organization":
            members.append("%s")  # with the key, which follows
        elif name != "key":
            members.append(f"{_fixed(name)}:{places.get(name) or _fixed(value)}")
    return ",".join(members)


def _fixed(value: object) -> str:
    return json_of(value).replace("%", "%%")
