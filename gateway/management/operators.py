"""Operators: the people who run the installation, made by its command line."""

from collections.abc import Callable
from datetime import datetime, timedelta
from uuid import uuid4

import asyncpg

from gateway.errors import BadRequest
from gateway.management.bearers import BearerKind, issue
from gateway.management.people import EMAIL_PATTERN
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
