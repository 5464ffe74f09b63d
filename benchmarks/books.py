"""A ledger without a gateway: both servers, one organization with money, an active partition."""

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import asyncpg
import uuid_utils
from redis.asyncio import Redis

from gateway.embedded import Embedded, Urls
from ledger import record
from ledger.admission import End, Hold
from ledger.book import Book, CreditKind
from ledger.functions import install
from ledger.migrate import migrate
from ledger.money import Nanos
from ledger.record import EndKind, Record
from ledger.recovery import Recovery

PARTITIONS = 16
_CREDIT = Nanos(10**15)
_HELD, _CHARGE = Nanos(1_000_000), Nanos(174_000)


class Books:
    """The servers and the organization whose calls are made."""

    def __init__(self, urls: Urls, redis: Redis, *, organization_id: str, partition: int) -> None:
        self.urls, self.redis = urls, redis
        self.organization_id, self.partition = organization_id, partition

    @classmethod
    @asynccontextmanager
    async def opened(cls, folder: Path) -> AsyncIterator[Self]:
        """Start everything; the servers run on the cores this process is on now."""
        async with Embedded(folder) as servers:
            urls = servers.urls
            await migrate(urls.postgres, partitions=PARTITIONS)
            redis = Redis.from_url(urls.redis_admin)
            pool = await asyncpg.create_pool(urls.postgres, min_size=1, max_size=2)
            try:
                await install(redis)
                book = Book(pool)
                made = await book.create_organization("benchmark", actor="benchmark")
                await book.credit(
                    made.id, _CREDIT, kind=CreditKind.GRANT, reference="1", actor="benchmark"
                )
                # Loads the wallet from Postgres, as after any start.
                recovery = Recovery(urls.postgres, redis, owner="benchmark")
                await recovery.recover(made.partition)
                await recovery.close()
                yield cls(urls, redis, organization_id=made.id, partition=made.partition)
            finally:
                await pool.close()
                await redis.aclose()

    def call(self) -> tuple[Hold, End]:
        """A usual call: its hold, and how it will end."""
        call_id = uuid_utils.uuid7().bytes
        ticket = self._record(call_id)
        packed = record.encode(ticket)
        hold = Hold(call_id, self.partition, self.organization_id, _HELD, ticket=packed)
        ticket.kind, ticket.outcome = EndKind.SETTLED, record.Outcome.SUCCESS
        ticket.charge = ticket.list_price = _CHARGE
        ticket.usage = {"input": 13, "output": 9}
        ticket.usage_source, ticket.model_served = "reported", "gpt-benchmark"
        ticket.finished_us = ticket.admitted_us + 700_000
        ticket.attempts, ticket.status, ticket.first_byte_us = 1, 200, 600_000
        kept = record.encode(ticket)
        wallet = self.organization_id
        return hold, End(call_id, self.partition, wallet, EndKind.SETTLED, _CHARGE, kept, tokens=22)

    def _record(self, call_id: bytes) -> Record:
        return Record(
            call_id=call_id,
            organization_id=self.organization_id,
            project_id=self.organization_id,
            key_id=self.organization_id,
            member_id="",
            admitted_us=time.time_ns() // 1000,
            operation="chat/completions",
            provider="vendor",
            model_requested="gpt-benchmark",
            model_target="gpt-benchmark",
            price_version="0123456789abcdef",
            held=_HELD,
            usage={"input": 13},
            client=os.urandom(8).hex(),
        )
