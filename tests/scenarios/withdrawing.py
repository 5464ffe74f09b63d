"""A process that takes money out of wallets and dies at a step: `kill -9` by its own hand.

python -m tests.scenarios.withdrawing POSTGRES REDIS CUT LINE...

Each LINE is "kind reference source target amount"; all are brought to CUT at once, then it dies.
What is done is printed, as a client would hear it.
"""

import asyncio
import os
import signal
import sys

import asyncpg
from redis.asyncio import Redis

from ledger.money import Nanos
from ledger.withdrawals import Wanted, WithdrawalKind, Withdrawals

CUTS = ("asked", "withheld", "booked", "told")


def wanted_of(line: str) -> Wanted:
    """What a line asks for."""
    kind, reference, source, target, amount = line.split()
    return Wanted(
        source,
        Nanos(int(amount)),
        WithdrawalKind(kind),
        reference,
        "a storm",
        "a reason",
        None if target == "-" else target,
    )


async def until_cut(withdrawals: Withdrawals, line: str, cut: str) -> None:
    """Take the steps that come before the cut."""
    wanted = wanted_of(line)
    if cut == "told":
        await withdrawals.withdraw(wanted)
        print(wanted.reference, flush=True)
        return
    asked = await withdrawals.ask(wanted)
    if cut == "asked" or asked.is_booked:
        return
    generation = await withdrawals.withhold(asked)
    if cut == "booked" and await withdrawals.book(asked, generation) is not None:
        print(wanted.reference, flush=True)


async def main(postgres: str, redis_url: str, cut: str, *lines: str) -> None:
    """Bring every line to the cut, and die."""
    try:
        async with asyncpg.create_pool(postgres, min_size=1, max_size=4) as pool:
            withdrawals = Withdrawals(pool, Redis.from_url(redis_url))
            steps = [until_cut(withdrawals, line, cut) for line in lines]
            await asyncio.gather(*steps, return_exceptions=True)
            os.kill(os.getpid(), signal.SIGKILL)  # before anything is closed
    finally:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
