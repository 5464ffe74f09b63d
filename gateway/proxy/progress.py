"""What an open call has consumed so far, told with its lease: what is charged if all else is lost.

The sweeper charges it when a gateway dies and nobody finds its journal. It is an estimate, and the
call's own end, should it come after all, corrects it.
"""

import logging
from collections.abc import Mapping

from msgspec.structs import replace

from gateway.proxy.live import LiveCall
from ledger.admission import Hold
from ledger.fcall import Renewal, renewal_of
from ledger.money import ZERO, Nanos
from ledger.record import EndKind, Outcome, encode
from ledger.usage import Source, Usage

log = logging.getLogger(__name__)


def renewal(calls: Mapping[bytes, LiveCall], hold: Hold) -> Renewal:
    """The new lease of an open call; with what it consumed, once its vendor was asked."""
    live = calls.get(hold.call_id)
    if live is None or live.is_ended or not live.attempts:
        return renewal_of(hold)
    try:
        charge, record = _so_far(live, hold)
    except Exception:  # the request's edge: a meter's bug must not cost this or any other lease
        log.exception("a call's progress cannot be told", extra={"call": live.id_text})
        return renewal_of(hold)
    return Renewal(hold.call_id, hold.lease_ms, charge, record)


def _so_far(live: LiveCall, hold: Hold) -> tuple[Nanos, bytes]:
    """The charge, never above the hold, and the record that would be kept."""
    usage = _usage(live)
    target, price = live.candidate.target, live.candidate.price
    charge = ZERO if price is None else Nanos(min(price.charge(usage), hold.amount))
    record = replace(
        live.record,
        kind=EndKind.LOST,
        outcome=Outcome.UNKNOWN,
        charge=charge,
        list_price=charge,
        held=hold.amount,
        usage=dict(usage.counts),
        usage_source=Source.ESTIMATED,
        reasoning=usage.reasoning,
        model_served=(usage.model or "")[:200],
        attempts=live.attempts,
        provider=target.provider,
        model_target=target.model,
        price_version="" if price is None else price.version,
    )
    return charge, encode(record)


def _usage(live: LiveCall) -> Usage:
    """What its stream has told; before that, or without one, the input that its vendor has."""
    if live.meter is not None and live.call.stream:
        usage = live.meter.usage()
        if usage.source is not Source.NONE:
            return usage
    return Usage(live.record.usage, source=Source.ESTIMATED)
