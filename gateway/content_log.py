"""Keeps what is said in calls whose project opted in: beside the calls, which never wait for it.

What is to be kept waits in memory, so much and no more, until Postgres has it. A process that dies
loses what waits; money does not hang on it.
"""

import asyncio
import logging
from collections import deque
from uuid import UUID

import asyncpg

from gateway.content import Said, Vault, day_of
from gateway.copied import SIDE_BYTES_MAX, Copy
from gateway.metrics import Metrics
from ledger.cancelled import raise_if_cancelled
from ledger.outage import outage
from ledger.postgres import AWAY

log = logging.getLogger(__name__)

WAITING_BYTES_MAX = 32 * 1024 * 1024  # of a worker
_BATCH_BYTES = 4 * 1024 * 1024
_BATCH_MAX = 200
_RETRY_S = 1.0


class ContentLog:
    """One worker's part in it."""

    def __init__(self, pool: asyncpg.Pool, vault: Vault, metrics: Metrics) -> None:
        self._pool, self._vault, self._metrics = pool, vault, metrics
        self._waiting: deque[Said] = deque()
        self._size = 0  # of what waits, bytes
        self._has_some = asyncio.Event()
        self._turn = asyncio.Lock()

    def keep(self, organization_id: str, call_id: bytes, request: bytes, answer: Copy) -> None:
        """Have this kept, unless too much waits already; nobody waits for it."""
        organization = UUID(organization_id)
        is_cut = answer.is_cut or len(request) > SIDE_BYTES_MAX
        said = Said(organization, call_id, request[:SIDE_BYTES_MAX], answer.data, is_cut)
        if self._size + said.size > WAITING_BYTES_MAX:
            self._metrics.contents_dropped.add()
            return
        self._waiting.append(said)
        self._size += said.size
        self._has_some.set()

    async def run(self) -> None:
        """Write what waits until cancelled."""
        while True:
            await self._has_some.wait()
            try:
                await self.write_some()
            except (asyncpg.PostgresError, *AWAY) as error:
                raise_if_cancelled()
                log.warning("contents of calls wait for postgres", extra=outage(error))
                await asyncio.sleep(_RETRY_S)

    async def drain(self, within_s: float) -> int:
        """Write the rest, as far as there is time for it; how many are lost."""
        try:
            async with asyncio.timeout(within_s):
                while self._waiting:
                    await self.write_some()
        except (asyncpg.PostgresError, *AWAY) as error:  # a timeout is one of them
            log.warning("contents of calls are lost", extra=outage(error))
        return len(self._waiting)

    async def write_some(self) -> None:
        """Write the oldest. Cut off anywhere, they wait or are written; again is harmless."""
        async with self._turn:  # at the end of a process two are at it
            batch, kept = self._oldest(), 0
            try:
                kept = await self._written(batch)
            except (asyncpg.PostgresError, *AWAY):
                raise
            except Exception:  # what cannot be sealed must keep no process from its work
                raise_if_cancelled()
                log.exception("contents of calls cannot be sealed")
            for one in batch:
                self._waiting.popleft()
                self._size -= one.size
            if not self._waiting:
                self._has_some.clear()
        self._metrics.contents_kept.add(amount=kept)
        self._metrics.contents_dropped.add(amount=len(batch) - kept)

    async def _written(self, batch: list[Said]) -> int:
        """How many could be sealed; of a day whose key this installation cannot open, none."""
        async with self._pool.acquire() as connection, connection.transaction():
            days = {(one.organization, day_of(one.call_id)) for one in batch}
            keys = await self._vault.keys(connection, days)
            if len(keys) < len(days):
                said = {"cause": "pepper", "days": len(days) - len(keys)}
                log.error("contents of calls are dropped: another pepper sealed a key", extra=said)
            return await self._vault.write(connection, batch, keys)

    def _oldest(self) -> list[Said]:
        batch: list[Said] = []
        size = 0
        for one in self._waiting:
            if batch and (size + one.size > _BATCH_BYTES or len(batch) == _BATCH_MAX):
                break
            batch.append(one)
            size += one.size
        return batch
