"""Before a call's last byte goes: wait until its end can't be lost any more."""

import asyncio

from gateway.proxy.exchange import ClientGone
from ledger.journal import Journal, JournalFull

REPLICA_S = 10.0  # failover and recovery included; then the client is cut
_PLACED_S = 2.0  # what a client waits for Redis when the journal's disk is full


async def made_safe(
    placed: "asyncio.Future[None]",
    journal: Journal,
    *,
    is_unjournaled: bool,
    needs_replica: bool,
    within_s: float = REPLICA_S,
) -> None:
    """Return once the call's end can't be lost any more. `placed`: some stream has it.

    `ClientGone` if no replica has it `within_s` as well: then the last byte must not go.
    """
    try:
        if needs_replica:
            done, _ = await asyncio.wait({placed}, timeout=within_s)
            if not done:
                raise ClientGone
        elif is_unjournaled:
            await asyncio.wait({placed}, timeout=_PLACED_S)
        else:
            await journal.synced()
    except JournalFull:
        await asyncio.wait({placed}, timeout=_PLACED_S)
    finally:
        placed.cancel()
