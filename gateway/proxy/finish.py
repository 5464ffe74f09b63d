"""The last phase: what a call consumed and costs, as its record and its end. Pure."""

from collections.abc import Callable

from gateway.proxy.live import LiveCall
from gateway.settings import ChargeBy
from ledger.admission import End
from ledger.money import ZERO, Nanos
from ledger.pricing import charge_reported
from ledger.record import EndKind, Outcome, encode
from ledger.usage import NOTHING, Source, Usage

_FREE_FLAG = "unpriced"


def end_of(live: LiveCall, outcome: Outcome, *, finished_us: int) -> End:
    """How this call ended; fills `live.record` as it will be kept."""
    usage = NOTHING if live.meter is None else live.meter.usage()
    record = live.record
    charge, list_price = _charges(live, usage, record.flags.append)
    kind = EndKind.RELEASED if usage.source is Source.NONE else EndKind.SETTLED
    record.kind = kind
    record.outcome = outcome
    record.finished_us = finished_us
    record.charge, record.list_price = charge, list_price
    record.reported_cost = usage.reported_nanos
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
        call_id=live.call_id,
        partition=live.hold.partition,
        wallet=live.hold.wallet,
        kind=kind,
        charge=charge,
        record=encode(record),
        caps=live.hold.caps,
        tokens=usage.input_tokens() + usage.output_tokens(),
    )


def _charges(live: LiveCall, usage: Usage, flag: Callable[[str], None]) -> tuple[Nanos, Nanos]:
    if usage.source is Source.NONE:
        return ZERO, ZERO
    price = live.candidate.price
    if price is None:
        flag(_FREE_FLAG)
        return ZERO, ZERO
    for odd in price.flags(usage):
        flag(odd)
    list_price = price.charge(usage)
    if live.candidate.provider.charge_by is ChargeBy.REPORTED:
        return charge_reported(usage, list_price), list_price
    return list_price, list_price
