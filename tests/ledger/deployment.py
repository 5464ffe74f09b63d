"""A ledger on real servers, and the words its tests are told in."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import asyncpg
import msgspec
import uuid_utils
from redis.asyncio import Redis

import ledger.library
from ledger.admission import Cap, End, Held, Hold
from ledger.book import Book, CreditKind, Organization
from ledger.commit import Committed, Position, Source, commit_all
from ledger.drain import Drain, acknowledge
from ledger.fcall import execute
from ledger.functions import Partition, install
from ledger.money import Nanos
from ledger.record import EndKind, Outcome, Record, encode
from ledger.recovery import Recovered, Recovery
from ledger.stream import Window, parse
from ledger.verify import verify
from ledger.withdrawals import Wanted, WithdrawalKind, Withdrawals
from ledger.withheld import conclude

LIBRARY = Path(ledger.library.__file__).parent / "lua" / "tollgate.lua"
KEY_ID = str(UUID(int=7))
ACTOR = "a test"


def new_call_id() -> bytes:
    return uuid_utils.uuid7().bytes


def record_of(
    organization: Organization, call_id: bytes, *, charge: int, output: int = 20
) -> Record:
    return Record(
        call_id=call_id,
        organization_id=organization.id,
        project_id=organization.project_id,
        key_id=KEY_ID,
        member_id="",
        admitted_us=int.from_bytes(call_id[:6], "big") * 1000,
        operation="chat/completions",
        provider="openai",
        model_requested="small",
        model_target="small-1",
        price_version="",
        held=1000,
        kind=EndKind.SETTLED,
        outcome=Outcome.SUCCESS,
        finished_us=int.from_bytes(call_id[:6], "big") * 1000 + 5,
        charge=charge,
        list_price=charge,
        usage={"input": 10, "output": output, "cache_read": 3},
        usage_source="reported",
        model_served="small-1-2026",
        attempts=1,
        status=200,
        flags=["odd"],
    )


class Line(NamedTuple):
    """An entry as Redis would log it."""

    call_id: bytes
    organization: Organization
    kind: EndKind
    charge: int
    moved: bool = True
    windows: tuple[Window, ...] = ()

    def fields(self) -> dict[bytes, bytes]:
        record = record_of(self.organization, self.call_id, charge=self.charge)
        return entry_fields(self, encode(record))


def entry_fields(line: Line, record: bytes) -> dict[bytes, bytes]:
    return {
        b"k": line.kind.value.encode(),
        b"m": b"1" if line.moved else b"0",
        b"i": line.call_id,
        b"w": line.organization.id.encode(),
        b"c": str(line.charge).encode(),
        b"x": packed_windows(line.windows),
        b"r": record,
    }


def packed_windows(windows: Sequence[Window]) -> bytes:
    return msgspec.msgpack.encode([list(window) for window in windows])


class Deployment:
    """One Postgres, one Valkey, and what a test does with them."""

    def __init__(self, url: str, pool: asyncpg.Pool, redis: Redis) -> None:
        self.url, self.pool, self.redis = url, pool, redis
        self.book = Book(pool)
        self.withdrawals = Withdrawals(pool, redis)
        self.recovery = Recovery(url, redis, owner="the test's")
        self._next = 0

    # Money ---------------------------------------------------------------------------------------

    async def organization(self, credit: int = 1_000_000) -> Organization:
        made = await self.book.create_organization("Acme", actor=ACTOR)
        if credit:
            await self.credit(made, credit)
        return made

    async def credit(self, organization: Organization, amount: int, reference: str = "") -> None:
        self._next += 1
        await self.book.credit(
            organization.id,
            Nanos(amount),
            kind=CreditKind.GRANT,
            reference=reference or f"credit {self._next}",
            actor=ACTOR,
        )

    def wanted(
        self,
        organization: Organization,
        amount: int,
        *,
        to: Organization | None = None,
        reference: str = "",
    ) -> Wanted:
        """A refund or, with `to`, a transfer."""
        self._next += 1
        return Wanted(
            organization.id,
            Nanos(amount),
            WithdrawalKind.REFUND if to is None else WithdrawalKind.TRANSFER,
            reference or f"withdrawal {self._next}",
            ACTOR,
            "a reason",
            None if to is None else to.id,
        )

    async def conclude(self, organization: Organization) -> int:
        """Do what the job does for the organization's partition."""
        generation = await self.generation(organization)
        async with self.connected() as connection:
            partition = self.partition(organization)
            return await conclude(connection, partition, generation=generation)

    async def balance(self, organization: Organization) -> int:
        wallet = await self.book.wallet(organization.id)
        assert wallet is not None
        return wallet.balance

    # Redis ---------------------------------------------------------------------------------------

    async def recover(self, organization: Organization) -> Recovered | None:
        return await self.recovery.recover(organization.partition)

    async def active(self, credit: int = 1_000_000) -> Organization:
        """An organization whose partition is loaded."""
        made = await self.organization(credit)
        assert await self.recover(made) is not None
        return made

    async def newer(self, *, by: int) -> None:
        """Have Redis run the library as a release so much later would name it."""
        code = LIBRARY.read_text()
        found = re.search(r"^-- version: (\d+)$", code, re.MULTILINE)
        assert found is not None
        code = code.replace(found[0], f"-- version: {int(found[1]) + by}")
        await execute(self.redis, "FUNCTION LOAD", "REPLACE", code)

    def partition(self, organization: Organization) -> Partition:
        return Partition(self.redis, organization.partition)

    async def generation(self, organization: Organization) -> int:
        return (await self.partition(organization).state()).generation

    async def hold(
        self, organization: Organization, amount: int = 1000, caps: tuple[Cap, ...] = ()
    ) -> bytes:
        call_id = new_call_id()
        record = record_of(organization, call_id, charge=0)
        hold = Hold(
            call_id,
            organization.partition,
            organization.id,
            Nanos(amount),
            caps,
            ticket=encode(record),
        )
        generation = await self.generation(organization)
        assert isinstance(await self.partition(organization).hold(generation, hold), Held)
        return call_id

    def end(
        self, organization: Organization, call_id: bytes, charge: int, caps: tuple[Cap, ...] = ()
    ) -> End:
        record = encode(record_of(organization, call_id, charge=charge))
        return End(
            call_id,
            organization.partition,
            organization.id,
            EndKind.SETTLED,
            Nanos(charge),
            record,
            caps,
        )

    async def settle(
        self, organization: Organization, call_id: bytes, charge: int, caps: tuple[Cap, ...] = ()
    ) -> str:
        generation = await self.generation(organization)
        end = self.end(organization, call_id, charge, caps)
        return (await self.partition(organization).settle(generation, end)).outcome

    async def late(
        self, organization: Organization, call_id: bytes, charge: int, caps: tuple[Cap, ...] = ()
    ) -> str:
        generation = await self.generation(organization)
        end = self.end(organization, call_id, charge, caps)
        return (await self.partition(organization).late(generation, end)).outcome

    async def call(
        self, organization: Organization, charge: int, caps: tuple[Cap, ...] = ()
    ) -> bytes:
        call_id = await self.hold(organization, caps=caps)
        assert await self.settle(organization, call_id, charge, caps) == "settled"
        return call_id

    async def free(self, organization: Organization) -> int:
        generation = await self.generation(organization)
        image = await self.partition(organization).snap(generation, [organization.id])
        return image.wallets[0].free

    # Postgres ------------------------------------------------------------------------------------

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[asyncpg.Connection]:
        connection = await asyncpg.connect(self.url)
        try:
            yield connection
        finally:
            await connection.close()

    async def flush(self, organization: Organization) -> int:
        """Bring everything of the organization's partition into Postgres."""
        flushed = 0
        async with self.connected() as connection:
            while True:
                after = await self.watermark(organization)
                step = await Drain(connection).step(self.partition(organization), after)
                generation = await self.generation(organization)
                await acknowledge(self.partition(organization), generation, step.committed)
                if not step.read:
                    return flushed
                flushed += sum(committed.entries for committed in step.committed)

    async def write(
        self, organization: Organization, entries: Sequence[dict[bytes, bytes] | Line]
    ) -> list[Committed]:
        """Commit these entries as if the partition's stream had them next."""
        await self.pool.execute(
            "UPDATE part SET state = 'active' WHERE number = $1", organization.partition
        )
        sources = []
        after = await self.watermark(organization)
        start = int(after.stream_id.partition("-")[0])
        for index, entry in enumerate(entries):
            fields = entry.fields() if isinstance(entry, Line) else entry
            sources.append(Source(parse(f"{start + index + 1}-0", fields), fields))
        async with self.connected() as connection:
            return await commit_all(
                connection, organization.partition, sources=sources, after=after
            )

    async def watermark(self, organization: Organization) -> Position:
        row = await self.pool.fetchrow(
            "SELECT watermark_generation, watermark_id FROM part WHERE number = $1",
            organization.partition,
        )
        assert row is not None
        return Position(*row)

    async def differences(self) -> list[str]:
        async with self.connected() as connection:
            return [str(difference) for difference in await verify(connection)]

    async def count(self, table: str) -> int:
        return int(await self.pool.fetchval(f"SELECT count(*) FROM {table}"))  # noqa: S608 - ours


@asynccontextmanager
async def deployed(url: str, redis_url: str) -> AsyncIterator[Deployment]:
    redis = Redis.from_url(redis_url)
    await install(redis)
    async with asyncpg.create_pool(url, min_size=0, max_size=4) as pool:
        deployment = Deployment(url, pool, redis)
        try:
            yield deployment
        finally:
            await deployment.recovery.close()
            await redis.aclose()


async def until(condition: Callable[[], Awaitable[bool]], *, within_s: float = 10.0) -> None:
    """Wait for what must come true, as short as possible."""
    give_up_s = time.monotonic() + within_s
    while not await condition():
        assert time.monotonic() < give_up_s, f"not within {within_s} s"
        await asyncio.sleep(0.005)
