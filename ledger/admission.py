"""The words of admission: what is asked of the ledger before a call, and what it answers.

All of one call's limits sit in one partition and are judged in one atomic step, all or none.
"""

from typing import NamedTuple

from ledger.money import ZERO, Nanos
from ledger.record import EndKind


class Cap(NamedTuple):
    """A spending limit on a key, project or member. Each of its windows is a wallet of its own."""

    id: str
    limit: Nanos  # per window
    starts_ms: tuple[int, ...]  # ascending window starts, unix ms: Redis takes the last that began


class Rate(NamedTuple):
    """A token bucket on the server's clock: capacity = limit, refilled evenly over a minute."""

    id: str  # "rpm:<key>" or "tpm:<key>"
    per_minute: int
    take: int  # 1 for requests; the tokens of the hold for tokens


class Slot(NamedTuple):
    """A limit on how many calls of a scope are open at once."""

    id: str
    limit: int


class Hold(NamedTuple):
    """What one call asks for."""

    call_id: bytes  # UUIDv7, 16 bytes
    partition: int
    wallet: str
    amount: Nanos  # 0 <= amount <= NANOS_MAX
    caps: tuple[Cap, ...] = ()
    rates: tuple[Rate, ...] = ()
    slots: tuple[Slot, ...] = ()
    lease_ms: int = 60_000
    ticket: bytes = b""  # the record as far as it is known, for the sweeper


class Held(NamedTuple):
    """Admitted."""

    generation: int
    free: int  # what is left in the wallet, nano-USD
    rate_left: tuple[int, ...] = ()  # whole units left in each of Hold.rates, in order


class Refused(NamedTuple):
    """Not admitted; nothing was changed."""

    code: str  # "wallet" | "cap" | "rate" | "slots" | "no_wallet"
    scope: str  # the id of the wallet, cap, rate or slot that refused
    free: int = 0  # what the wallet or cap could still pay, nano-USD
    held: int = 0  # what other open calls hold of it
    retry_after_ms: int = 0  # rate: when it would pass; cap: when its window ends (0: never)


class End(NamedTuple):
    """How one call ended, with the record it leaves."""

    call_id: bytes
    partition: int
    wallet: str
    kind: EndKind
    charge: Nanos
    record: bytes
    caps: tuple[Cap, ...] = ()
    tokens: int = 0  # input + output, for the tokens-per-minute bucket


def released(hold: Hold) -> End:
    """The end of a hold of which nothing was consumed."""
    return End(
        hold.call_id,
        hold.partition,
        hold.wallet,
        EndKind.RELEASED,
        ZERO,
        hold.ticket,
        hold.caps,
    )


class LedgerUnavailable(Exception):
    """Redis is silent, full or recovering: nothing was admitted. Clients wait `retry_after_s`."""

    def __init__(self, reason: str, retry_after_s: int = 1) -> None:
        super().__init__(reason)
        self.reason, self.retry_after_s = reason, retry_after_s
