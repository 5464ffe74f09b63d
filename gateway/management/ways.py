"""The ways into an account: when they may be changed, and that one is always left."""

from datetime import timedelta
from typing import Any
from uuid import UUID

from gateway.errors import Conflict, Forbidden
from gateway.management.desk import Desk
from gateway.rest.route import Asked
from ledger.postgres import Connection

FRESH = timedelta(minutes=15)

_OPENED = "SELECT created_at FROM session WHERE id = $1"
# Whoever changes the ways into one account takes turns, and always here first.
_LOCK = "SELECT id FROM person WHERE id = $1 FOR NO KEY UPDATE"
_LEFT = """
    SELECT (password IS NOT NULL)
        OR EXISTS (SELECT FROM passkey WHERE person_id = $1)
        OR EXISTS (SELECT FROM identity WHERE person_id = $1 AND issuer = ANY($2))
    FROM person WHERE id = $1
"""
_END_OTHERS = """
    UPDATE session SET ended_at = $2
    WHERE person_id = $1 AND ended_at IS NULL AND id IS DISTINCT FROM $3
"""


async def check_fresh(desk: Desk, asked: Asked[Any, Any]) -> None:
    """Refuse who signed in long ago: a browser left open must not become a way in for good."""
    opened_at = await desk.pool.fetchval(_OPENED, asked.caller.session_id)
    if opened_at is None or opened_at <= desk.now() - FRESH:
        minutes = int(FRESH.total_seconds() // 60)
        raise Forbidden(
            f"Sign in again first: how an account is entered can be changed for {minutes} minutes"
            " after signing in.",
            code="sign_in_again",
        )


async def lock(connection: Connection, person_id: UUID) -> None:
    """Nobody else changes the ways into this account until the transaction ends."""
    await connection.execute(_LOCK, person_id)


async def check_one_is_left(desk: Desk, connection: Connection, person_id: UUID) -> None:
    """Refuse what the transaction did if nothing signs the person in any more; hold the lock.

    An identity at an issuer that is configured no longer signs in nobody.
    """
    issuers = [one.issuer for one in desk.config.management.sign_in]
    if not await connection.fetchval(_LEFT, person_id, issuers):
        raise Conflict(
            "Nothing else signs you in. Set a password first, which POST"
            " /api/v1/password-resets sends a link for, or add a passkey.",
            code="last_way_to_sign_in",
        )


async def end_elsewhere(desk: Desk, connection: Connection, asked: Asked[Any, Any]) -> None:
    """End the caller's sessions but the one at hand: some may have come in by what is gone now."""
    caller = asked.caller
    await connection.execute(_END_OTHERS, caller.person, desk.now(), caller.session_id)
