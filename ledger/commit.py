"""Write one batch of stream entries to Postgres: everything it changes, in one transaction.

The partition row's lock makes this the partition's only writer, and the watermark moves in the same
transaction as the effects: a batch is in the tables wholly and once, whoever dies when.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import asyncpg

from ledger.batch import DeadLetter, First, Judgement, Known, firsts_of, judge
from ledger.chain import Posted, transaction_hash
from ledger.known import known_calls
from ledger.postgres import Connection
from ledger.row import LogRow, Row, log_row_of
from ledger.stream import Based, Ended, Parsed, Poison, admitted_ms, distrusted, is_window
from ledger.sums import (
    write_corrections,
    write_dead_letters,
    write_rollups,
    write_wallets,
    write_windows,
)

_LOCK = """
    SELECT generation, state, owner, watermark_generation, watermark_id, version,
           CASE state WHEN 'recovering' THEN claimed_version ELSE version END AS base_version,
           transaction_number, transaction_hash,
           (extract(epoch FROM now()) * 1000000)::bigint AS now_us,
           (SELECT (extract(epoch FROM records_from) * 1000)::bigint FROM installation)
               AS records_from_ms
    FROM part WHERE number = $1
    FOR UPDATE SKIP LOCKED
"""
_EXISTING = "SELECT call_id FROM usage_record WHERE call_id = ANY ($1::uuid[])"
# The transaction, its lines, and the partition's row with the watermark: what makes it all count.
_CLOSE = """
    WITH booked AS (
        INSERT INTO ledger_transaction (
            partition, number, kind, reference, actor, at, previous_hash, hash
        )
        SELECT $1, $2, 'flush', $3, 'flusher', to_timestamp($4::bigint / 1e6::float8), $5, $6
        WHERE $7::boolean
    ), lines AS (
        INSERT INTO posting (partition, number, account, amount)
        SELECT $1, $2, account, amount FROM unnest($8::text[], $9::bigint[]) AS l (account, amount)
    )
    UPDATE part SET
        watermark_generation = $10, watermark_id = $11, flushed_at = now(), version = $12,
        transaction_number = $2, transaction_hash = $6,
        lease_until = CASE WHEN state = 'recovering' THEN now() + interval '5 seconds' END
    WHERE number = $1
"""


class Position(NamedTuple):
    """A place in a partition's streams. Ids of different generations are never compared."""

    generation: int
    stream_id: str


class Committed(NamedTuple):
    """What a batch brought."""

    position: Position
    entries: int
    records: int
    corrections: int
    late: int
    dead_letters: int
    moved_base: bool  # Redis must be told of new bases
    call_ids: list[bytes]  # whose ends are in Postgres now
    wallets: frozenset[str] = frozenset()  # that have another balance now
    windows: frozenset[str] = frozenset()  # of caps, that have another sum now


class Source(NamedTuple):
    """An entry with the bytes it was read from."""

    parsed: Parsed
    fields: Mapping[bytes, bytes]


class Superseded(Exception):
    """Somebody else recovers this partition now: nothing was written."""


# What Postgres says of values it cannot take: one entry's fault, which is then found by halving.
# The last two are asyncpg's own, for what it cannot even send.
_REFUSED = (
    asyncpg.DataError,
    asyncpg.CheckViolationError,
    asyncpg.NotNullViolationError,
    OverflowError,
    ValueError,
)
_RECORD_COLUMNS = (*Row._fields, "partition", "transaction_number")


class _Part(NamedTuple):
    number: int
    generation: int
    version: int
    base_version: int  # a base above it is not from this Postgres
    transaction_number: int
    transaction_hash: bytes
    now_us: int
    records_from_ms: int


async def commit_all(
    connection: Connection,
    partition: int,
    *,
    sources: Sequence[Source],
    after: Position,
    recovering: tuple[int, str] | None = None,
) -> list[Committed]:
    """As `commit_batch`, but an entry that Postgres refuses stops neither those around it nor this.

    In the usual case one transaction; else the batch is halved until the refused entry is alone,
    and then less and less of it is taken. The answer ends early where `commit_batch` says None.
    """
    done: list[Committed] = []
    waiting = [list(sources)]
    while waiting:
        chunk = waiting.pop()
        try:
            committed = await commit_batch(
                connection, partition, sources=chunk, after=after, recovering=recovering
            )
        except _REFUSED as error:
            half = len(chunk) // 2
            if half:
                waiting += [chunk[half:], chunk[:half]]
            else:
                waiting.append([_less_of(chunk[0], error)])
            continue
        if committed is None:
            break
        done.append(committed)
        after = committed.position
    return done


def _less_of(source: Source, error: Exception) -> Source:
    parsed = source.parsed
    if isinstance(parsed, Poison) and parsed.wallet is None:
        raise error  # nothing of it is left to refuse: the fault is ours
    return source._replace(parsed=distrusted(parsed, source.fields, str(error)))


async def commit_batch(
    connection: Connection,
    partition: int,
    *,
    sources: Sequence[Source],
    after: Position,
    recovering: tuple[int, str] | None = None,
) -> Committed | None:
    """Put the entries that follow `after` into the tables.

    None: not now, because another process has the partition, moved its watermark, or recovers it.
    `recovering` is (generation, owner) of the recovery this belongs to, checked again in here;
    raises `Superseded` if it is over.
    """
    async with connection.transaction():
        row = await connection.fetchrow(_LOCK, partition)
        if row is None:
            return None
        if recovering is None:
            if row["state"] != "active":
                return None
        elif (row["generation"], row["owner"]) != recovering or row["state"] != "recovering":
            raise Superseded(f"partition {partition}: generation {row['generation']}")
        if Position(row["watermark_generation"], row["watermark_id"]) != after:
            return None
        part = _Part(
            partition,
            after.generation,
            row["version"],
            row["base_version"],
            row["transaction_number"],
            row["transaction_hash"],
            row["now_us"],
            row["records_from_ms"],
        )
        return await _write(connection, part, sources)


async def _write(connection: Connection, part: _Part, sources: Sequence[Source]) -> Committed:
    entries = [_admissible(source, part) for source in sources]
    firsts = firsts_of(entries)
    number = part.transaction_number + 1
    known = await write_records(connection, firsts, transaction=(part.number, number))
    judgement = judge(entries, firsts, known=known, arrived_us=part.now_us)
    if judgement.moves_base:
        part = part._replace(version=part.version + 1)
    letters = judgement.dead_letters + await _write_balances(connection, part, judgement, entries)
    transaction = (part.number, number)
    await write_rollups(connection, judgement)
    await write_corrections(connection, judgement.corrections, transaction=transaction)
    await write_dead_letters(
        connection,
        letters,
        transaction=transaction,
        generation=part.generation,
        fields={source.parsed.stream_id: source.fields for source in sources} if letters else {},
    )
    position = Position(part.generation, entries[-1].stream_id)
    # What people moved, and Redis was told of: credits, withdrawals, corrections.
    based = frozenset(entry.wallet for entry in entries if isinstance(entry, Based))
    windows = frozenset(filter(is_window, based))
    await _close(connection, part, judgement=judgement, position=position)
    return Committed(
        position,
        entries=len(entries),
        records=len(firsts) - len(known),
        corrections=len(judgement.corrections),
        late=judgement.late,
        dead_letters=len(letters),
        moved_base=judgement.moves_base,
        call_ids=list(firsts),
        wallets=frozenset(judgement.wallets).union(based - windows),
        windows=frozenset(judgement.windows).union(windows),
    )


async def write_records(
    connection: Connection, firsts: Mapping[bytes, First], *, transaction: tuple[int, int]
) -> dict[bytes, Known]:
    """Append the records of the calls that ended for the first time; what is known of the others.

    COPY is several times faster than INSERT, but knows no conflicts. They are rare, so it is tried
    with all, and again without those that have a record.
    """
    try:
        async with connection.transaction():
            await _copy_records(connection, list(firsts.values()), transaction)
    except asyncpg.UniqueViolationError:
        pass
    else:
        return {}
    ids = [call_id.hex() for call_id in firsts]
    existing = {row[0].bytes for row in await connection.fetch(_EXISTING, ids)}
    new = [first for call_id, first in firsts.items() if call_id not in existing]
    await _copy_records(connection, new, transaction)
    return await known_calls(connection, list(existing))


async def _copy_records(
    connection: Connection, firsts: Sequence[First], transaction: tuple[int, int]
) -> None:
    if not firsts:
        return
    await connection.copy_records_to_table(
        "usage_record",
        records=[(*first.row, *transaction) for first in firsts],
        columns=_RECORD_COLUMNS,
    )
    await connection.copy_records_to_table(
        "call_log",
        records=[log_row_of(first.ended, first.row) for first in firsts],
        columns=LogRow._fields,
    )


def _admissible(source: Source, part: _Part) -> Parsed:
    """The entry, unless it must not be believed: nobody can tell if so old a call was charged."""
    entry = source.parsed
    if isinstance(entry, Ended) and admitted_ms(entry.call_id) < part.records_from_ms:
        spent = entry.charge if entry.moved else 0
        error = "the call is older than the oldest record that is kept"
        return Poison(entry.stream_id, source.fields, error, entry.wallet, spent, entry.windows)
    if isinstance(entry, Based) and entry.version > part.base_version:
        error = "Redis has a base that Postgres does not know: Postgres went back in time"
        return Poison(entry.stream_id, source.fields, error)
    return entry


async def _write_balances(
    connection: Connection, part: _Part, judgement: Judgement, entries: Sequence[Parsed]
) -> list[DeadLetter]:
    """Move wallets and windows; a letter for each wallet that no organization has."""
    strangers = await write_wallets(
        connection, judgement, partition=part.number, version=part.version
    )
    await write_windows(connection, judgement, partition=part.number, version=part.version)
    letters = []
    for wallet in strangers:
        stream_id = next(
            entry.stream_id
            for entry in entries
            if not isinstance(entry, Based) and entry.wallet == wallet
        )
        letters.append(DeadLetter(stream_id, "nobody's wallet", None, 0, None, is_posted=True))
    return letters


async def _close(
    connection: Connection, part: _Part, *, judgement: Judgement, position: Position
) -> None:
    """Book the transaction, if the batch is more than news of bases, and move the watermark."""
    books = bool(judgement.wallets)
    number, hashed = part.transaction_number, part.transaction_hash
    lines = judgement.lines()
    reference = f"{position.generation}/{position.stream_id}"
    if books:
        number += 1
        posted = Posted(part.number, number, "flush", reference, "flusher", "", part.now_us, lines)
        hashed = transaction_hash(part.transaction_hash, posted)
    await connection.execute(
        _CLOSE,
        part.number,
        number,
        reference,
        part.now_us,
        part.transaction_hash,
        hashed,
        books,
        list(lines),
        list(lines.values()),
        position.generation,
        position.stream_id,
        part.version,
    )
