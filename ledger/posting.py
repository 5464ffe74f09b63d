"""Post a transaction to a partition's book: its lines, its place in the hash chain, its version.

Whoever posts has the partition's row locked, so transactions are numbered without a gap and each
one's hash follows its predecessor's. Several partitions are locked in ascending order, always.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from ledger.chain import Posted, transaction_hash
from ledger.postgres import Connection

_LOCK_TIMEOUT = "SET LOCAL lock_timeout = '5s'"
_LOCK = """
    SELECT number, generation, state, version, transaction_number, transaction_hash,
           (extract(epoch FROM now()) * 1000000)::bigint AS now_us
    FROM part WHERE number = ANY ($1::smallint[]) ORDER BY number FOR UPDATE
"""
_POST = """
    WITH booked AS (
        INSERT INTO ledger_transaction (
            partition, number, kind, reference, actor, reason, at, previous_hash, hash
        ) VALUES ($1, $2, $3, $4, $5, $6, to_timestamp($7::bigint / 1e6::float8), $8, $9)
    ), lines AS (
        INSERT INTO posting (partition, number, account, amount)
        SELECT $1, $2, account, amount
        FROM unnest($10::text[], $11::bigint[]) AS l (account, amount)
    )
    UPDATE part SET version = $12, transaction_number = $2, transaction_hash = $9 WHERE number = $1
"""


class Part(NamedTuple):
    """A partition's row, locked."""

    number: int
    generation: int
    state: str
    version: int  # of the newest base
    transaction_number: int
    transaction_hash: bytes
    now_us: int


class Entry(NamedTuple):
    """What is posted: `lines` is what each account gains, and sums to zero."""

    kind: str
    reference: str
    actor: str
    reason: str
    lines: Mapping[str, int]


async def lock_parts(connection: Connection, numbers: Collection[int]) -> dict[int, Part]:
    """The rows of these partitions, until the transaction that is open ends."""
    assert connection.is_in_transaction(), "a lock without a transaction is none"
    await connection.execute(_LOCK_TIMEOUT)
    rows = await connection.fetch(_LOCK, sorted(set(numbers)))
    return {row["number"]: Part(*row) for row in rows}


async def post(connection: Connection, part: Part, *, entry: Entry, version: int) -> Part:
    """Post to a partition whose row is locked; the row as it is afterwards.

    `version` becomes the newest of its bases. Raises asyncpg's `UniqueViolationError` if the
    reference was posted before under this kind.
    """
    assert sum(entry.lines.values()) == 0, entry
    posted = Posted(part.number, part.transaction_number + 1, *entry[:4], part.now_us, entry.lines)
    hashed = transaction_hash(part.transaction_hash, posted)
    await connection.execute(
        _POST,
        *posted[:6],
        posted.at_us,
        part.transaction_hash,
        hashed,
        list(entry.lines),
        list(entry.lines.values()),
        version,
    )
    return part._replace(version=version, transaction_number=posted.number, transaction_hash=hashed)
