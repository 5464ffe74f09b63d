"""Calls that go on while Redis is away, because their organization chose so: its grace.

Redis alone can tell what a wallet has free, so without it nothing is admitted. An organization may
have a fixed sum that its calls may use meanwhile. Each process has an equal part of it for itself,
as nobody is there to share it through (docs/decisions/0081). A call is let in if its worst case
fits what is left of that part, the wallet is above zero in Postgres at that moment, and this
process has seen the ledger at work: one that is started in the outage does not know what the one
before it let in.

Such a call is journalled like every other, held in Redis as soon as that is there again, and
settled, late if it had ended before. Its part is free again once Postgres has its charge. So by
grace alone a wallet goes below zero by no more than the grace.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import NamedTuple
from uuid import UUID

import asyncpg
import uuid_utils

from gateway.metrics import Metrics
from gateway.proxy.admit import build_hold, output_bound
from gateway.proxy.live import LiveCall
from ledger.admission import Held
from ledger.conveyor import Conveyor
from ledger.grace import Allowances
from ledger.postgres import AWAY
from ledger.record import encode

log = logging.getLogger(__name__)

FLAG = "grace"
"""Of a record: nobody held the call's worst case when it began."""

ASK_EVERY_S = 1.0  # what Postgres says of a wallet holds for so long
_WAIT_S = 0.5  # for Postgres; the client has waited for Redis already

# One statement, one snapshot: a call that is booked is part of the balance.
_STANDING = """
    SELECT w.base - w.spent AS balance, array(
        SELECT u.call_id FROM unnest($2::uuid[], $3::bigint[]) AS ours (call_id, charge)
        JOIN usage_call AS u USING (call_id) WHERE u.charge >= ours.charge
    ) AS booked
    FROM wallet AS w WHERE w.id = $1::uuid
"""


class _Standing(NamedTuple):
    """What Postgres said of a wallet; `balance` 0 also if it did not answer."""

    balance: int
    until_s: float


class Grace:
    """The graces of one process, of `workers` on this machine."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        conveyor: Conveyor,
        metrics: Metrics,
        *,
        workers: int,
        monotonic_s: Callable[[], float],
    ) -> None:
        self._pool, self._conveyor, self._metrics = pool, conveyor, metrics
        self._workers, self._monotonic_s = workers, monotonic_s
        self.allowances = Allowances()
        self._standings: dict[str, _Standing] = {}
        self._lookups: dict[str, asyncio.Future[int]] = {}

    async def admits(self, live: LiveCall) -> bool:
        """Whether the call goes on though the ledger gave no answer; then `ended` must follow.

        It gets an id of its own: whatever became of the hold that nobody answered is released under
        the id it was asked for with, and must not be taken for the end of this call.
        """
        principal = live.principal
        processes = self._workers * live.terms.config.ledger.grace_gateways
        allowance = principal.grace // processes
        if not allowance or not self._conveyor.generation(principal.partition):
            return False
        if self._conveyor.needs_replica:
            return False  # its last byte would wait for what is away
        balance = await self._balance(principal.wallet)
        made = uuid_utils.uuid7()
        live.call_id, live.id_text = made.bytes, str(made)
        # Nobody can be asked for more later, so a stream as well counts with its whole bound.
        live.growth, before = None, live.record
        live.hold = build_hold(live, output_bound(live), now_ms=before.admitted_us // 1000)
        is_first = not self.allowances.wallets
        if balance <= 0 or not self.allowances.take(live.hold, allowance):
            self._metrics.grace_refused.add()
            return False
        live.held = Held(0, balance - live.hold.amount)
        live.record.flags += [*before.flags, FLAG]
        live.hold = live.hold._replace(ticket=encode(live.record))
        self._conveyor.rehold(live.hold)
        self._metrics.grace_calls.add()
        if is_first:
            log.warning("calls go on by grace", extra={"organization": principal.organization_id})
        return True

    def ended(self, call_id: bytes, charge: int) -> None:
        """A call that was let in is journalled with its end."""
        self.allowances.ended(call_id, charge)

    async def run(self) -> None:
        """Ask Postgres what it has of the calls that were let in; for ever."""
        while True:
            await asyncio.sleep(ASK_EVERY_S)
            wallets = self.allowances.wallets
            for wallet in wallets:
                await self._balance(wallet)
            if wallets and not self.allowances.wallets:
                log.warning("every call let in by grace is booked")

    async def _balance(self, wallet: str) -> int:
        """What the wallet has by the books, nano-USD; 0 if nobody can tell."""
        known = self._standings.get(wallet)
        if known is not None and self._monotonic_s() < known.until_s:
            return known.balance
        lookup = self._lookups.get(wallet)
        if lookup is not None:
            return await asyncio.shield(lookup)
        lookup = self._lookups[wallet] = asyncio.get_running_loop().create_future()
        balance = 0
        try:
            balance = await self._ask(wallet)
        except (asyncpg.PostgresError, *AWAY):
            balance = 0  # nobody can tell: who is not known to have anything gets nothing
        finally:
            del self._lookups[wallet]
            lookup.set_result(balance)
        now_s = self._monotonic_s()
        kept = self._standings.items()
        self._standings = {one: said for one, said in kept if now_s < said.until_s}
        self._standings[wallet] = _Standing(balance, now_s + ASK_EVERY_S)
        return balance

    async def _ask(self, wallet: str) -> int:
        charged = self.allowances.charged(wallet)
        ids = [UUID(bytes=call_id) for call_id in charged]
        async with asyncio.timeout(_WAIT_S), self._pool.acquire() as connection:
            row = await connection.fetchrow(_STANDING, wallet, ids, [*charged.values()])
        if row is None:
            return 0
        self.allowances.booked(call_id.bytes for call_id in row["booked"])
        return int(row["balance"])
