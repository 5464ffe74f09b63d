"""Money that leaves a wallet by choice: refund, transfer, downward adjustment, payout.

A withdrawal is a row in Postgres before anything else, then an amount withheld in Redis, which so
cannot be what open calls hold, then postings, then the new base and the end of what is withheld, in
one function of Redis. It may be cut anywhere. What keeps it whole:

- The row's state alone decides. Postings and `booked` are one transaction; `abandoned` is for good.
- Nothing is booked but what is withheld: booking holds the partition's row and asks that the
  generation is still the one it was withheld in. A recovery ends both.
- Whatever is withheld without a pending row is given back by `conclude`, whoever left it behind.
"""

import asyncio
import uuid
from contextlib import suppress
from enum import StrEnum
from typing import NamedTuple

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisError

from ledger.admission import LedgerUnavailable, Refused
from ledger.bases import Loading, ensure_loaded, tell
from ledger.book import WALLET, BookRefused, Wallet, move_base
from ledger.functions import Epoch, Partition
from ledger.money import NANOS_MAX, Nanos, usd_text
from ledger.postgres import AWAY, Connection, one_row
from ledger.posting import Entry, Part, lock_parts, post
from ledger.trail import Change, append_change
from ledger.withheld import conclude

TRANSFER_IN = "transfer_in"  # the kind of a transfer's other transaction, in the target's partition

_REDIS_S = 2.0  # for one step there
_TRIES = 3  # a recovery, or a wallet not loaded yet, between two steps
_ASK = """
    INSERT INTO withdrawal (
        id, kind, reference, wallet_id, target_wallet_id, partition, amount, actor, reason
    ) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
    ON CONFLICT (kind, reference) WHERE state <> 'abandoned' DO NOTHING
"""
_ASKED = """
    SELECT id::text, wallet_id::text, target_wallet_id::text, amount, state FROM withdrawal
    WHERE kind = $1 AND reference = $2 AND state <> 'abandoned'
"""
_STATE = "SELECT state FROM withdrawal WHERE id = $1 FOR UPDATE"
_IS_BOOKED = "SELECT true FROM withdrawal WHERE id = $1 AND state = 'booked'"
_END = """
    UPDATE withdrawal SET state = $2, ended_at = now() WHERE id = $1 AND state = 'pending'
"""
# What Postgres says of a transaction that it certainly did not commit.
_NOT_BOOKED = (asyncpg.UniqueViolationError, asyncpg.LockNotAvailableError)


class WithdrawalKind(StrEnum):
    """Why money leaves; also the kind of its transaction and the account on the other side."""

    REFUND = "refund"  # given back to the payer
    TRANSFER = "transfer"  # to another organization's wallet
    ADJUSTMENT = "adjustment"  # put right by an operator
    PAYOUT = "payout"  # what is left when an organization is deleted


class Wanted(NamedTuple):
    """What is to leave a wallet. Asking again under the same (kind, `reference`) is asking once."""

    organization_id: str
    amount: Nanos  # 0 < amount
    kind: WithdrawalKind
    reference: str
    actor: str
    reason: str
    target_id: str | None = None  # of a transfer: the organization that gains
    address: str | None = None  # where the request came from, for the audit log


class Withdrawn(NamedTuple):
    """A withdrawal that is booked."""

    wallet: Wallet
    target: Wallet | None
    is_new: bool  # False: it was booked before under this reference, and nothing was done now
    is_told: bool = False  # Redis has the new bases; else it has them once it is there


class Short(BookRefused):
    """The wallet has not that much free; nothing was changed."""

    def __init__(self, amount: int, *, affordable: int, held: int) -> None:
        text = f"{usd_text(amount)} cannot leave: {usd_text(affordable)} can"
        if held:
            text += f", and {usd_text(held)} are held by open calls, of which a part may come back"
        super().__init__(text)
        self.amount, self.affordable, self.held = amount, affordable, held


class Asked(NamedTuple):
    """A withdrawal that has its row; what each next step is given."""

    id: str
    source: Wallet
    target: Wallet | None
    wanted: Wanted
    is_booked: bool

    def partitions(self) -> set[int]:
        """Whose rows must be locked."""
        target = self.target or self.source
        return {self.source.partition, target.partition}


class Withdrawals:
    """Takes money out of wallets, over the pool of whoever manages."""

    def __init__(self, pool: asyncpg.Pool, redis: Redis) -> None:
        self._pool, self._redis = pool, redis

    async def withdraw(self, wanted: Wanted) -> Withdrawn:
        """Take the money out, once.

        Raises `Short`; `BookRefused` for what cannot be asked; `LedgerUnavailable` while Redis is
        away or the partition recovers: nothing was done then, and nothing will be. Only if Postgres
        breaks off (its own errors) it is not known; asking again under the reference tells.
        """
        if not 0 < wanted.amount <= NANOS_MAX:
            raise BookRefused(f"{wanted.amount} nano-USD is no {wanted.kind}")
        asked = await self.ask(wanted)
        try:
            done = await self._withhold_and_book(asked)
        except (BookRefused, LedgerUnavailable, *_NOT_BOOKED) as error:
            # Asked for twice at once, the other may have booked it: then there is no error.
            booked = None if await self._abandon(asked) else await self._booked(asked)
            if booked is None:
                raise _told(wanted, error) from error
            done = booked
        wallets = [done.wallet] if done.target is None else [done.wallet, done.target]
        return done._replace(is_told=await tell(self._pool, self._redis, *wallets))

    async def ask(self, wanted: Wanted) -> Asked:
        """The first step: the row that says what is wanted, made now or before."""
        target_id = wanted.target_id
        assert (wanted.kind == WithdrawalKind.TRANSFER) == (target_id is not None), wanted
        source = await self._wallet(wanted.organization_id)
        target = None if target_id is None else await self._wallet(target_id)
        if target is not None and target.id == source.id:
            raise BookRefused("a transfer goes to another organization")
        key = (wanted.kind.value, wanted.reference)
        for _ in range(_TRIES):
            await self._pool.execute(
                _ASK,
                str(uuid.uuid4()),
                *key,
                source.id,
                None if target is None else target.id,
                source.partition,
                wanted.amount,
                wanted.actor,
                wanted.reason,
            )
            row = await self._pool.fetchrow(_ASKED, *key)
            if row is None:
                continue  # another's, and abandoned just now
            same = (source.id, None if target is None else target.id, wanted.amount)
            if tuple(row)[1:4] != same:
                text = f"{wanted.kind} {wanted.reference!r} was asked for as something else"
                raise BookRefused(text)
            return Asked(row["id"], source, target, wanted, row["state"] == "booked")
        raise LedgerUnavailable(f"{wanted.kind} {wanted.reference!r} is being given up elsewhere")

    async def withhold(self, asked: Asked) -> int:
        """The second step: keep the amount back; the generation in which that counts."""
        partition = Partition(self._redis, asked.source.partition)
        wallet, amount = asked.source.id, asked.wanted.amount
        try:
            for _ in range(_TRIES):
                async with asyncio.timeout(_REDIS_S):
                    generation = (await partition.state()).generation
                    answer = await partition.withhold(
                        generation, asked.id, wallet=wallet, amount=amount
                    )
                if not isinstance(answer, Refused):
                    return generation
                if answer.code != "no_wallet":
                    affordable = max(0, answer.free)
                    raise Short(amount, affordable=affordable, held=answer.held)
                async with self._pool.acquire() as connection:
                    loading = await ensure_loaded(connection, partition, wallet)
                if loading is not Loading.LOADED:
                    break
        except (Epoch, RedisError, OSError, TimeoutError) as error:
            raise LedgerUnavailable(f"redis: {error!r}") from error
        raise LedgerUnavailable("redis does not know the wallet; it is being recovered")

    async def book(self, asked: Asked, generation: int) -> Withdrawn | None:
        """The third step: the postings; None if what was withheld counts no more.

        Raises `Short` if Postgres knows of charges that Redis has yet to learn.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            parts = await lock_parts(connection, asked.partitions())
            state = await connection.fetchval(_STATE, asked.id)
            source = Wallet(*await one_row(connection, WALLET, asked.source.id))
            target = asked.target
            if target is not None:
                target = Wallet(*await one_row(connection, WALLET, target.id))
            if state == "booked":
                return Withdrawn(source, target, is_new=False)
            if state != "pending":
                raise LedgerUnavailable("it took too long and was given up")
            part = parts[source.partition]
            if (part.generation, part.state) != (generation, "active"):
                return None
            _check(asked.wanted, source, target)
            return await _book(connection, parts, asked=asked, before=(source, target))

    async def _withhold_and_book(self, asked: Asked) -> Withdrawn:
        booked = await self._booked(asked) if asked.is_booked else None
        if booked is not None:
            return booked
        for _ in range(_TRIES):
            generation = await self.withhold(asked)
            done = await self.book(asked, generation)
            if done is not None:
                return done
        raise LedgerUnavailable("the partition is being recovered")

    async def _booked(self, asked: Asked) -> Withdrawn | None:
        """What it came to, if it is booked."""
        if await self._pool.fetchval(_IS_BOOKED, asked.id) is None:
            return None
        source = await self._wallet(asked.source.id)
        target = None if asked.target is None else await self._wallet(asked.target.id)
        return Withdrawn(source, target, is_new=False)

    async def _abandon(self, asked: Asked) -> bool:
        """Give it up, unless it has ended; what is withheld goes back now, or soon by the job."""
        if await self._pool.execute(_END, asked.id, "abandoned") != "UPDATE 1":
            return False
        partition = Partition(self._redis, asked.source.partition)
        with suppress(Epoch, RedisError, asyncpg.PostgresError, *AWAY):
            async with asyncio.timeout(_REDIS_S), self._pool.acquire() as connection:
                generation = (await partition.state()).generation
                await conclude(connection, partition, generation=generation)
        return True

    async def _wallet(self, organization_id: str) -> Wallet:
        try:
            row = await self._pool.fetchrow(WALLET, organization_id)
        except asyncpg.DataError as error:
            raise BookRefused(f"{organization_id!r} is no organization's id") from error
        if row is None or row["organization_id"] is None:
            raise BookRefused(f"there is no organization {organization_id}")
        return Wallet(*row)


def _told(wanted: Wanted, error: Exception) -> BookRefused | LedgerUnavailable:
    """The error in the ledger's words."""
    match error:
        case BookRefused() | LedgerUnavailable():
            return error
        case asyncpg.UniqueViolationError():
            return BookRefused(f"{wanted.kind} {wanted.reference!r} was booked as something else")
        case _:
            return LedgerUnavailable("the partition's row is locked")


def _check(wanted: Wanted, source: Wallet, target: Wallet | None) -> None:
    if source.balance < wanted.amount:
        raise Short(wanted.amount, affordable=max(0, source.balance), held=0)
    if target is not None and target.balance + wanted.amount > NANOS_MAX:
        raise BookRefused(f"a wallet has {usd_text(NANOS_MAX)} at most")


async def _book(
    connection: Connection,
    parts: dict[int, Part],
    *,
    asked: Asked,
    before: tuple[Wallet, Wallet | None],
) -> Withdrawn:
    """Post what left and, in the target's partition, what came; each in its partition's chain."""
    wanted, (source, target) = asked.wanted, before
    after = await _move(connection, parts, wanted=wanted, wallet=source, gains=False)
    target_after = None
    if target is not None:
        target_after = await _move(connection, parts, wanted=wanted, wallet=target, gains=True)
    await connection.execute(_END, asked.id, "booked")
    moved = [(source, after)]
    if target is not None and target_after is not None:
        moved.append((target, target_after))
    for was, now in sorted(moved):  # two organizations' chains, locked in one order
        change = Change(
            wanted.actor,
            f"credit.{wanted.kind}" if was == source else f"credit.{TRANSFER_IN}",
            wanted.reference,
            before={"balance": str(was.balance)},
            after={"balance": str(now.balance), "reason": wanted.reason},
            address=wanted.address,
        )
        await append_change(connection, was.organization_id, change)
    return Withdrawn(after, target_after, is_new=True)


async def _move(
    connection: Connection, parts: dict[int, Part], *, wanted: Wanted, wallet: Wallet, gains: bool
) -> Wallet:
    """One side of a withdrawal; `parts` has the partition's row as it is afterwards."""
    part, amount = parts[wallet.partition], wanted.amount if gains else -wanted.amount
    version = part.version + 1
    after = await move_base(connection, wallet.id, amount, version=version)
    entry = Entry(
        TRANSFER_IN if gains else wanted.kind.value,
        wanted.reference,
        wanted.actor,
        wanted.reason,
        {wallet.id: amount, wanted.kind.value: -amount},
    )
    parts[part.number] = await post(connection, part, entry=entry, version=version)
    return after
