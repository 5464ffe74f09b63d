"""Before a call's last byte goes: wait until its end can't be lost any more."""

import asyncio

from gateway.proxy.exchange import ClientGone
from ledger.journal import Journal, JournalFull

REPLICA_S = 10.0  # failover and recovery included; then the client is cut
PLACED_S = 2.0  # the same for a stream of Redis, when the journal's disk is full


async def made_safe(
    placed: "asyncio.Future[None]",
    journal: Journal,
    *,
    is_unjournaled: bool,
    needs_replica: bool,
    within_s: float,
) -> None:
    """Return once the call's end can't be lost any more. `placed`: some stream has it.

    `ClientGone` if nobody has it `within_s` seconds: then the last byte must not go.
    """
    try:
        if not needs_replica and not is_unjournaled:
            try:
                await journal.synced()
            except JournalFull:
                pass  # Redis must have it instead
            else:
                return
        done, _ = await asyncio.wait({placed}, timeout=within_s)
        if not done:
            raise ClientGone
    finally:
        placed.cancel()
