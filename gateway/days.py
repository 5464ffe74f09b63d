"""The tables of days: those to come are made in time, and what nobody keeps any longer is dropped.

Every control process does both every hour, and of two at once one: whoever dies in it, the next
goes on. Calls never wait for it.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

import asyncpg

from gateway import content
from gateway.management.limits import keepers
from gateway.metrics import Metrics
from gateway.plans import Plan
from ledger.cancelled import raise_if_cancelled
from ledger.migrate import make_days
from ledger.outage import outage
from ledger.postgres import AWAY, Connection, connect
from ledger.retention import Forgotten, forget

log = logging.getLogger(__name__)

_FIRST_S = 60.0  # after a start, when there is other work: a process that often starts does it, too
_EVERY_S = 3_600.0


class Days:
    """One process's part in it. `wall_s`: unix seconds."""

    def __init__(
        self,
        postgres_url: str,
        plans: Mapping[str, Plan],
        *,
        metrics: Metrics,
        wall_s: Callable[[], float],
    ) -> None:
        self._url, self._plans = postgres_url, plans
        self._metrics, self._wall_s = metrics, wall_s

    async def run(self) -> None:
        """Do it for as long as the process lives."""
        await asyncio.sleep(_FIRST_S)
        while True:
            try:
                await self.turn()
            except (*AWAY, asyncpg.PostgresError) as error:
                raise_if_cancelled()
                log.warning("the tables of days are not looked after", extra=outage(error))
            await asyncio.sleep(_EVERY_S)

    async def turn(self) -> None:
        """Once."""
        connection = await connect(self._url, name="days")
        try:
            await make_days(connection)
            done = await forgotten(connection, self._plans, self._wall_s())
        finally:
            await connection.close()
        if done is None:
            return
        self._metrics.call_log_rows_deleted.add(amount=done.rows)
        self._metrics.call_log_days_dropped.add(amount=len(done.days))
        if done.stuck:
            return
        self._metrics.retention_success.set(self._wall_s())
        if done.days or done.rows:
            said = {"days": [str(day) for day in done.days], "rows": done.rows}
            log.info("logs of calls are over their time", extra=said)


async def forgotten(
    connection: Connection, plans: Mapping[str, Plan], now_s: float, *, is_dry: bool = False
) -> Forgotten | None:
    """What no organization keeps any longer is gone, or would be if `is_dry`; None: as `forget`.

    What was said in calls goes with how they went. It is no part of what this gives.
    """
    today = datetime.fromtimestamp(now_s, UTC).date()
    kept = await keepers(connection, plans)
    if not is_dry:
        rows = await content.forget(
            connection, {one.organization_id: today - timedelta(days=one.days) for one in kept}
        )
        if rows:
            log.info("contents of calls are over their time", extra={"rows": rows})
    return await forget(connection, kept, today=today, is_dry=is_dry)
