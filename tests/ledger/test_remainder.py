"""Rules of bringing the rest of the streams into Postgres, before a recovery loads."""

from typing import Any

import asyncpg

from ledger.admission import End
from ledger.book import Organization
from ledger.commit import Position
from ledger.money import Nanos
from ledger.record import EndKind, encode
from ledger.remainder import Fence, drain_older
from tests.ledger.deployment import Deployment, Line, new_call_id, record_of

LOCK = "SELECT FROM part WHERE number = $1 FOR UPDATE"


class Counted(asyncpg.Connection):
    """It counts how often it moves the watermark to another stream."""

    moves = 0

    async def execute(self, query: str, *args: Any, **options: Any) -> str:
        self.moves += "watermark_generation = $4" in query
        return str(await super().execute(query, *args, **options))


class Contended(asyncpg.Connection):
    """Its partition's row is a credit's when the second batch asks for it, until the next word."""

    deployment: Deployment
    acme: Organization
    credit: asyncpg.Connection
    times = 0

    async def fetchrow(self, query: str, *args: Any, **options: Any) -> Any:
        await self._ends()
        if "SKIP LOCKED" in query and not self.times:
            watermark = await self.deployment.watermark(self.acme)
            if watermark.stream_id != "0-0":
                self.times += 1
                await self.credit.execute("BEGIN")
                await self.credit.execute(LOCK, self.acme.partition)
        return await super().fetchrow(query, *args, **options)

    async def execute(self, query: str, *args: Any, **options: Any) -> str:
        await self._ends()
        return str(await super().execute(query, *args, **options))

    async def _ends(self) -> None:
        if self.credit.is_in_transaction():
            await self.credit.execute("COMMIT")


async def recovering(deployment: Deployment, acme: Organization, generation: int) -> Fence:
    """A recovery in this generation has claimed the partition and frozen it."""
    fence = Fence(acme.partition, generation, "the test's")
    await deployment.pool.execute(
        "UPDATE part SET state = 'recovering', generation = $2, owner = $3,"
        " lease_until = now() + interval '1 minute' WHERE number = $1",
        *fence,
    )
    await deployment.partition(acme).freeze(generation)
    return fence


async def refused_by_postgres(deployment: Deployment, acme: Organization, charge: int) -> None:
    """A call whose record has a number that no column takes."""
    call_id = await deployment.hold(acme)
    record = record_of(acme, call_id, charge=charge)
    record.status = 2**40
    end = End(call_id, acme.partition, acme.id, EndKind.SETTLED, Nanos(charge), encode(record), ())
    generation = await deployment.generation(acme)
    assert (await deployment.partition(acme).settle(generation, end)).outcome == "settled"


async def test_what_was_read_and_could_not_be_committed_is_read_again(
    deployment: Deployment,
) -> None:
    acme = await deployment.active()
    for charge in (1, 2, 4):
        await deployment.call(acme, charge)
    await refused_by_postgres(deployment, acme, 8)
    fence = await recovering(deployment, acme, 2)
    async with deployment.connected() as credit:
        connection = await asyncpg.connect(deployment.url, connection_class=Contended)
        connection.deployment, connection.acme, connection.credit = deployment, acme, credit
        drained = await drain_older(
            connection, deployment.partition(acme), fence, Position(1, "0-0")
        )
        await connection.close()

    assert connection.times == 1, "the row was somebody else's once"
    assert drained == 4
    assert await deployment.watermark(acme) == Position(2, "0-0")
    assert await deployment.count("usage_record") == 4
    assert await deployment.balance(acme) == 1_000_000 - (1 + 2 + 4 + 8)
    assert await deployment.differences() == []


async def test_generations_without_a_stream_are_passed_over_in_one_statement(
    deployment: Deployment,
) -> None:
    acme = await deployment.active()
    await deployment.call(acme, 3)
    tag = f"tg:{{p{acme.partition:02d}}}:"
    entry: dict[Any, Any] = Line(new_call_id(), acme, EndKind.SETTLED, 4).fields()
    await deployment.redis.xadd(f"{tag}log:1700", entry)
    fence = await recovering(deployment, acme, 2_000)
    connection = await asyncpg.connect(deployment.url, connection_class=Counted)
    drained = await drain_older(connection, deployment.partition(acme), fence, Position(1, "0-0"))
    await connection.close()

    assert (drained, connection.moves) == (2, 2)
    assert await deployment.watermark(acme) == Position(2_000, "0-0")
    assert await deployment.balance(acme) == 1_000_000 - (3 + 4)
