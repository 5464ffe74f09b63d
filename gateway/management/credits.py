"""Credits: what is added to an organization's wallet and what leaves it, once per idempotency key.

The book in Postgres decides; then Redis is told the new state. If that fails, nothing is lost: the
jobs of the ledger push every base that Redis does not have yet. What leaves is withheld in Redis
first, so it is never what open calls hold.
"""

from typing import NamedTuple
from uuid import UUID, uuid4

import asyncpg
from redis.asyncio import Redis

from gateway.errors import BadRequest, Conflict, Unavailable
from ledger.admission import LedgerUnavailable
from ledger.bases import tell
from ledger.book import Book, BookRefused, CreditKind
from ledger.money import Nanos
from ledger.postgres import AWAY
from ledger.withdrawals import Short, Wanted, WithdrawalKind, Withdrawals, Withdrawn

REASON_CHARACTERS_MAX = 500
KEY_CHARACTERS_MAX = 200


class Grant(NamedTuple):
    """What is to be given."""

    organization_id: UUID
    amount: Nanos
    reason: str
    actor: str
    idempotency_key: str | None = None  # None: granted as often as it is asked for
    address: str | None = None  # where the request came from; None: from this machine


class Granted(NamedTuple):
    """What became of a grant."""

    balance: Nanos  # afterwards, as posted
    is_new: bool  # False: this idempotency key was used before, and nothing was done now
    is_usable: bool  # False: Redis could not be told; it is usable once Redis is there


class Taking(NamedTuple):
    """What is to leave a wallet."""

    organization_id: UUID
    amount: Nanos
    kind: WithdrawalKind
    reason: str
    actor: str
    target_id: UUID | None = None  # of a transfer: the organization that gains
    idempotency_key: str | None = None  # None: taken as often as it is asked for
    address: str | None = None  # where the request came from; None: from this machine


class Taken(NamedTuple):
    """What became of it."""

    balance: Nanos  # afterwards, as posted
    target_balance: Nanos | None
    is_new: bool  # False: this idempotency key was used before, and nothing was done now
    is_usable: bool  # False: Redis could not be told; until it is, the amount is withheld there


async def grant(pool: asyncpg.Pool, redis: Redis, wanted: Grant) -> Granted:
    """Give credit. Raises `BadRequest`, and `Conflict` for a key used for something else."""
    return await _give(pool, redis, wanted, CreditKind.GRANT)


async def pay(pool: asyncpg.Pool, redis: Redis, wanted: Grant) -> Granted:
    """Credit what was paid for; the key is the processor's id of the payment. As `grant`."""
    return await _give(pool, redis, wanted, CreditKind.PAYMENT)


async def adjust(pool: asyncpg.Pool, redis: Redis, wanted: Grant) -> Granted:
    """Put a balance right by a signed amount: as `grant` if it is above zero, else as `take`."""
    if not wanted.amount:
        raise BadRequest("an adjustment by 0 changes nothing", code="invalid_amount")
    if wanted.amount > 0:
        return await _give(pool, redis, wanted, CreditKind.ADJUSTMENT)
    taking = Taking(
        wanted.organization_id,
        Nanos(-wanted.amount),
        WithdrawalKind.ADJUSTMENT,
        wanted.reason,
        wanted.actor,
        idempotency_key=wanted.idempotency_key,
        address=wanted.address,
    )
    taken = await take(pool, redis, taking)
    return Granted(taken.balance, taken.is_new, taken.is_usable)


async def take(pool: asyncpg.Pool, redis: Redis, wanted: Taking) -> Taken:
    """Take credit out: a refund, a transfer, an adjustment down, a payout.

    Raises `BadRequest`; `Conflict` if that much is not free, with what is, or for a key used for
    something else; `Unavailable` if it cannot be done now, with the key to ask again under where it
    is not known whether it was done.
    """
    key = _checked_key(wanted.amount, wanted.reason, wanted.idempotency_key)
    asked = Wanted(
        str(wanted.organization_id),
        wanted.amount,
        wanted.kind,
        f"{wanted.organization_id}:{key}",
        wanted.actor,
        wanted.reason,
        None if wanted.target_id is None else str(wanted.target_id),
        wanted.address,
    )
    done = await _withdrawn(Withdrawals(pool, redis), asked, key)
    target_balance = None if done.target is None else Nanos(done.target.balance)
    return Taken(Nanos(done.wallet.balance), target_balance, done.is_new, done.is_told)


async def _withdrawn(withdrawals: Withdrawals, asked: Wanted, key: str) -> Withdrawn:
    try:
        return await withdrawals.withdraw(asked)
    except Short as error:
        extra = {"needed_nanos": error.amount, "affordable_nanos": error.affordable}
        raise Conflict(
            f"{error}. Nothing was done.", code="not_enough_free", extra=extra
        ) from error
    except BookRefused as error:
        raise Conflict(f"{error}. Nothing was done.", code="not_booked") from error
    except LedgerUnavailable as error:
        text = f"The ledger cannot do it now ({error}). Nothing was done; try again."
        raise Unavailable(text, code="ledger_unavailable") from error
    except (asyncpg.PostgresError, *AWAY) as error:
        raise Unavailable(
            f"Postgres broke off ({type(error).__name__}): it may or may not be done."
            f" Ask again under the idempotency key {key}; it is done once.",
            code="outcome_unknown",
        ) from error


def _checked_key(amount: int, reason: str, idempotency_key: str | None) -> str:
    """The key to do it under; `BadRequest` for what cannot be asked."""
    key = str(uuid4()) if idempotency_key is None else idempotency_key
    if not key or len(key) > KEY_CHARACTERS_MAX or not key.isprintable():
        raise BadRequest("an idempotency key has 1 to 200 characters", code="invalid_key")
    if not reason.strip() or len(reason) > REASON_CHARACTERS_MAX:
        raise BadRequest("a reason has 1 to 500 characters", code="invalid_reason")
    if amount <= 0:
        raise BadRequest("the amount is not above zero", code="invalid_amount")
    return key


async def _give(pool: asyncpg.Pool, redis: Redis, wanted: Grant, kind: CreditKind) -> Granted:
    key = _checked_key(wanted.amount, wanted.reason, wanted.idempotency_key)
    try:
        wallet, is_new = await Book(pool).credit(
            str(wanted.organization_id),
            wanted.amount,
            kind=kind,
            # A key is the organization's own: another's equal key is another grant.
            reference=f"{wanted.organization_id}:{key}",
            actor=wanted.actor,
            reason=wanted.reason,
            address=wanted.address,
        )
    except BookRefused as error:
        raise Conflict(str(error), code="not_booked") from error
    except asyncpg.LockNotAvailableError as error:
        raise Unavailable("The ledger is busy. Try again.", code="ledger_busy") from error
    is_usable = await tell(pool, redis, wallet)
    return Granted(Nanos(wallet.balance), is_new, is_usable)
