"""What all calls need at the moment when one more is let in, by those who made them.

The store judges by what it holds. Here is what it must know of: every call in the books, and every
call of a gateway that has told it all. A gateway that died or was silent at the roll call has told
nothing, so of its calls only those count that are held.
"""

from collections.abc import Callable
from typing import NamedTuple

from ledger.admission import Hold
from tests.simulation.books import Books
from tests.simulation.store import Store

_SWEPT = ("expired", "lost")


class Claim(NamedTuple):
    """A call from its hold on; `held_now`: what its gateway believes to be held, None: nothing."""

    gateway: str
    amount: int
    held_now: Callable[[bytes], int | None]


class Claims:
    """Of one wallet."""

    def __init__(self, store: Store, books: Books) -> None:
        self._store, self._books = store, books
        self._made: dict[bytes, Claim] = {}
        self._charges: dict[bytes, int] = {}  # of calls that have ended
        self._dead: set[str] = set()
        self.wrong = ""  # the first call that was let in without money
        store.on_admitted = self._admitted

    def begin(self, call_id: bytes, claim: Claim) -> None:
        """A gateway is about to ask for it."""
        self._made[call_id] = claim

    def end(self, call_id: bytes, charge: int) -> None:
        """Its gateway has journaled its end."""
        self._charges[call_id] = charge

    def die(self, gateway: str) -> None:
        """This gateway tells nothing more."""
        self._dead.add(gateway)

    def _admitted(self, hold: Hold) -> None:
        needed = sum(there.charge for there in self._books.known.values())
        needed += sum(map(self._needed, self._made)) + hold.amount
        free = self._store.model.free(hold.wallet)
        if not self.wrong and (needed > self._books.granted or free < 0):
            self.wrong = (
                f"{hold.call_id.hex()} was let in: {needed} of {self._books.granted} are needed,"
                f" the store says that {free} are free"
            )

    def _needed(self, call_id: bytes) -> int:
        """What a call that is not in the books needs; 0 if the store need not know of it."""
        model, claim = self._store.model, self._made[call_id]
        is_told = call_id in model.open or (
            claim.gateway not in self._dead and claim.gateway.encode() in self._store.signed
        )
        is_swept = model.ended.get(call_id, (0, ""))[1] in _SWEPT
        if not is_told or is_swept or call_id in self._books.known:
            return 0
        if call_id in self._charges:
            # What is above the hold nobody knows before the end is told.
            return min(self._charges[call_id], claim.amount)
        return claim.held_now(call_id) or 0
