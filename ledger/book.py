"""The book: organizations' wallets, and the credits posted to them. Postgres alone decides here.

A credit is one transaction under the partition row's lock: postings, base and version together. The
caller then pushes the new base with `ledger.bases.push_bases`; if it dies before, the flusher does.
"""

import uuid
from enum import StrEnum
from typing import NamedTuple

import asyncpg

from ledger.money import NANOS_MAX, Nanos
from ledger.postgres import Connection, one_row
from ledger.posting import Entry, lock_parts, post
from ledger.trail import Change, append_change

# The turn is stored, so that organizations spread evenly whichever process makes them.
_TURN = """
    SELECT (nextval('organization_turn') % (SELECT count(*) FROM part))::smallint
"""
_INSERT_ORGANIZATION = """
    INSERT INTO organization (id, name, kind, partition, time_zone) VALUES ($1, $2, $3, $4, $5)
"""
_INSERT_PROJECT = """
    INSERT INTO project (id, organization_id, name, is_default) VALUES ($1, $2, 'Default', true)
"""
_INSERT_WALLET = """
    INSERT INTO wallet (id, organization_id, partition, version, created_version)
    VALUES ($1, $1, $2, $3, $3)
"""
_RAISE_VERSION = "UPDATE part SET version = $2 WHERE number = $1"
_BOOKED = """
    SELECT t.partition, t.number, p.amount, p.account
    FROM ledger_transaction AS t JOIN posting AS p USING (partition, number)
    WHERE t.kind = $1 AND t.reference = $2 AND p.account <> $1
"""
WALLET = """
    SELECT id::text, organization_id::text, partition, base, spent, version FROM wallet
    WHERE id = $1
"""
_MOVE_BASE = """
    UPDATE wallet SET base = base + $2, version = $3 WHERE id = $1
    RETURNING id::text, organization_id::text, partition, base, spent, version
"""


class CreditKind(StrEnum):
    """Why a wallet gains; also the name of the account on the other side."""

    GRANT = "grant"  # given
    PAYMENT = "payment"  # paid for
    ADJUSTMENT = "adjustment"  # put right by an operator


class BookRefused(Exception):
    """The book does not take this; nothing was changed."""


class Organization(NamedTuple):
    """A customer. Its wallet has its id."""

    id: str
    name: str
    kind: str
    partition: int
    project_id: str  # of its default project
    balance: Nanos


class Wallet(NamedTuple):
    """A wallet as Postgres has it, without what open calls hold and what is not flushed yet."""

    id: str
    organization_id: str
    partition: int
    base: int
    spent: int
    version: int

    @property
    def balance(self) -> int:
        """What is posted to it, in nano-USD."""
        return self.base - self.spent


class Credited(NamedTuple):
    """A credit that is in the book."""

    wallet: Wallet
    is_new: bool  # False: this reference was booked before, and nothing was done now


class Book:
    """Reads and writes the book, over the pool of whoever manages."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def create_organization(
        self,
        name: str,
        *,
        actor: str,
        kind: str = "organization",
        time_zone: str = "UTC",
        address: str | None = None,
    ) -> Organization:
        """Make an organization with its wallet, empty, and a default project.

        `address`: where the request came from; None: from this machine's command line.
        """
        organization_id, project_id = str(uuid.uuid4()), str(uuid.uuid4())
        async with self._pool.acquire() as connection, connection.transaction():
            partition = await connection.fetchval(_TURN)
            version = (await lock_parts(connection, [partition]))[partition].version + 1
            await connection.execute(
                _INSERT_ORGANIZATION, organization_id, name, kind, partition, time_zone
            )
            await connection.execute(_INSERT_PROJECT, project_id, organization_id)
            await connection.execute(_INSERT_WALLET, organization_id, partition, version)
            await connection.execute(_RAISE_VERSION, partition, version)
            said = {"name": name, "kind": kind}
            change = Change(
                actor, "organization.create", organization_id, after=said, address=address
            )
            await append_change(connection, organization_id, change)
        return Organization(organization_id, name, kind, partition, project_id, Nanos(0))

    async def credit(
        self,
        organization_id: str,
        amount: Nanos,
        *,
        kind: CreditKind,
        reference: str,
        actor: str,
        reason: str = "",
        address: str | None = None,
    ) -> Credited:
        """Post a credit to the organization's wallet, once for each (kind, `reference`).

        Raises `BookRefused`: no such organization; an amount that is not above 0 or beyond
        measure; a reference that was used for something else. What leaves a wallet is a withdrawal.
        """
        if not 0 < amount <= NANOS_MAX:
            raise BookRefused(f"{amount} nano-USD is no {kind}")
        try:
            async with self._pool.acquire() as connection, connection.transaction():
                posted = _Credit(organization_id, amount, kind, reference, actor, reason, address)
                return await _credit(connection, posted)
        except asyncpg.UniqueViolationError as error:
            raise BookRefused(f"{kind} {reference!r} is being booked elsewhere") from error
        except asyncpg.DataError as error:
            raise BookRefused(f"{organization_id!r} is no organization's id") from error

    async def wallet(self, wallet_id: str) -> Wallet | None:
        """One wallet; None if there is none."""
        row = await self._pool.fetchrow(WALLET, wallet_id)
        return None if row is None else Wallet(*row)


class _Credit(NamedTuple):
    organization_id: str
    amount: int
    kind: CreditKind
    reference: str
    actor: str
    reason: str
    address: str | None


async def move_base(connection: Connection, wallet_id: str, amount: int, *, version: int) -> Wallet:
    """Add to a wallet's base; the wallet afterwards. Its partition's row is locked."""
    return Wallet(*await one_row(connection, _MOVE_BASE, wallet_id, amount, version))


async def _credit(connection: Connection, credit: _Credit) -> Credited:
    found = await connection.fetchrow(WALLET, credit.organization_id)
    if found is None or found["organization_id"] is None:
        raise BookRefused(f"there is no organization {credit.organization_id}")
    part = (await lock_parts(connection, [found["partition"]]))[found["partition"]]
    before = Wallet(*await one_row(connection, WALLET, credit.organization_id))
    booked = await connection.fetchrow(_BOOKED, credit.kind, credit.reference)
    if booked is not None:
        if (booked["account"], booked["amount"]) != (before.id, credit.amount):
            raise BookRefused(f"{credit.kind} {credit.reference!r} was booked as something else")
        return Credited(before, is_new=False)
    balance = before.balance + credit.amount
    if balance > NANOS_MAX:
        raise BookRefused(f"a wallet has {NANOS_MAX} nano-USD at most")
    version = part.version + 1
    after = await move_base(connection, before.id, credit.amount, version=version)
    entry = Entry(
        credit.kind.value,
        credit.reference,
        credit.actor,
        credit.reason,
        {before.id: credit.amount, credit.kind.value: -credit.amount},
    )
    await post(connection, part, entry=entry, version=version)
    change = Change(
        credit.actor,
        f"credit.{credit.kind}",
        credit.reference,
        before={"balance": str(before.balance)},
        after={"balance": str(after.balance), "reason": credit.reason},
        address=credit.address,
    )
    await append_change(connection, credit.organization_id, change)
    return Credited(after, is_new=True)
