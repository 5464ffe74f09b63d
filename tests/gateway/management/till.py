"""An office where credits are bought at the sandbox, and what to count there afterwards."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Generator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from gateway.management.cashier import Cashier
from tests.gateway.management.office import Browser, Got, Office, open_office

SANDBOX = "payments: {processor: sandbox, eur_per_usd: 0.9}"
TEN_USD = 10_000_000_000


@asynccontextmanager
async def open_till(
    postgres_url: str, redis_url: str, folder: Path, *, changes: str = SANDBOX
) -> AsyncIterator[Office]:
    """The office of the sandbox."""
    async with open_office(postgres_url, redis_url, folder, changes=changes) as office:
        yield office


async def method_of(
    browser: Browser, does: str = "approve", *, owner: str = "person", kind: str = "card"
) -> str:
    """A saved method of theirs, or of the organization at hand; its id."""
    started = await browser.post("/payment-methods", {"kind": kind, "owner": owner})
    assert started.status == 201, started
    path = f"/payment-methods/{started.body['id']}/confirmation"
    done = await browser.post(path, {"sandbox_value": does})
    assert done.status == 200, done
    return str(done.body["id"])


async def buys(
    browser: Browser, method_id: str | None, *, key: str = "", amount: int = TEN_USD, **more: Any
) -> Got:
    """One purchase, under a key of its own if none is given."""
    body = {"amount_nanos": amount, "method_id": method_id, **more}
    return await browser.post("/purchases", body, headers={"Idempotency-Key": key or str(uuid4())})


async def tops_up(browser: Browser, method_id: str | None = None, **terms: Any) -> Got:
    """The organization at hand is topped up from now on, if that was all right."""
    wanted = {"is_enabled": True, "method_id": method_id, **terms}
    return await browser.put("/auto-top-up", wanted)


async def everything_is_finished(office: Office) -> None:
    """An hour passes, and the job does all that is left to do."""
    office.clock.ahead += timedelta(hours=1, minutes=1)
    while await Cashier(office.desk).finish_some():
        pass


async def credited(office: Office) -> list[int]:
    """The amounts of all payments that the ledger has."""
    rows = await office.pool.fetch(
        "SELECT p.amount FROM ledger_transaction AS t JOIN posting AS p USING (partition, number)"
        " WHERE t.kind = 'payment' AND p.amount > 0"
    )
    return [row["amount"] for row in rows]


async def charged(office: Office) -> list[int]:
    """What the sandbox took, in cents, one for each charge."""
    rows = await office.pool.fetch(
        "SELECT (body ->> 'amount')::bigint AS amount FROM sandbox_object"
        " WHERE kind = 'payment' AND body ->> 'progress' = 'paid'"
    )
    return [row["amount"] for row in rows]


class Cut:
    """Runs a coroutine, and cancels it while it waits for the n-th time."""

    def __init__(self, work: Coroutine[Any, Any, Any], at: int) -> None:
        self._work, self._left = work, at

    def __await__(self) -> Generator[Any, Any, Any]:
        inner = self._work.__await__()
        step = partial(inner.send, None)
        while True:
            try:
                waited = step()
            except StopIteration as end:
                return end.value
            self._left -= 1
            if not self._left:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            try:
                step = partial(inner.send, (yield waited))
            except BaseException as error:  # noqa: BLE001 - whatever comes is passed on
                step = partial(inner.throw, error)
