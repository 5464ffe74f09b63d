"""The wallet over HTTP: what is in it, and everything that came in and went out by choice.

Calls are not listed here: each flush posts thousands of them as one sum, and reports tell of them
better. So the running figure of the history is what was given, less what was taken back.
"""

import asyncio
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import msgspec
from redis.exceptions import RedisError

from gateway.display import Display, DisplayUnit, display
from gateway.errors import Conflict, Forbidden
from gateway.management import credits as money
from gateway.management import people
from gateway.management.desk import Desk
from gateway.policy import Permission
from gateway.rest.caller import Scope, member
from gateway.rest.cursor import Page, Paged, cursor_at, place_in
from gateway.rest.route import Answer, Asked, Nothing, Route
from ledger.book import Book
from ledger.functions import Epoch, Partition, WalletImage
from ledger.money import NANOS_MAX, Nanos
from ledger.withdrawals import WithdrawalKind

_REDIS_S = 0.5

Amount = Annotated[int, msgspec.Meta(ge=1, le=NANOS_MAX, description="nano-USD")]
Reason = Annotated[
    str, msgspec.Meta(min_length=1, max_length=money.REASON_CHARACTERS_MAX, pattern=r"^[^\x00]*\S")
]
Number = Annotated[int, msgspec.Meta(ge=1, le=2**62)]

# Summed over all of them before a page is cut out: an organization has few.
_TRANSACTIONS = """
    SELECT number, kind, amount_nanos, granted_nanos, actor, reason, at FROM (
        SELECT t.number, t.kind, p.amount AS amount_nanos, t.actor, t.reason, t.at,
               (sum(p.amount) OVER (ORDER BY t.number))::bigint AS granted_nanos
        FROM ledger_transaction AS t JOIN posting AS p USING (partition, number)
        WHERE t.partition = $2 AND t.kind <> 'flush' AND p.account = $1::uuid::text
    ) AS moved
    WHERE $3::bigint IS NULL OR number < $3
    ORDER BY number DESC LIMIT $4
"""


class WalletView(msgspec.Struct, frozen=True, kw_only=True):
    """What an organization has, in nano-USD."""

    granted_nanos: int  # given, less what was taken back or charged late
    spent_nanos: int  # on calls, as far as they are booked: some tenths of a second behind
    balance_nanos: int  # the one less the other
    held_nanos: int | None  # by open calls; null: cannot be told now
    free_nanos: int | None  # for new calls, to the last one; null: cannot be told now
    display: Display


class TransactionView(msgspec.Struct, frozen=True, kw_only=True):
    """Money that came or went by choice, in nano-USD."""

    id: int  # grows with time
    kind: str  # grant | payment | adjustment | refund | transfer | transfer_in | payout
    amount_nanos: int  # what the wallet gained; below zero: what it lost
    granted_nanos: int  # all of them together, up to this one
    actor: str
    reason: str
    at: datetime
    display: Display


class OwnTransfer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is to go from one's own account to the organization at hand."""

    amount_nanos: Amount
    reason: Reason = "a transfer from a personal account"


class TransferView(msgspec.Struct, frozen=True, kw_only=True):
    """A transfer that is booked."""

    amount_nanos: int
    from_balance_nanos: int  # afterwards
    to_balance_nanos: int
    is_usable: bool  # false: a store is away, and it can be spent once that is back


async def get(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """What there is, what open calls hold of it, and what is free."""
    wallet = await Book(desk.pool).wallet(str(asked.caller.place.organization_id))
    assert wallet is not None, "an organization is made with its wallet"
    image = await _image(desk, wallet.partition, wallet.id)
    held, free = (None, None) if image is None else (image.held, image.free)
    return Answer(
        WalletView(
            granted_nanos=wallet.base,
            spent_nanos=wallet.spent,
            balance_nanos=wallet.balance,
            held_nanos=held,
            free_nanos=free,
            display=display(
                desk.unit_of(asked.caller.place.policy),
                has={"granted": wallet.base, "balance": wallet.balance, "free": free},
                gone={"spent": wallet.spent, "held": held},
            ),
        )
    )


async def transactions(desk: Desk, asked: Asked[Paged, Nothing]) -> Answer:
    """Credits and withdrawals, the newest first."""
    wanted = asked.query
    wallet = await Book(desk.pool).wallet(str(asked.caller.place.organization_id))
    assert wallet is not None, "an organization is made with its wallet"
    before = place_in(wanted.cursor, Number)
    rows = await desk.pool.fetch(
        _TRANSACTIONS, UUID(wallet.id), wallet.partition, before, wanted.limit + 1
    )
    unit = desk.unit_of(asked.caller.place.policy)
    found = [_transaction(dict(row), unit) for row in rows[: wanted.limit]]
    more = len(rows) > wanted.limit
    return Answer(
        Page[TransactionView](data=found, next_cursor=cursor_at(found[-1].id) if more else None)
    )


async def give(desk: Desk, asked: Asked[Nothing, OwnTransfer]) -> Answer:
    """Move credits from one's own account into the organization at hand, where it allows that."""
    caller, wanted = asked.caller, asked.body
    if not caller.place.policy.transfers_self_service:
        raise Forbidden(
            "Transfers from personal accounts are made by the operator here. Ask them, or have an"
            " owner set the policy's transfers_self_service.",
            code="transfers_not_self_service",
        )
    if caller.person_id is None:
        raise Forbidden(
            "This is for people, and the token is an organization's.", code="not_a_person"
        )
    own = (await people.one(desk, caller.person)).account_id
    if own is None or own == caller.place.organization_id:
        raise Conflict(
            "Name the organization that gains with X-Organization-Id.", code="own_account"
        )
    taking = money.Taking(
        own,
        Nanos(wanted.amount_nanos),
        WithdrawalKind.TRANSFER,
        wanted.reason,
        caller.actor,
        target_id=caller.place.organization_id,
        idempotency_key=asked.key,
        address=caller.address,
    )
    return Answer(await transferred(desk, taking))


async def transferred(desk: Desk, taking: money.Taking) -> TransferView:
    """The transfer, done; raises what `credits.take` does."""
    taken = await money.take(desk.pool, desk.redis, taking)
    assert taken.target_balance is not None, "a transfer has a target"
    return TransferView(
        amount_nanos=taking.amount,
        from_balance_nanos=taken.balance,
        to_balance_nanos=taken.target_balance,
        is_usable=taken.is_usable,
    )


async def _image(desk: Desk, number: int, wallet: str) -> WalletImage | None:
    """The wallet as Redis has it; None if it does not answer, or does not know it yet."""
    partition = Partition(desk.redis, number)
    try:
        async with asyncio.timeout(_REDIS_S):
            generation = (await partition.state()).generation
            image = await partition.snap(generation, [wallet])
    except (Epoch, RedisError, OSError, TimeoutError):
        return None
    return image.wallets[0] if image.wallets else None


def _transaction(row: dict[str, Any], unit: DisplayUnit) -> TransactionView:
    shown = display(unit, has={"amount": row["amount_nanos"], "granted": row["granted_nanos"]})
    return TransactionView(id=row.pop("number"), display=shown, **row)


ROUTES = (
    Route(
        method="GET",
        path="/wallet",
        name="wallet.get",
        says="What there is, what open calls hold of it, and what is free.",
        access=member(Permission.BILLING_READ, Scope.BILLING_READ),
        handle=get,
        answers=WalletView,
    ),
    Route(
        method="GET",
        path="/transactions",
        name="wallet.transactions",
        says="Credits and withdrawals, the newest first. Calls are in the reports.",
        access=member(Permission.BILLING_READ, Scope.BILLING_READ),
        handle=transactions,
        query=Paged,
        answers=Page[TransactionView],
    ),
    Route(
        method="POST",
        path="/transfers",
        name="wallet.give",
        says="Move credits from one's own account into the organization at hand.",
        access=member(Permission.BILLING_PURCHASE, Scope.BILLING_WRITE),
        handle=give,
        body=OwnTransfer,
        answers=TransferView,
        status=201,
        is_once=True,
    ),
)
