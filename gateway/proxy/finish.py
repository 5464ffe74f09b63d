"""The last phase: what a call consumed and costs, as its record and its end. Pure."""

from gateway.errors import GatewayError, GatewayTimeout
from gateway.proxy.live import LiveCall
from gateway.settings import ChargeBy
from ledger.admission import End
from ledger.money import ZERO, Nanos
from ledger.pricing import charge_reported
from ledger.record import EndKind, Outcome, encode
from ledger.usage import NOTHING, Source, Usage

_FREE_FLAG = "unpriced"


def outcome_of(live: LiveCall, error: GatewayError) -> Outcome:
    """How a call has ended that is answered with this error."""
    if not live.attempts:
        return Outcome.FAILED  # ours: no vendor was asked
    return Outcome.TIMEOUT if isinstance(error, GatewayTimeout) else Outcome.UPSTREAM_ERROR


def end_of(live: LiveCall, outcome: Outcome, *, finished_us: int) -> End:
    """How this call ended; fills `live.record` as it will be kept."""
    usage = NOTHING if live.meter is None else live.meter.usage()
    record, hold = live.record, live.hold
    charge, list_price = _charges(live, usage, record.flags)
    if outcome is Outcome.LIMITED and usage.source is Source.ESTIMATED:
        assert live.growth is not None, "only a hold that grows is used up"
        charge = min(charge, live.growth.allowed)
    kind = EndKind.RELEASED if usage.source is Source.NONE else EndKind.SETTLED
    record.kind = kind
    record.outcome = outcome
    record.finished_us = finished_us
    record.charge, record.list_price = charge, list_price
    record.reported_cost = usage.reported_nanos
    record.usage = dict(usage.counts)
    if 0 in record.usage.values():
        record.usage = {unit: count for unit, count in usage.counts.items() if count}
    record.usage_source = usage.source
    record.reasoning = usage.reasoning
    record.model_served = (usage.model or "")[:200]
    record.tier = (usage.tier or "")[:40]
    record.attempts = live.attempts
    record.status = live.status
    record.flags += usage.flags
    if live.first_byte_s:
        record.first_byte_us = int((live.first_byte_s - live.admitted_s) * 1e6)
    if live.attempts:
        target, price = live.candidate.target, live.candidate.price
        record.provider, record.model_target = target.provider, target.model
        record.price_version = "" if price is None else price.version
    return End(
        live.call_id,
        hold.partition,
        hold.wallet,
        kind,
        charge,
        encode(record),
        hold.caps,
        usage.tokens(),
    )


def _charges(live: LiveCall, usage: Usage, flags: list[str]) -> tuple[Nanos, Nanos]:
    """The charge and the list price; what is odd about them is added to `flags`."""
    if usage.source is Source.NONE:
        return ZERO, ZERO
    price = live.candidate.price
    if price is None:
        flags.append(_FREE_FLAG)
        return ZERO, ZERO
    flags += price.flags(usage)
    list_price = price.charge(usage)
    if live.candidate.provider.charge_by is ChargeBy.REPORTED:
        return charge_reported(usage, list_price), list_price
    return list_price, list_price
