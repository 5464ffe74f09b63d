"""Dead letters: entries of a stream that nobody could read whole, and how they are resolved.

Replaying reads one again, as this release reads, and posts it as what it is; what was posted of it
as a letter is taken back in the same transaction, so its money counts once. Writing off moves
nothing: what was posted stays. Either is done once, and says who did it and why.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

import asyncpg
import msgspec

from ledger.batch import Judgement, firsts_of, judge
from ledger.commit import Source, write_records
from ledger.drain import Drain
from ledger.postgres import Connection
from ledger.posting import Entry, Part, lock_parts, post
from ledger.stream import Based, Ended, Poison, admitted_ms, parse
from ledger.sums import write_corrections, write_rollups, write_wallets, write_windows
from ledger.trail import Change, append_change

_COLUMNS = """
    SELECT l.id, l.partition, l.generation, l.stream_id, l.at, l.error, l.fields,
           l.wallet_id::text, w.organization_id::text, l.spent_delta, l.windows,
           l.transaction_number IS NOT NULL AS is_posted, l.resolution, l.resolution_reason,
           l.resolved_by, l.resolved_at
    FROM dead_letter AS l LEFT JOIN wallet AS w ON w.id = l.wallet_id
"""
_LISTED = f"{_COLUMNS} WHERE l.resolved_at IS NULL OR $1 ORDER BY l.id LIMIT $2"
_ONE = f"{_COLUMNS} WHERE l.id = $1"
_LOCKED = f"{_COLUMNS} WHERE l.id = $1 FOR UPDATE OF l"
_RESOLVE = """
    UPDATE dead_letter SET resolution = $2, resolution_reason = $3, resolved_by = $4,
        resolved_at = now(), replay_number = $5
    WHERE id = $1
"""
_ORGANIZATION = "SELECT organization_id::text FROM wallet WHERE id = $1"
_RECORDS_FROM = "SELECT (extract(epoch FROM records_from) * 1000)::bigint FROM installation"


class Resolution(StrEnum):
    """What became of a letter."""

    REPLAYED = "replayed"
    WRITTEN_OFF = "written off"


class LetterRefused(Exception):
    """The letter cannot be resolved like this; nothing was changed."""


class Letter(NamedTuple):
    """A dead letter."""

    id: int
    partition: int
    generation: int
    stream_id: str
    at: datetime
    error: str
    fields: bytes  # the entry, msgpack
    wallet_id: str | None  # whose money was posted for the letter itself; None: nobody's
    organization_id: str | None
    spent_delta: int  # what was posted, nano-USD
    windows: Sequence[str] | None
    is_posted: bool  # what it moved is posted: for the letter, or as the end that it is
    resolution: str | None
    resolution_reason: str | None
    resolved_by: str | None
    resolved_at: datetime | None

    @property
    def entry(self) -> Mapping[bytes, bytes]:
        """The entry's fields as Redis had them."""
        return msgspec.msgpack.decode(self.fields, type=dict[bytes, bytes])

    def reading(self) -> str:
        """Why it cannot be replayed by what this release reads; "" if it reads well."""
        match parse(self.stream_id, self.entry):
            case Poison(error=error):
                return error
            case Based():
                return "it only tells of a base: there is nothing to post"
            case Ended(error=error):
                return error


class Resolved(NamedTuple):
    """A letter that is resolved."""

    letter: Letter
    is_new: bool  # False: it was resolved so before, and nothing was done now
    wallet_id: str | None = None  # whose base moved: Redis must be told


async def listed(pool: asyncpg.Pool, *, with_resolved: bool, limit: int) -> list[Letter]:
    """The letters that wait, or all of them, the oldest first."""
    return [Letter(*row) for row in await pool.fetch(_LISTED, with_resolved, limit)]


async def found(pool: asyncpg.Pool, letter_id: int) -> Letter | None:
    """One letter; None if there is none."""
    row = await pool.fetchrow(_ONE, letter_id)
    return None if row is None else Letter(*row)


async def write_off(pool: asyncpg.Pool, letter_id: int, *, actor: str, reason: str) -> Resolved:
    """Leave it as it is, for a reason; raises `LetterRefused`."""
    async with pool.acquire() as connection, connection.transaction():
        letter, is_done = await _locked(connection, letter_id, Resolution.WRITTEN_OFF)
        if is_done:
            return Resolved(letter, is_new=False)
        done = (Resolution.WRITTEN_OFF, actor, reason)
        await _resolve(connection, letter, done=done, organization_id=letter.organization_id)
        return Resolved(letter, is_new=True)


async def replay(pool: asyncpg.Pool, letter_id: int, *, actor: str, reason: str) -> Resolved:
    """Read it again and post it as what it is; raises `LetterRefused` if it cannot be."""
    unlocked = await found(pool, letter_id)
    if unlocked is None:
        raise LetterRefused(f"there is no dead letter {letter_id}")
    async with pool.acquire() as connection:
        parsed = parse(unlocked.stream_id, unlocked.entry)
        # Its day's table is made ahead, in a transaction of its own, as the flusher does it.
        await Drain(connection).make_days([Source(parsed, unlocked.entry)])
        async with connection.transaction():
            part = (await lock_parts(connection, [unlocked.partition]))[unlocked.partition]
            letter, is_done = await _locked(connection, letter_id, Resolution.REPLAYED)
            if is_done:
                return Resolved(letter, is_new=False)
            return await _replay(connection, part, letter=letter, by=(actor, reason))


async def _replay(
    connection: Connection, part: Part, *, letter: Letter, by: tuple[str, str]
) -> Resolved:
    ended = await _readable(connection, letter)
    # What was not posted is in Redis' sums only as long as they are of that generation: a recovery
    # since then has loaded them without it, and then it is debited like a late end.
    is_counted = letter.is_posted or letter.generation == part.generation
    ended = ended._replace(moved=ended.moved and is_counted)
    firsts, number = firsts_of([ended]), part.transaction_number + 1
    transaction = (part.number, number)
    known = await write_records(connection, firsts, transaction=transaction)
    judgement = judge([ended], firsts, known=known, arrived_us=part.now_us)
    if judgement.dead_letters:
        raise LetterRefused(judgement.dead_letters[0].error)
    if letter.wallet_id is not None:
        judgement.take_back(letter.wallet_id, letter.spent_delta, ended.windows)
    version = part.version + judgement.moves_base
    await _write(connection, part, judgement=judgement, version=version)
    actor, reason = by
    entry = Entry("flush", f"letter {letter.id}", actor, reason, judgement.lines())
    await post(connection, part, entry=entry, version=version)
    organization_id = await connection.fetchval(_ORGANIZATION, ended.wallet)
    done = (Resolution.REPLAYED, actor, reason)
    await _resolve(
        connection, letter, done=done, organization_id=organization_id, replay_number=number
    )
    moved = ended.wallet if judgement.moves_base else None
    return Resolved(letter, is_new=True, wallet_id=moved)


async def _readable(connection: Connection, letter: Letter) -> Ended:
    parsed = parse(letter.stream_id, letter.entry)
    if letter.is_posted and letter.wallet_id is None:
        raise LetterRefused(
            "its call is recorded and charged already, and records are never changed: write it off"
        )
    if not isinstance(parsed, Ended) or parsed.error:
        raise LetterRefused(f"it still cannot be read: {letter.reading()}")
    if admitted_ms(parsed.call_id) < await connection.fetchval(_RECORDS_FROM):
        raise LetterRefused(
            "its call is older than the oldest record that is kept, so nobody can tell if it was"
            " charged before: write it off"
        )
    posted = (letter.wallet_id, letter.spent_delta, set(letter.windows or ()))
    taken = parsed.charge if parsed.moved else 0
    windows = {window.id for window in parsed.windows}
    if letter.wallet_id is not None and posted != (parsed.wallet, taken, windows):
        raise LetterRefused("what was posted of it is not what it says now: write it off")
    return parsed


async def _write(connection: Connection, part: Part, *, judgement: Judgement, version: int) -> None:
    if await write_wallets(connection, judgement, partition=part.number, version=version):
        raise LetterRefused("its wallet is no organization's: write it off")
    await write_windows(connection, judgement, partition=part.number, version=version)
    await write_rollups(connection, judgement)
    transaction = (part.number, part.transaction_number + 1)
    await write_corrections(connection, judgement.corrections, transaction=transaction)


async def _locked(
    connection: Connection, letter_id: int, wanted: Resolution
) -> tuple[Letter, bool]:
    """The letter, locked, and whether it was resolved so before."""
    row = await connection.fetchrow(_LOCKED, letter_id)
    if row is None:
        raise LetterRefused(f"there is no dead letter {letter_id}")
    letter = Letter(*row)
    if letter.resolution is not None and letter.resolution != wanted:
        raise LetterRefused(f"it was {letter.resolution} before, by {letter.resolved_by}")
    return letter, letter.resolution is not None


async def _resolve(
    connection: Connection,
    letter: Letter,
    *,
    done: tuple[Resolution, str, str],
    organization_id: str | None,
    replay_number: int | None = None,
) -> None:
    resolution, actor, reason = done
    await connection.execute(_RESOLVE, letter.id, resolution.value, reason, actor, replay_number)
    if organization_id is None:
        return  # nobody's: there is no log of anybody to write to
    after = {"resolution": resolution.value, "reason": reason, "posted": str(letter.spent_delta)}
    change = Change(actor, "dead_letter.resolve", str(letter.id), after=after)
    await append_change(connection, organization_id, change)
