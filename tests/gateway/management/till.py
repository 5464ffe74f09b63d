"""An office where credits are bought at the sandbox, and what to count there afterwards."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from gateway.management import cashier
from gateway.management.desk import Desk
from gateway.payments.sandbox import Sandbox
from tests.gateway.management.office import Browser, Got, Office, open_office
from tests.gateway.strict_pool import StrictPool

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
    while await cashier.finish_some(office.desk):
        pass


@asynccontextmanager
async def another_process(office: Office, postgres_url: str) -> AsyncIterator[Desk]:
    """Its connections end with it and roll back what was not committed."""
    async with StrictPool(postgres_url, max_size=4) as pool:
        till = Sandbox(pool, office.desk.now, office.desk.site)
        yield office.desk._replace(pool=pool, processor=till)
        pool.terminate()


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
