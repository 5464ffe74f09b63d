"""Messages to webhooks: rows that a job delivers, signed, and tries again for three days.

Whoever takes a row moves its next try a minute ahead, longer than any try takes, so of several
processes one sends; one that dies leaves it to the next. A receiver that is told twice, because its
answer was lost, knows by the message's id. Of one webhook one message is under way at a time, so a
slow one keeps no other waiting.
"""

import asyncio
import logging
from datetime import timedelta
from uuid import UUID

import asyncpg
from standardwebhooks import Webhook

from gateway.management.alerts import Alert, AlertKind, give
from gateway.management.desk import Desk
from gateway.notify import Notifier, Unanswered
from gateway.sealing import SealBroken
from ledger.cancelled import raise_if_cancelled
from ledger.outage import outage
from ledger.postgres import AWAY

log = logging.getLogger(__name__)

# After the first try, the second and so on; when they are used up, the message is given up.
PAUSES = (
    timedelta(seconds=5),
    timedelta(minutes=5),
    timedelta(minutes=30),
    timedelta(hours=2),
    timedelta(hours=5),
    timedelta(hours=10),
    timedelta(hours=14),
    timedelta(hours=20),
    timedelta(hours=24),
)
_EVERY_S = 1.0
_AT_ONCE = 16
_FORGET_EVERY_S = 3_600.0
_GOOD, _ELSEWHERE = 2, 3  # hundreds of a status
_GONE = 410  # says the receiver for ever

_TAKE = """
    UPDATE webhook_delivery AS d SET next_at = $1 + interval '1 minute', tries = d.tries + 1
    FROM webhook AS w
    WHERE w.id = d.webhook_id AND d.id = (
        SELECT due.id FROM webhook_delivery AS due JOIN webhook AS its ON its.id = due.webhook_id
        WHERE due.ended_at IS NULL AND due.next_at <= $1 AND its.disabled_at IS NULL
          AND due.webhook_id <> ALL ($2::uuid[])
        ORDER BY due.next_at LIMIT 1 FOR UPDATE OF due SKIP LOCKED
    )
    RETURNING d.id, d.webhook_id, d.body, d.tries, d.created_at, w.organization_id, w.url, w.secret,
              w.former_secret, w.former_until
"""
# Only the latest try speaks for a message.
_DELIVERED = """
    UPDATE webhook_delivery SET ended_at = $3, next_at = NULL, status = $4, error = NULL
    WHERE id = $1 AND tries = $2 AND ended_at IS NULL
"""
_SUCCEEDED = "UPDATE webhook SET succeeded_at = $2, failing_since = NULL WHERE id = $1"
_FAILED = """
    UPDATE webhook_delivery
    SET next_at = $5, ended_at = CASE WHEN $5::timestamptz IS NULL THEN $3::timestamptz END,
        status = $4, error = $6
    WHERE id = $1 AND tries = $2 AND ended_at IS NULL
    RETURNING id
"""
_FAILING = "UPDATE webhook SET failing_since = coalesce(failing_since, $2) WHERE id = $1"
_DISABLE = """
    UPDATE webhook SET disabled_at = $2, disabled_why = $3, version = version + 1
    WHERE id = $1 AND disabled_at IS NULL AND (succeeded_at IS NULL OR succeeded_at < $4)
    RETURNING url
"""
_END_WAITING = """
    UPDATE webhook_delivery SET ended_at = $2, next_at = NULL, error = 'the webhook was disabled'
    WHERE webhook_id = $1 AND ended_at IS NULL
"""
_FORGET = "DELETE FROM webhook_delivery WHERE ended_at < $1"
_KEPT = timedelta(days=30)


class Messenger:
    """Delivers what is waiting."""

    def __init__(self, desk: Desk, notifier: Notifier) -> None:
        self._desk, self._notifier = desk, notifier
        self._busy: set[UUID] = set()  # webhooks with a message under way here
        self._has_room = asyncio.Event()
        self._is_leaving = False

    async def run(self) -> None:
        """Deliver for as long as the process lives."""
        forget_at_s = 0.0
        async with asyncio.TaskGroup() as group:
            while not self._is_leaving:
                try:
                    while len(self._busy) < _AT_ONCE and (row := await self._take()) is not None:
                        group.create_task(self._deliver_safely(row), name=f"message {row['id']}")
                    if asyncio.get_running_loop().time() >= forget_at_s:
                        forget_at_s = asyncio.get_running_loop().time() + _FORGET_EVERY_S
                        await self._desk.pool.execute(_FORGET, self._desk.now() - _KEPT)
                except (asyncpg.PostgresError, *AWAY) as error:
                    raise_if_cancelled()
                    self._complain("webhooks are not looked at", error)
                await asyncio.sleep(_EVERY_S)

    def leave(self) -> None:
        """Say no more of what fails: the stores are closed for the process's end."""
        self._is_leaving = True

    async def deliver_some(self) -> int:
        """Try what is due now, a message of each webhook at most; how many were delivered."""
        async with asyncio.TaskGroup() as group:
            tasks = []
            while (row := await self._take()) is not None:
                tasks.append(group.create_task(self._deliver(row), name=f"message {row['id']}"))
        return sum(task.result() for task in tasks)

    async def _take(self) -> asyncpg.Record | None:
        row = await self._desk.pool.fetchrow(_TAKE, self._desk.now(), [*self._busy])
        if row is not None:
            self._busy.add(row["webhook_id"])
        return row

    async def _deliver_safely(self, row: asyncpg.Record) -> None:
        try:
            await self._deliver(row)
        # Whatever fails here, the row is due again in a minute, and the others go on.
        except Exception as error:  # noqa: BLE001 - see above
            raise_if_cancelled()
            self._complain("a webhook's message is left for another try", error)

    async def _deliver(self, row: asyncpg.Record) -> bool:
        """One try; whether it was delivered."""
        status = None
        try:
            status = await self._notifier.post(row["url"], row["body"].encode(), self._head(row))
            if status // 100 == _GOOD:
                await self._note_success(row, status)
                return True
            error = f"it answered {status}"
            if status // 100 == _ELSEWHERE:
                error = f"it answered {status}; redirects are not followed"
        except (Unanswered, SealBroken) as unanswered:
            error = str(unanswered)
        finally:
            self._busy.discard(row["webhook_id"])
        await self._note_failure(row, status, error)
        return False

    def _head(self, row: asyncpg.Record) -> dict[str, str]:
        """The headers of Standard Webhooks, signed with every secret that is good now."""
        now, owner = self._desk.now(), str(row["webhook_id"])
        sealed = [row["secret"]]
        if row["former_until"] is not None and row["former_until"] > now:
            sealed.append(row["former_secret"])
        name = f"msg_{row['id'].hex}"
        signatures = [
            Webhook(self._desk.sealer.open(one, owner)).sign(name, now, row["body"])
            for one in sealed
        ]
        return {
            "Content-Type": "application/json",
            "User-Agent": "tollgate",
            "webhook-id": name,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(signatures),
        }

    async def _note_success(self, row: asyncpg.Record, status: int) -> None:
        now = self._desk.now()
        async with self._desk.pool.acquire() as connection, connection.transaction():
            await connection.execute(_DELIVERED, row["id"], row["tries"], now, status)
            await connection.execute(_SUCCEEDED, row["webhook_id"], now)

    async def _note_failure(self, row: asyncpg.Record, status: int | None, error: str) -> None:
        """Have it tried again, or give it up; a webhook that took nothing for days is disabled."""
        now, tries = self._desk.now(), row["tries"]
        is_over = status == _GONE or tries > len(PAUSES)
        next_at = None if is_over else now + PAUSES[tries - 1]
        async with self._desk.pool.acquire() as connection, connection.transaction():
            marked = await connection.fetchval(
                _FAILED, row["id"], tries, now, status, next_at, error
            )
            if marked is None:
                return
            await connection.execute(_FAILING, row["webhook_id"], now)
            if not is_over:
                return
            why = f"a message was tried {tries} times: {error}"
            since = now if status == _GONE else row["created_at"]
            url = await connection.fetchval(_DISABLE, row["webhook_id"], now, why, since)
            if url is not None:
                await connection.execute(_END_WAITING, row["webhook_id"], now)
                facts = {"webhook_id": str(row["webhook_id"]), "url": url, "error": error}
                alert = Alert(
                    row["organization_id"],
                    AlertKind.WEBHOOK_DISABLED,
                    f"{row['webhook_id']} {row['id']}",
                    facts,
                    mail="webhook_disabled",
                )
                await give(connection, self._desk, [alert])

    def _complain(self, what: str, error: Exception) -> None:
        if not self._is_leaving:
            log.warning(what, extra=outage(error))
