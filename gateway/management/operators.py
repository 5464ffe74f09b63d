"""Operators: the people who run the installation, made by its command line, and whom they help."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import uuid4

import asyncpg
import msgspec

from gateway.errors import BadRequest, Conflict, NotFound
from gateway.management import codes, notices
from gateway.management.bearers import BearerKind, issue
from gateway.management.desk import Desk
from gateway.management.notices import Notice, What
from gateway.management.people import EMAIL_PATTERN, Email
from gateway.management.wallet import Reason
from gateway.rest.caller import OPERATOR
from gateway.rest.route import Answer, Asked, Nothing, Route
from ledger.postgres import Connection
from ledger.trail import Change, append_change
from providers.adapter import Secret

LINK_LIVES = timedelta(minutes=30)

_MAKE = """
    INSERT INTO person (id, email, verified_at, is_operator, created_at)
    VALUES ($1, $2, $3, true, $3)
    ON CONFLICT (lower(email)) DO UPDATE
    SET is_operator = true, verified_at = coalesce(person.verified_at, excluded.verified_at),
        version = person.version + 1
    RETURNING id
"""
_LINK = """
    INSERT INTO link (digest, purpose, person_id, created_at, expires_at)
    VALUES ($1, 'sign-in', $2, $3, $4)
"""
_SIGNED_IN = """
    SELECT EXISTS (
        SELECT FROM person AS p JOIN session AS s ON s.person_id = p.id WHERE p.is_operator
    )
"""
_LOCKED = """
    SELECT id, account_id, otp_since FROM person WHERE lower(email) = lower($1) FOR NO KEY UPDATE
"""
_RESET = """
    UPDATE person
    SET otp_secret = NULL, otp_since = NULL, otp_step = 0, otp_wrong = 0, version = version + 1
    WHERE id = $1
"""
_END_SESSIONS = "UPDATE session SET ended_at = $2 WHERE person_id = $1 AND ended_at IS NULL"


class FactorReset(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who lost their second factor, and how it is known that it is them who ask."""

    email: Email
    reason: Reason


class Helper(NamedTuple):
    """Who helps, as the audit log names them."""

    actor: str
    address: str | None  # None: at the command line


async def make(
    pool: asyncpg.Pool,
    email: str,
    *,
    digest: Callable[[str], bytes],
    random_bytes: Callable[[int], bytes],
    now: datetime,
) -> Secret:
    """Make this person an operator, a new one if need be; the secret of a link to sign in with.

    Who can run commands on this machine needs no other proof. `BadRequest`: it is no address.
    """
    if EMAIL_PATTERN.fullmatch(email) is None:
        raise BadRequest(f"{email!r} is no e-mail address.", code="invalid_email")
    bearer = issue(BearerKind.LINK, random_bytes, digest)
    async with pool.acquire() as connection, connection.transaction():
        person_id = await connection.fetchval(_MAKE, uuid4(), email.lower(), now)
        await connection.execute(_LINK, bearer.digest, person_id, now, now + LINK_LIVES)
    return bearer.secret


async def have_signed_in(pool: asyncpg.Pool) -> bool:
    """Whether any operator ever has."""
    return bool(await pool.fetchval(_SIGNED_IN))


async def reset(desk: Desk, asked: Asked[Nothing, FactorReset]) -> Answer:
    """Take away a second factor that somebody lost."""
    helper = Helper(asked.caller.actor, asked.caller.address)
    async with desk.pool.acquire() as connection, connection.transaction():
        await reset_factor(connection, asked.body, helper, site=desk.site, now=desk.now())
    return Answer()


async def reset_factor(
    connection: Connection, wanted: FactorReset, helper: Helper, *, site: str, now: datetime
) -> None:
    """End somebody's one-time passwords, recovery codes and sessions, and tell them by mail.

    The password stays wanted: who asks in somebody else's name gains nothing without it. The
    caller has a transaction open. `NotFound`: nobody has this address. `Conflict`: there is no
    second factor.
    """
    row = await connection.fetchrow(_LOCKED, wanted.email)
    if row is None:
        raise NotFound(f"Nobody has the address {wanted.email}.", code="person_not_found")
    if row["otp_since"] is None:
        raise Conflict(
            f"{wanted.email} has no one-time passwords; there is nothing to reset.",
            code="no_one_time_passwords",
        )
    await connection.execute(_RESET, row["id"])
    await connection.execute(codes.FORGET, row["id"])
    await connection.execute(_END_SESSIONS, row["id"], now)
    if row["account_id"] is not None:
        change = Change(
            helper.actor,
            "person.factor_reset",
            str(row["id"]),
            after={"reason": wanted.reason},
            address=helper.address,
        )
        await append_change(connection, str(row["account_id"]), change)
    told = Notice(What.SECOND_FACTOR_RESET, helper.address or "the server itself", wanted.reason)
    await notices.write(connection, row["id"], told, site=site, now=now)


ROUTES = (
    Route(
        method="POST",
        path="/operator/factor-resets",
        name="operator.reset_factor",
        says="Take away a second factor that somebody lost; their sessions end.",
        access=OPERATOR,
        handle=reset,
        body=FactorReset,
        is_once=True,
        raises=(404, 409),
    ),
)
