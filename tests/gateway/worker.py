"""A worker's side of the ledger, as the tests of its journals meet it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from redis.asyncio import Redis

from gateway.journals import Journals
from ledger.admission import End
from ledger.conveyor import Conveyor
from ledger.frames import OpenCall
from ledger.journal import Journal
from ledger.money import Nanos
from ledger.record import EndKind, Record, encode
from tests.gateway.proxy.gatehouse import WALLET, configured, sheet_of
from tests.vendor import Vendor


def call_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def ticket(number: int, *, input_tokens: int = 100) -> bytes:
    return encode(
        Record(
            call_id=call_id(number),
            organization_id=WALLET,
            project_id="p",
            key_id="k",
            member_id="",
            admitted_us=1_700_000_000_000_000,
            operation="chat/completions",
            provider="vendor",
            model_requested="m",
            model_target="m",
            price_version="",
            held=1_000_000,
            usage={"input": input_tokens},
        )
    )


def opened(number: int) -> OpenCall:
    return OpenCall(call_id(number), 0, WALLET, 1_000_000, (), ticket(number))


def ended(number: int, charge: int = 5) -> End:
    record = ticket(number)
    return End(call_id(number), 0, WALLET, EndKind.SETTLED, Nanos(charge), record)


@asynccontextmanager
async def working(
    redis: Redis, redis_url: str, folder: Path, vendor: Vendor, *, unanswered_max: int = 20_000
) -> AsyncIterator[tuple[Journals, Conveyor, Journal]]:
    """The journals of a worker with a conveyor that runs."""
    sheet = sheet_of(configured(vendor))
    journal = Journal.create(folder, worker="here")
    journals = Journals(journal, folder, prices=lambda: sheet, unanswered_max=unanswered_max)
    conveyor = Conveyor(
        redis_url,
        partitions=1,
        on_settled=journals.on_settled,
        on_generation=journals.on_generation,
    )
    journals.attach(conveyor)
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(conveyor.run(), name="conveyor"),
            group.create_task(journals.hear_proofs(redis), name="proofs"),
            group.create_task(journals.retell(redis), name="retell"),
            group.create_task(journals.hand_over(), name="hand over"),
            group.create_task(journals.adopt_orphans(), name="orphans"),
        ]
        yield journals, conveyor, journal
        for task in tasks:
            task.cancel()
    journals.release()
    journal.close()
