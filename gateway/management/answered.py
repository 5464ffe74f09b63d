"""What was answered under an Idempotency-Key, given again to who asks the same.

The key is written before the work begins, so that of two at once one does it. A process that dies
in between leaves the key without an answer; who asks again after a while has the work done again,
which is safe: money is booked once under the same key, and a mail is better sent twice than never.
"""

import hashlib
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from gateway.errors import Conflict, GatewayError
from gateway.management.desk import Desk
from gateway.rest.problem import problem_of
from gateway.rest.route import Asked, Route
from gateway.rest.server import Given

KEPT = timedelta(hours=24)
_GIVEN_UP = timedelta(seconds=60)  # after this whoever began it has died

_BEGIN = """
    INSERT INTO answered (caller, key, fingerprint, asked_at) VALUES ($1, $2, $3, $4)
    ON CONFLICT (caller, key) DO UPDATE
    SET fingerprint = excluded.fingerprint, asked_at = excluded.asked_at,
        status = NULL, body = NULL, version = NULL
    WHERE answered.asked_at < $5
       OR (answered.status IS NULL AND answered.asked_at < $6
           AND answered.fingerprint = excluded.fingerprint)
    RETURNING key
"""
_FOUND = "SELECT fingerprint, status, body, version FROM answered WHERE caller = $1 AND key = $2"
_END = """
    UPDATE answered SET status = $3, body = $4, version = $5 WHERE caller = $1 AND key = $2
"""
_FORGET = "DELETE FROM answered WHERE caller = $1 AND key = $2 AND status IS NULL"


class AnsweredOnce:
    """Does things once for each key of a caller."""

    def __init__(self, desk: Desk) -> None:
        self._pool, self._now = desk.pool, desk.now

    async def __call__(
        self,
        asked: Asked[Any, Any],
        route: Route,
        body: bytes,
        work: Callable[[], Awaitable[Given]],
    ) -> Given:
        """The answer of `work`, done now or before; `Conflict` if it is being done, or differs."""
        assert asked.key is not None, "without a key there is nothing to remember"
        caller, now = _caller(asked), self._now()
        fingerprint = _fingerprint(route, asked, body)
        began = await self._pool.fetchval(
            _BEGIN, caller, asked.key, fingerprint, now, now - KEPT, now - _GIVEN_UP
        )
        if began is None:
            return await self._before(caller, asked.key, fingerprint)
        try:
            given = await work()
        except GatewayError as error:
            if error.status_now < 500:  # noqa: PLR2004 - what was refused would be refused again
                refused = Given(error.status_now, problem_of(error))
                await self._pool.execute(_END, caller, asked.key, *refused)
            else:
                await self._pool.execute(_FORGET, caller, asked.key)
            raise
        await self._pool.execute(_END, caller, asked.key, *given)
        return given

    async def _before(self, caller: str, key: str, fingerprint: bytes) -> Given:
        row = await self._pool.fetchrow(_FOUND, caller, key)
        if row is not None and row["fingerprint"] != fingerprint:
            raise Conflict(
                "This Idempotency-Key was used for another request. Use a new one for each.",
                code="idempotency_key_reused",
            )
        if row is None or row["status"] is None:
            raise Conflict(
                "The request with this Idempotency-Key is being done. Ask again in a moment.",
                code="in_progress",
            )
        return Given(row["status"], row["body"], row["version"])


def _caller(asked: Asked[Any, Any]) -> str:
    caller = asked.caller
    place = "" if caller.at is None else caller.at.organization_id
    return f"{caller.person_id or caller.actor or caller.address}@{place}"


def _fingerprint(route: Route, asked: Asked[Any, Any], body: bytes) -> bytes:
    parts = [route.name, *(f"{name}={value}" for name, value in sorted(asked.path.items()))]
    return hashlib.sha256("\0".join(parts).encode() + b"\0" + body).digest()
