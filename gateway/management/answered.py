"""What was answered under an Idempotency-Key, given again to who asks the same.

The key is written before the work begins, so that of two at once one does it. Who does it says so
again every few seconds: a process that dies leaves the key without an answer, and soon somebody who
asks again has the work done again. Who cannot say it in time gives the work up before that.

All of it by Postgres' clock, whatever the processes' say. Only one that stood still altogether can
wake up and take a step beside another. That is safe, as is doing the work again: money is booked
once under the same key, and a mail is better sent twice than never.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, NamedTuple

import asyncpg

from gateway.errors import Conflict, GatewayError, Unavailable
from gateway.management.desk import Desk
from gateway.rest.problem import problem_of
from gateway.rest.route import Asked, Route
from gateway.rest.server import Given
from ledger.cancelled import raise_if_cancelled
from ledger.postgres import AWAY

KEPT = timedelta(hours=24)

# Until there is an answer, `body` is whose claim it is, and `version` how long they may be silent,
# seconds. The release before this one leaves both out, and says nothing for the minute that it has.
_BEGIN = """
    INSERT INTO answered (caller, key, body, fingerprint, asked_at, version)
    VALUES ($1, $2, $3, $4, clock_timestamp(), $6)
    ON CONFLICT (caller, key) DO UPDATE
    SET fingerprint = excluded.fingerprint, asked_at = clock_timestamp(),
        status = NULL, body = excluded.body, version = excluded.version
    WHERE answered.asked_at < clock_timestamp() - $5::interval
       OR (answered.status IS NULL AND answered.fingerprint = excluded.fingerprint
           AND answered.asked_at
               < clock_timestamp() - make_interval(secs => coalesce(answered.version, 60)))
    RETURNING true
"""
_RENEW = """
    UPDATE answered SET asked_at = clock_timestamp()
    WHERE caller = $1 AND key = $2 AND body = $3 AND status IS NULL
    RETURNING true
"""
_FOUND = "SELECT fingerprint, status, body, version FROM answered WHERE caller = $1 AND key = $2"
_END = """
    UPDATE answered SET status = $4, body = $5, version = $6
    WHERE caller = $1 AND key = $2 AND body = $3 AND status IS NULL
"""
_FORGET = """
    DELETE FROM answered WHERE caller = $1 AND key = $2 AND body = $3 AND status IS NULL
"""


# Another process may be at it, too: each takes others.
_OVER = """
    DELETE FROM answered WHERE (caller, key) IN (
        SELECT caller, key FROM answered WHERE asked_at < clock_timestamp() - $1::interval
        ORDER BY asked_at LIMIT $2 FOR UPDATE SKIP LOCKED
    )
    RETURNING true
"""
_BATCH = 500


class Pace(NamedTuple):
    """How often who does the work says so."""

    silent_s_max: int = 10  # after this it has died
    every_s: float = 3.0
    margin_s: float = 2.0  # it gives up so much sooner


class _Lost(Exception):
    """The work is not ours any more, or may not be in a moment."""


class _Claim:
    """That this process does the work of a key, and when it last said so."""

    def __init__(self, desk: Desk, pace: Pace, name: tuple[str, str]) -> None:
        self._pool, self._pace = desk.pool, pace
        self._own = (*name, desk.random_bytes(16))
        self._ends_s = 0.0  # of the loop's clock

    async def begin(self, fingerprint: bytes) -> bool:
        """Whether the work is ours to do."""
        return await self._say(_BEGIN, fingerprint, KEPT, self._pace.silent_s_max)

    async def work(self, work: Callable[[], Awaitable[Given]]) -> Given:
        """Its answer; raises as it does, and `Unavailable` if the claim could not be kept."""
        error: Exception | None = None
        given: Given | None = None
        try:
            async with asyncio.TaskGroup() as group:
                keeping = group.create_task(self._keep(), name="claim")
                try:
                    given = await work()
                except Exception as raised:  # noqa: BLE001 - raised below, in no group
                    error = raised
                finally:
                    keeping.cancel()
        except* _Lost:
            text = "The database did not answer for too long. Ask again, under the same key."
            raise Unavailable(text, code="unavailable") from None
        if error is not None:
            raise error
        assert given is not None, "it has answered or raised"
        return given

    async def end(self, given: Given) -> None:
        """Remember the answer."""
        await self._pool.execute(_END, *self._own, *given)

    async def forget(self) -> None:
        """Have the work done again by who asks again."""
        await self._pool.execute(_FORGET, *self._own)

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(self._pace.every_s, max(0.0, self._ends_s - loop.time())))
            try:
                async with asyncio.timeout_at(self._ends_s):
                    if not await self._say(_RENEW):
                        raise _Lost  # somebody has found us silent
            except (*AWAY, asyncpg.PostgresError) as error:
                raise_if_cancelled()
                if loop.time() >= self._ends_s:
                    raise _Lost from error

    async def _say(self, query: str, *arguments: object) -> bool:
        # From before it is asked: Postgres counts from later on.
        now_s = asyncio.get_running_loop().time()
        if not await self._pool.fetchval(query, *self._own, *arguments):
            return False
        self._ends_s = now_s + self._pace.silent_s_max - self._pace.margin_s
        return True


async def forget_some(desk: Desk) -> int:
    """Delete the oldest of what is kept no longer; how many."""
    return len(await desk.pool.fetch(_OVER, KEPT, _BATCH))


class AnsweredOnce:
    """Does things once for each key of a caller."""

    def __init__(self, desk: Desk, pace: Pace | None = None) -> None:
        self._desk, self._pace = desk, pace or Pace()

    async def __call__(
        self,
        asked: Asked[Any, Any],
        route: Route,
        body: bytes,
        work: Callable[[], Awaitable[Given]],
    ) -> Given:
        """The answer of `work`, done now or before; `Conflict` if it is being done, or differs."""
        assert asked.key is not None, "without a key there is nothing to remember"
        name = (_caller(asked), asked.key)
        fingerprint = _fingerprint(route, asked, body)
        claim = _Claim(self._desk, self._pace, name)
        if not await claim.begin(fingerprint):
            return await self._before(*name, fingerprint)
        try:
            given = await claim.work(work)
        except GatewayError as error:
            if error.status_now < 500:  # noqa: PLR2004 - what was refused would be refused again
                await claim.end(Given(error.status_now, problem_of(error)))
            else:
                await claim.forget()
            raise
        await claim.end(given)
        return given

    async def _before(self, caller: str, key: str, fingerprint: bytes) -> Given:
        row = await self._desk.pool.fetchrow(_FOUND, caller, key)
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
