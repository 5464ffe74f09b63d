"""What must hold once traffic has stopped: the books agree, and nothing is held.

One record per call, the ledger's debits equal to the charges, Redis equal to Postgres, no hold left
over, and no socket that somebody forgot to close.
"""

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import asyncpg

from ledger.functions import OpenHold, Partition, WalletImage
from tests.scenarios.deployment import P1, Deployment, Key
from tests.vendor import Entry

SETTLED_S_MAX = 30.0
_NANOS = {unit: round(float(usd) * 1000) for unit, usd in P1.items()}  # of a token
_CLOSE_WAIT = "08"  # of /proc/net/tcp: the peer has closed, and we have not

_RECORDS = """
    SELECT record.*, log.status, log.attempts, log.stream, log.flags, log.first_byte_us
    FROM usage_record AS record LEFT JOIN call_log_standard AS log USING (call_id)
    WHERE record.organization_id = $1::uuid
    ORDER BY call_id
"""
_WALLET = """
    SELECT wallet.id::text AS id, wallet.partition, base, spent,
        (SELECT coalesce(-sum(amount), 0) FROM posting
         JOIN ledger_transaction USING (partition, number)
         WHERE account = wallet.id::text AND kind = 'flush')::bigint AS debits
    FROM wallet WHERE organization_id = $1::uuid
"""


class Books(NamedTuple):
    """All that is known of an organization's money, in both stores."""

    records: list[asyncpg.Record]
    base: int
    spent: int
    debits: int  # what the postings took
    redis: WalletImage
    open: list[OpenHold]

    @property
    def charges(self) -> int:
        """The sum over the records."""
        return sum(row["charge"] for row in self.records)


async def assert_books(
    tollgate: Deployment, key: Key, *, records: int, charge: int | None = None
) -> list[asyncpg.Record]:
    """The organization's records, oldest first, once everything about them is right.

    `records`: exactly so many calls were admitted. `charge`: what they cost together, nano-USD.
    """
    __tracebackhide__ = True
    books = await _settled(tollgate, key.organization_id, records)
    ids = [row["call_id"] for row in books.records]
    assert len(ids) == records, f"{len(ids)} records of {records} calls"
    assert len(set(ids)) == records, "a call has two records"
    assert not books.open, f"{len(books.open)} holds are left"
    assert books.redis.held == 0
    assert books.debits == books.spent == books.charges, "the ledger is not what was charged"
    assert books.redis.base - books.redis.spent == books.base - books.spent, "Redis != Postgres"
    assert books.redis.free == books.base - books.spent
    if charge is not None:
        assert books.charges == charge, f"{books.charges} were charged instead of {charge}"
    return books.records


async def assert_nothing_recorded(tollgate: Deployment, key: Key) -> None:
    """No call of this organization was ever admitted."""
    await assert_books(tollgate, key, records=0, charge=0)


async def assert_no_forgotten_sockets(*ports: int) -> None:
    """No connection from or to these ports that its peer has closed is kept open by us."""
    async with asyncio.timeout(SETTLED_S_MAX):
        while _forgotten(ports):
            await asyncio.sleep(0.05)


async def open_holds(tollgate: Deployment, key: Key) -> list[OpenHold]:
    """The organization's holds in Redis at this moment."""
    return (await _books(tollgate, key.organization_id)).open


def owed(entries: Iterable[Entry]) -> int:
    """What the vendor's own log says that its answers cost by P1, nano-USD."""
    return sum(
        priced(entry.billed_input - entry.billed_cached, entry.billed_output)
        + entry.billed_cached * _NANOS["cache_read"]
        for entry in entries
    )


def priced(input_tokens: int, output_tokens: int) -> int:
    """What so many tokens cost by P1, nano-USD."""
    return input_tokens * _NANOS["input"] + output_tokens * _NANOS["output"]


async def _settled(tollgate: Deployment, organization_id: str, records: int) -> Books:
    """The books once nothing is on its way any more; as they are when it takes too long."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + SETTLED_S_MAX
    while True:
        books = await _books(tollgate, organization_id)
        is_settled = (
            len(books.records) >= records
            and not books.open
            and books.redis.held == 0
            and books.redis.spent == books.spent
            and books.redis.base == books.base
        )
        if is_settled or loop.time() > until_s:
            return books
        await asyncio.sleep(0.05)


async def _books(tollgate: Deployment, organization_id: str) -> Books:
    connection = await tollgate.postgres()
    try:
        records = await connection.fetch(_RECORDS, organization_id)
        wallet = await connection.fetchrow(_WALLET, organization_id)
    finally:
        await connection.close()
    assert wallet is not None
    async with tollgate.redis() as redis:
        partition = Partition(redis, wallet["partition"])
        generation = (await partition.state()).generation
        (image,) = (await partition.snap(generation, [wallet["id"]])).wallets
        held = await partition.open_holds(generation)
    ours = [hold for hold in held if hold.wallet == wallet["id"]]
    return Books([*records], wallet["base"], wallet["spent"], int(wallet["debits"]), image, ours)


def _forgotten(ports: Iterable[int]) -> list[str]:
    wanted = {f"{port:04X}" for port in ports}
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [
        f"{row[1]} {row[2]}"
        for row in rows
        if row[3] == _CLOSE_WAIT
        and (row[1].rsplit(":", 1)[1] in wanted or row[2].rsplit(":", 1)[1] in wanted)
    ]
