"""Payment methods: an organization's, for who manages its billing, or one's own, for nobody else.

A card's number goes from the browser to the processor, never through here: a method is started
here, entered there, and confirmed here. What is kept is what its owner knows it by.
"""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import msgspec

from gateway.errors import Conflict, Forbidden, NotFound, Unavailable
from gateway.management.audit import note
from gateway.management.customers import customer_of
from gateway.management.desk import Desk
from gateway.management.payments import Owner, OwnerKind, processor_of
from gateway.payments.processor import Method, MethodKind, ProcessorAway, ProcessorRefused
from gateway.policy import Permission
from gateway.rest.caller import Caller, Scope, member
from gateway.rest.cursor import Page
from gateway.rest.route import Answer, Asked, Nothing, Route

METHODS_MAX = 20  # of one owner; nobody needs more, and each is a customer's at the processor
_UNFINISHED = timedelta(days=1)  # what was not entered by then is not counted any more

# Alone the organization's, and alone one's own, are ever read.
_MINE = """
    SELECT * FROM payment_method
    WHERE processor = $1 AND removed_at IS NULL
      AND ((owner_id = $2 AND $3) OR owner_id = $4::uuid)
"""
_LISTED = _MINE + "AND ready_at IS NOT NULL ORDER BY ready_at, id"
_ONE = _MINE + "AND id = $5"
_COUNT = """
    SELECT count(*) FROM payment_method
    WHERE processor = $1 AND owner_id = $2 AND removed_at IS NULL
      AND (ready_at IS NOT NULL OR created_at > $3)
"""
_START = """
    INSERT INTO payment_method (
        id, processor, owner_kind, owner_id, kind, setup, created_by, created_at
    ) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
"""
_READY = """
    UPDATE payment_method SET reference = $2, brand = $3, last4 = $4, expires = $5, ready_at = $6
    WHERE id = $1 AND ready_at IS NULL
    RETURNING id
"""
_IS_FIRST = """
    SELECT NOT EXISTS (
        SELECT FROM payment_method WHERE owner_id = $1 AND is_default AND removed_at IS NULL
    )
"""
_OWNERS_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended($1, 9))"
_NO_DEFAULT = "UPDATE payment_method SET is_default = false WHERE owner_id = $1 AND is_default"
_DEFAULT = """
    UPDATE payment_method SET is_default = true
    WHERE id = $1 AND removed_at IS NULL AND ready_at IS NOT NULL
"""
_REMOVE = """
    UPDATE payment_method SET removed_at = $2, is_default = false
    WHERE id = $1 AND removed_at IS NULL
    RETURNING id
"""
_STOP_TOP_UPS = """
    UPDATE auto_top_up
    SET is_enabled = false, trouble = 'its payment method was removed', version = version + 1
    WHERE method_id = $1 AND is_enabled
"""


class NewMethod(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is to be entered, and whose it will be."""

    kind: MethodKind
    owner: OwnerKind = OwnerKind.PERSON


class MethodSetup(msgspec.Struct, frozen=True, kw_only=True):
    """A method being entered. With Stripe.js: `confirmSetup` with the client_secret."""

    id: UUID
    processor: str
    client_secret: str
    publishable_key: str


class Entered(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """That the method was entered at the processor's."""

    sandbox_value: str | None = None  # only for the sandbox: what the method is to do


class MethodView(msgspec.Struct, frozen=True, kw_only=True):
    """A saved method, as its owner knows it."""

    id: UUID
    owner: OwnerKind
    kind: MethodKind
    brand: str
    last4: str
    expires: str | None  # "2030-04", of cards
    is_default: bool
    created_at: datetime


async def start(desk: Desk, asked: Asked[Nothing, NewMethod]) -> Answer:
    """Let a method be entered."""
    processor, caller, wanted = processor_of(desk), asked.caller, asked.body
    owner, method_id, now = _owner(caller, wanted.owner), uuid4(), desk.now()
    count = await desk.pool.fetchval(_COUNT, processor.name, owner.id, now - _UNFINISHED)
    if count >= METHODS_MAX:
        raise Conflict(
            f"There are {count} payment methods; remove one first.", code="too_many_methods"
        )
    try:
        customer = await customer_of(desk, owner)
        setup = await processor.start_setup(str(method_id), customer=customer, kind=wanted.kind)
    except (ProcessorAway, ProcessorRefused) as error:
        raise _refusal(error) from error
    kept = (method_id, processor.name, owner.kind, owner.id, wanted.kind, setup.id)
    await desk.pool.execute(_START, *kept, caller.actor, now)
    return Answer(
        MethodSetup(
            id=method_id,
            processor=processor.name,
            client_secret=setup.client_secret,
            publishable_key=processor.publishable_key,
        )
    )


async def confirm(desk: Desk, asked: Asked[Nothing, Entered]) -> Answer:
    """Keep a method that was entered. The first one of an owner becomes the default."""
    processor, row = processor_of(desk), await _one(desk, asked)
    if row["ready_at"] is None:
        owner = Owner(OwnerKind(row["owner_kind"]), row["owner_id"])
        try:
            method = await processor.finish_setup(
                row["setup"],
                customer=await customer_of(desk, owner),
                entered=asked.body.sandbox_value,
            )
        except (ProcessorAway, ProcessorRefused) as error:
            raise _refusal(error) from error
        await _keep(desk, asked, owner, method, row["id"])
    return Answer(_view(await _one(desk, asked)))


async def listed(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """One's own, and the organization's for who manages its billing."""
    name = processor_of(desk).name
    rows = await desk.pool.fetch(_LISTED, name, *_sight(asked.caller))
    return Answer(Page[MethodView](data=[_view(row) for row in rows], next_cursor=None))


async def make_default(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """Prefer it to its owner's others."""
    row = await _one(desk, asked)
    if row["ready_at"] is None:
        raise Conflict("It was not entered yet.", code="setup_unfinished")
    async with desk.pool.acquire() as connection, connection.transaction():
        await connection.execute(_OWNERS_LOCK, str(row["owner_id"]))
        await connection.execute(_NO_DEFAULT, row["owner_id"])
        await connection.execute(_DEFAULT, row["id"])
        await _note(connection, asked, "payment_method.default", row)
    return Answer(_view(await _one(desk, asked)))


async def remove(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """Forget it here, then at the processor's. A top-up that used it is switched off."""
    processor, row = processor_of(desk), await _one(desk, asked)
    async with desk.pool.acquire() as connection, connection.transaction():
        if await connection.fetchval(_REMOVE, row["id"], desk.now()) is None:
            return Answer()
        await connection.execute(_STOP_TOP_UPS, row["id"])
        await _note(connection, asked, "payment_method.remove", row)
    if row["reference"] is not None:
        try:
            await processor.remove(row["reference"])
        except (ProcessorAway, ProcessorRefused) as error:
            # Nothing here can charge it any more; the processor is told as soon as it is asked.
            raise Unavailable(
                f"It is removed here, and not at the processor's yet ({error}).",
                code="processor_away",
            ) from error
    return Answer()


async def _keep(
    desk: Desk, asked: Asked[Any, Any], owner: Owner, method: Method, method_id: UUID
) -> None:
    async with desk.pool.acquire() as connection, connection.transaction():
        await connection.execute(_OWNERS_LOCK, str(owner.id))
        known = (method.reference, method.brand, method.last4, method.expires, desk.now())
        if await connection.fetchval(_READY, method_id, *known) is None:
            return
        if await connection.fetchval(_IS_FIRST, owner.id):
            await connection.execute(_DEFAULT, method_id)
        row = {"id": method_id, "owner_kind": owner.kind, "kind": method.kind}
        await _note(connection, asked, "payment_method.add", {**row, "last4": method.last4})


async def _note(connection: Any, asked: Asked[Any, Any], action: str, row: Any) -> None:
    """The organization's log tells of its methods; of one's own it tells nobody."""
    if row["owner_kind"] == OwnerKind.ORGANIZATION:
        said = {"kind": row["kind"], "last4": row["last4"]}
        await note(connection, asked, action, target=str(row["id"]), after=said)


async def _one(desk: Desk, asked: Asked[Any, Any]) -> asyncpg.Record:
    method_id = asked.id("method_id")
    row = await desk.pool.fetchrow(_ONE, processor_of(desk).name, *_sight(asked.caller), method_id)
    if row is None:
        raise NotFound(f"There is no payment method {method_id}.", code="payment_method_not_found")
    return row


def _sight(caller: Caller) -> tuple[UUID, bool, UUID | None]:
    place = caller.place
    return place.organization_id, place.allows(Permission.BILLING_MANAGE), caller.person_id


def _owner(caller: Caller, kind: OwnerKind) -> Owner:
    if kind is OwnerKind.PERSON:
        if caller.person_id is None:
            raise Forbidden(
                "This is for people, and the token is an organization's.", code="not_a_person"
            )
        return Owner(kind, caller.person_id)
    if not caller.place.allows(Permission.BILLING_MANAGE):
        raise Forbidden(
            "The organization's payment methods are for who manages its billing.",
            code="not_permitted",
            extra={"permission": Permission.BILLING_MANAGE.value},
        )
    return Owner(kind, caller.place.organization_id)


def _refusal(error: ProcessorAway | ProcessorRefused) -> Conflict | Unavailable:
    if isinstance(error, ProcessorRefused):
        return Conflict(str(error), code=error.code)
    return Unavailable(
        f"The payment processor does not answer ({error}). Try again.", code="processor_away"
    )


def _view(row: asyncpg.Record) -> MethodView:
    return MethodView(
        id=row["id"],
        owner=OwnerKind(row["owner_kind"]),
        kind=MethodKind(row["kind"]),
        brand=row["brand"],
        last4=row["last4"],
        expires=row["expires"],
        is_default=row["is_default"],
        created_at=row["created_at"],
    )


_METHODS, _METHOD = "/payment-methods", "/payment-methods/{method_id}"
_READ, _WRITE = member(None, Scope.BILLING_READ), member(None, Scope.BILLING_WRITE)

ROUTES = (
    Route(
        method="GET",
        path=_METHODS,
        name="payment_methods.list",
        says="One's own, and the organization's for who manages its billing.",
        access=_READ,
        handle=listed,
        answers=Page[MethodView],
        raises=(409,),
    ),
    Route(
        method="POST",
        path=_METHODS,
        name="payment_methods.start",
        says="Let a card or bank account be entered in a browser, at the payment processor's.",
        access=_WRITE,
        handle=start,
        body=NewMethod,
        answers=MethodSetup,
        status=201,
        raises=(409,),
    ),
    Route(
        method="POST",
        path=f"{_METHOD}/confirmation",
        name="payment_methods.confirm",
        says="Keep a method that was entered.",
        access=_WRITE,
        handle=confirm,
        body=Entered,
        answers=MethodView,
        raises=(409,),
    ),
    Route(
        method="POST",
        path=f"{_METHOD}/default",
        name="payment_methods.make_default",
        says="Prefer it to its owner's others.",
        access=_WRITE,
        handle=make_default,
        answers=MethodView,
        raises=(409,),
    ),
    Route(
        method="DELETE",
        path=_METHOD,
        name="payment_methods.remove",
        says="Forget it. A top-up that used it is switched off.",
        access=_WRITE,
        handle=remove,
        raises=(409,),
    ),
)
