"""Dead letters: what waits for somebody, why, and resolving it by replay or by writing it off."""

from typing import NamedTuple

import asyncpg
from redis.asyncio import Redis

from gateway.errors import BadRequest, Conflict, NotFound, Unavailable
from ledger import letters
from ledger.bases import tell
from ledger.book import Book
from ledger.letters import Letter, LetterRefused, Resolution

LISTED_MAX = 500
REASON_CHARACTERS_MAX = 500


class Resolving(NamedTuple):
    """How a letter is to be resolved, by whom and why."""

    letter_id: int
    resolution: Resolution
    actor: str
    reason: str


class Resolved(NamedTuple):
    """What became of it."""

    letter: Letter  # as it was before
    is_new: bool  # False: it was resolved so before, and nothing was done now
    is_told: bool  # False: a balance moved that Redis has once it is there


async def listed(pool: asyncpg.Pool, *, with_resolved: bool = False) -> list[Letter]:
    """The letters that wait, or all of them, the oldest first; one above `LISTED_MAX` at most."""
    return await letters.listed(pool, with_resolved=with_resolved, limit=LISTED_MAX + 1)


async def one(pool: asyncpg.Pool, letter_id: int) -> Letter:
    """One letter; raises `NotFound`."""
    found = await letters.found(pool, letter_id)
    if found is None:
        raise NotFound(f"there is no dead letter {letter_id}", code="dead_letter_not_found")
    return found


async def resolve(pool: asyncpg.Pool, redis: Redis, wanted: Resolving) -> Resolved:
    """Resolve it; raises `BadRequest`, `NotFound`, and `Conflict` if it cannot be done so."""
    if not wanted.reason.strip() or len(wanted.reason) > REASON_CHARACTERS_MAX:
        raise BadRequest("a reason has 1 to 500 characters", code="invalid_reason")
    await one(pool, wanted.letter_id)
    act = letters.replay if wanted.resolution is Resolution.REPLAYED else letters.write_off
    try:
        done = await act(pool, wanted.letter_id, actor=wanted.actor, reason=wanted.reason)
    except LetterRefused as error:
        raise Conflict(f"{error}. Nothing was done.", code="not_resolved") from error
    except asyncpg.LockNotAvailableError as error:
        raise Unavailable("The ledger is busy. Try again.", code="ledger_busy") from error
    wallet = None if done.wallet_id is None else await Book(pool).wallet(done.wallet_id)
    is_told = wallet is None or await tell(pool, redis, wallet)
    return Resolved(done.letter, done.is_new, is_told)
