"""Credits: what is added to an organization's wallet, once per idempotency key, usable at once.

The book in Postgres decides; then Redis is told the new state. If that fails, nothing is lost: the
jobs of the ledger push every base that Redis does not have yet.
"""

import asyncio
from typing import NamedTuple
from uuid import UUID, uuid4

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.errors import BadRequest, Conflict, Unavailable
from ledger.bases import push_bases
from ledger.book import Book, BookRefused, CreditKind, Wallet
from ledger.functions import Epoch, Partition
from ledger.money import Nanos
from ledger.postgres import AWAY

REASON_CHARACTERS_MAX = 500
KEY_CHARACTERS_MAX = 200
_PUSH_S = 2.0


class Grant(NamedTuple):
    """What is to be given."""

    organization_id: UUID
    amount: Nanos
    reason: str
    actor: str
    idempotency_key: str | None = None  # None: granted as often as it is asked for


class Granted(NamedTuple):
    """What became of a grant."""

    balance: Nanos  # afterwards, as posted
    is_new: bool  # False: this idempotency key was used before, and nothing was done now
    is_usable: bool  # False: Redis could not be told; it is usable within a minute


async def grant(pool: asyncpg.Pool, redis: Redis, wanted: Grant) -> Granted:
    """Give credit. Raises `BadRequest`, and `Conflict` for a key used for something else."""
    key = str(uuid4()) if wanted.idempotency_key is None else wanted.idempotency_key
    if not key or len(key) > KEY_CHARACTERS_MAX or not key.isprintable():
        raise BadRequest("an idempotency key has 1 to 200 characters", code="invalid_key")
    if not wanted.reason.strip() or len(wanted.reason) > REASON_CHARACTERS_MAX:
        raise BadRequest("a reason has 1 to 500 characters", code="invalid_reason")
    if wanted.amount <= 0:
        raise BadRequest("a grant is above zero", code="invalid_amount")
    try:
        wallet, is_new = await Book(pool).credit(
            str(wanted.organization_id),
            wanted.amount,
            kind=CreditKind.GRANT,
            # A key is the organization's own: another's equal key is another grant.
            reference=f"{wanted.organization_id}:{key}",
            actor=wanted.actor,
            reason=wanted.reason,
        )
    except BookRefused as error:
        raise Conflict(str(error), code="not_booked") from error
    except asyncpg.LockNotAvailableError as error:
        raise Unavailable("The ledger is busy. Try again.", code="ledger_busy") from error
    is_usable = await push(pool, redis, wallet)
    return Granted(Nanos(wallet.balance), is_new, is_usable)


async def push(pool: asyncpg.Pool, redis: Redis, wallet: Wallet) -> bool:
    """Tell Redis the state of a wallet just changed; False if it is away or recovering."""
    partition = Partition(redis, wallet.partition)
    try:
        async with asyncio.timeout(_PUSH_S):
            state = await partition.state()
            if not state.is_active():
                return False
            above = min(state.version, wallet.version - 1)
            async with pool.acquire() as connection:
                await push_bases(connection, partition, generation=state.generation, above=above)
    except (Epoch, RedisError, asyncpg.PostgresError, *AWAY):
        return False
    return True
