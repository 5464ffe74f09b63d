"""The cashier asks the processor: for a payment when it begins, and what became of it later.

It may die after any step. A payment that was begun before is looked for at the processor's first,
and asked for again only if it is not there and the processor still knows the id it was asked under.
"""

import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar

from gateway.management.customers import customer_of
from gateway.management.desk import Desk
from gateway.management.payments import (
    Purpose,
    Row,
    State,
    credit,
    later,
    pause_of,
    processor_of,
    settle,
    take_some,
)
from gateway.management.refunds import finish_some as finish_some_refunds
from gateway.payments.processor import (
    MethodKind,
    Order,
    Payment,
    Processor,
    ProcessorAway,
    ProcessorRefused,
    Progress,
)
from ledger.money import usd_text

log = logging.getLogger(__name__)

_BATCH = 10
ASKED_AGAIN = timedelta(hours=23)  # Stripe keeps what it answered under a key for 24 h at least

_SAYS = {Purpose.PURCHASE: "Credits of", Purpose.TOP_UP: "Credits of", Purpose.PLAN: "Plan for"}
_METHOD = "SELECT reference, kind FROM payment_method WHERE id = $1"

Found = TypeVar("Found")


async def advance(desk: Desk, row: Row) -> Row:
    """Bring a payment as far as it goes now; the row afterwards. It is the caller's by a lease.

    Away or silent, the processor is asked again by the job: the row is then as it was.
    """
    processor = processor_of(desk)
    if row.processor != processor.name or row.ended_at is not None:
        return row
    if row.state is State.PAID:
        return await credit(desk, row)
    try:
        found = await _asked(desk, processor, row)
    except ProcessorAway as error:
        said = {"payment": str(row.id), "reason": str(error), "cause": "processor"}
        log.warning("the payment processor does not answer", extra=said)
        found = None
    if found is None:
        await later(desk.pool, row, desk.now(), pause_of(row.tries))
        return row
    done = await settle(desk, found, processor=processor.name) or row
    if done.ended_at is None and row.tries:
        await later(desk.pool, done, desk.now(), pause_of(row.tries))
    return done


async def _asked(desk: Desk, processor: Processor, row: Row) -> Payment | None:
    """What the processor says of it, having been asked for it if it was not yet."""
    is_new = row.state is State.PENDING
    try:
        order = await _order(desk, row)
        if not is_new or row.tries:
            found = await _looked(processor.find, order)
            if found is not None or not is_new:
                return found
        if desk.now() - row.created_at > ASKED_AGAIN:
            return _refused(row, "not_asked_in_time")
        if row.method_id is None:
            return await processor.checkout(order, back_url=f"{desk.site}/paid")
        return await processor.charge(order)
    except ProcessorRefused as error:
        if not is_new:
            raise ProcessorAway(str(error)) from error
        said = {"payment": str(row.id), "code": error.code, "reason": str(error)}
        log.warning("the payment processor refuses", extra={**said, "cause": "processor"})
        return _refused(row, error.code)


async def _looked(find: Callable[[Order], Awaitable[Found]], order: Order) -> Found:
    """A look that is refused tells nothing of the payment."""
    try:
        return await find(order)
    except ProcessorRefused as error:
        raise ProcessorAway(str(error)) from error


def _refused(row: Row, code: str) -> Payment:
    return Payment(str(row.id), Progress.DECLINED, row.coins, decline=code, is_hard=True)


async def _order(desk: Desk, row: Row) -> Order:
    method = None
    if row.method_id is not None:
        method = await desk.pool.fetchrow(_METHOD, row.method_id)
    return Order(
        id=str(row.id),
        customer=await customer_of(desk, row.owner),
        coins=row.coins,
        says=f"{_SAYS[row.purpose]} {usd_text(row.amount)}",
        began_at=row.created_at,
        method=None if method is None else method["reference"],
        method_kind=None if method is None else MethodKind(method["kind"]),
        reference=row.reference,
        checkout=row.checkout,
    )


async def finish_some(desk: Desk) -> int:
    """Finish what was left half-way, and look at what waits for banks and payers, of what is due
    the next few; how many there were."""
    rows = await take_some(desk, _BATCH)
    for row in rows:
        await advance(desk, row)
    return len(rows) + await finish_some_refunds(desk, _BATCH)
