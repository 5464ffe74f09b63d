"""Write what a batch changes besides the new records: balances, cap windows, figures, oddities.

Every statement takes arrays, so their number does not grow with the batch. The caller has the
partition's row lock and an open transaction.
"""

from collections.abc import Mapping

import msgspec

from ledger.batch import Correction, DeadLetter, Judgement
from ledger.postgres import Connection

_WALLETS = """
    INSERT INTO wallet (id, partition, spent, base, version, created_version)
    SELECT id, $1, spent, base, CASE WHEN base <> 0 THEN $2 ELSE 0 END, $2
    FROM unnest($3::uuid[], $4::bigint[], $5::bigint[]) AS m (id, spent, base)
    ORDER BY id
    ON CONFLICT (id) DO UPDATE SET
        spent = wallet.spent + EXCLUDED.spent,
        base = wallet.base + EXCLUDED.base,
        version = greatest(wallet.version, EXCLUDED.version)
    RETURNING id::text, xmax = 0 AS is_new
"""
_WINDOWS = """
    INSERT INTO cap_window (id, cap_id, starts_ms, partition, cap_limit, spent, base, version)
    SELECT id, cap_id, starts_ms, $1, cap_limit, spent, cap_limit + base,
           CASE WHEN base <> 0 THEN $2 ELSE 0 END
    FROM unnest($3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[])
        AS m (id, cap_id, starts_ms, cap_limit, spent, base)
    ORDER BY id
    ON CONFLICT (id) DO UPDATE SET
        spent = cap_window.spent + EXCLUDED.spent,
        base = cap_window.base + (EXCLUDED.base - EXCLUDED.cap_limit),
        version = greatest(cap_window.version, EXCLUDED.version)
"""
_ROLLUPS = """
    INSERT INTO usage_hourly (
        organization_id, hour, project_id, key_id, member_id, provider, model, calls, successes,
        estimated, input, cache_read, cache_write, output, reasoning, charge, list_price
    )
    SELECT organization_id, to_timestamp(hour_us / 1e6::float8), project_id, key_id, member_id,
           provider, model, calls, successes, estimated, input, cache_read, cache_write, output,
           reasoning, charge, list_price
    FROM unnest(
        $1::bigint[], $2::uuid[], $3::uuid[], $4::uuid[], $5::uuid[], $6::text[], $7::text[],
        $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[],
        $14::bigint[], $15::bigint[], $16::bigint[], $17::bigint[]
    ) AS r (
        hour_us, organization_id, project_id, key_id, member_id, provider, model, calls, successes,
        estimated, input, cache_read, cache_write, output, reasoning, charge, list_price
    )
    ON CONFLICT (organization_id, hour, project_id, key_id, member_id, provider, model)
    DO UPDATE SET
        calls = usage_hourly.calls + EXCLUDED.calls,
        successes = usage_hourly.successes + EXCLUDED.successes,
        estimated = usage_hourly.estimated + EXCLUDED.estimated,
        input = usage_hourly.input + EXCLUDED.input,
        cache_read = usage_hourly.cache_read + EXCLUDED.cache_read,
        cache_write = usage_hourly.cache_write + EXCLUDED.cache_write,
        output = usage_hourly.output + EXCLUDED.output,
        reasoning = usage_hourly.reasoning + EXCLUDED.reasoning,
        charge = usage_hourly.charge + EXCLUDED.charge,
        list_price = usage_hourly.list_price + EXCLUDED.list_price
"""
_ERROR_CHARACTERS_MAX = 2_000
_LETTER_COLUMNS = (
    "partition",
    "generation",
    "stream_id",
    "error",
    "fields",
    "wallet_id",
    "spent_delta",
    "windows",
    "transaction_number",
)


async def write_wallets(
    connection: Connection, judgement: Judgement, *, partition: int, version: int
) -> list[str]:
    """Move the wallets; the answer is those that nobody had made: known only from the stream."""
    wallets = judgement.wallets
    if not wallets:
        return []
    rows = await connection.fetch(
        _WALLETS,
        partition,
        version,
        list(wallets),
        [moves.spent for moves in wallets.values()],
        [moves.base for moves in wallets.values()],
    )
    return [row["id"] for row in rows if row["is_new"]]


async def write_windows(
    connection: Connection, judgement: Judgement, *, partition: int, version: int
) -> None:
    """Move the cap windows; one that is charged for the first time is made."""
    lines = []
    for window_id, moves in judgement.windows.items():
        window = moves.window
        assert window is not None, "a window's moves name it"
        start_and_limit = (window.cap_id, window.starts_ms, window.limit)
        lines.append((window_id, *start_and_limit, moves.spent, moves.base))
    if lines:
        await connection.execute(_WINDOWS, partition, version, *zip(*lines, strict=True))


async def write_rollups(connection: Connection, judgement: Judgement) -> None:
    """Add to the hourly figures."""
    lines = [(hour_us, *key, *sums) for (hour_us, key), sums in sorted(judgement.rollups.items())]
    if lines:
        await connection.execute(_ROLLUPS, *zip(*lines, strict=True))


async def write_corrections(
    connection: Connection,
    corrections: list[Correction],
    *,
    transaction: tuple[int, int],
) -> None:
    """Append the corrections to `transaction`, a (partition, number)."""
    if not corrections:
        return
    await connection.copy_records_to_table(
        "correction",
        records=[(*correction, *transaction) for correction in corrections],
        columns=[*Correction._fields, "partition", "transaction_number"],
    )


async def write_dead_letters(
    connection: Connection,
    letters: list[DeadLetter],
    *,
    transaction: tuple[int, int],
    generation: int,
    fields: Mapping[str, Mapping[bytes, bytes]],
) -> None:
    """Keep what could not be read, with all its `fields`, which are given by stream id."""
    if not letters:
        return
    partition, number = transaction
    # An entry may be odd in two ways; the letter with its money is the one to keep.
    by_entry: dict[str, DeadLetter] = {}
    for letter in letters:
        if letter.stream_id not in by_entry or letter.wallet_id is not None:
            by_entry[letter.stream_id] = letter
    rows = [
        (
            partition,
            generation,
            letter.stream_id,
            letter.error.replace("\0", "")[:_ERROR_CHARACTERS_MAX],
            msgspec.msgpack.encode(fields[letter.stream_id]),
            letter.wallet_id,
            letter.spent_delta,
            letter.windows,
            number if letter.is_posted else None,
        )
        for letter in by_entry.values()
    ]
    await connection.copy_records_to_table("dead_letter", records=rows, columns=_LETTER_COLUMNS)
