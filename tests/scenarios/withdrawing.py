"""A process that takes money out of wallets and dies at a step: `kill -9` by its own hand.

python -m tests.scenarios.withdrawing POSTGRES REDIS CUT LINE...

Each LINE is "kind reference source target amount"; all are brought to CUT at once, then it dies.
The reference of each line that reached CUT is printed as it does; after `booked` and `told` that is
also what a client would hear. A line that can't reach it is told, with why, on stderr.
"""

import asyncio
import os
import signal
import sys

import asyncpg
from redis.asyncio import Redis

from ledger.admission import LedgerUnavailable
from ledger.money import Nanos
from ledger.withdrawals import Wanted, WithdrawalKind, Withdrawals

PATIENCE_S = 20.0
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


async def reach(withdrawals: Withdrawals, line: str, cut: str, reached: list[str]) -> None:
    """Bring a line to the cut, and say so.

    A ledger that recovers is asked again until the first line is there; what breaks off after that
    stays as it is.
    """
    wanted = wanted_of(line)
    async with asyncio.timeout(PATIENCE_S):
        while not await is_brought(withdrawals, wanted, cut):
            if reached:
                return
            await asyncio.sleep(0.05)
    reached.append(wanted.reference)
    print(wanted.reference, flush=True)


async def is_brought(withdrawals: Withdrawals, wanted: Wanted, cut: str) -> bool:
    """Take the steps that come before the cut; whether the ledger let them be taken."""
    try:
        await steps(withdrawals, wanted, cut)
    except LedgerUnavailable as error:
        print(f"{wanted.reference}: {error!r}", file=sys.stderr, flush=True)
        return False
    return True


async def steps(withdrawals: Withdrawals, wanted: Wanted, cut: str) -> None:
    """The steps that come before the cut."""
    if cut == "told":
        await withdrawals.withdraw(wanted)
    else:
        asked = await withdrawals.ask(wanted)
        assert not asked.is_booked, "nobody has asked for it before"
        if cut != "asked":
            generation = await withdrawals.withhold(asked)
            if cut == "booked" and await withdrawals.book(asked, generation) is None:
                raise LedgerUnavailable("what was withheld counts no more")


async def main(postgres: str, redis_url: str, cut: str, *lines: str) -> None:
    """Bring every line to the cut, and die."""
    try:
        async with asyncpg.create_pool(postgres, min_size=1, max_size=4) as pool:
            withdrawals = Withdrawals(pool, Redis.from_url(redis_url))
            reached: list[str] = []
            ways = [reach(withdrawals, line, cut, reached) for line in lines]
            for outcome in await asyncio.gather(*ways, return_exceptions=True):
                if outcome is not None:
                    print(repr(outcome), file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)  # before anything is closed
    finally:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
