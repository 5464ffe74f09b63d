"""What the functions of a partition must do, in the plainest Python: sums over what happened.

Nothing here is moved step by step. A balance is computed from what was paid in, charged and held,
so a step that Redis forgets or does twice shows at once.
"""

from dataclasses import dataclass, field

from ledger.admission import Cap, End, Held, Hold, Refused
from ledger.functions import Ended

RANK = {"expired": 1, "lost": 2, "released": 3, "settled": 3}


class Fenced(Exception):
    """The call must be answered with EPOCH or STATE."""


@dataclass
class Wallet:
    """A wallet or cap window; what is held in it is a sum over the holds."""

    base: int
    spent: int = 0
    version: int = 0


@dataclass
class Open:
    """An open hold. One that is overdue is taken by the next sweep."""

    hold: Hold
    amount: int
    is_overdue: bool
    progress: int = -1
    record: bytes = b""
    generation: int = 0  # of a sum: the one it counts in


@dataclass
class Entry:
    """A line of the log."""

    kind: str
    moved: bool
    call_id: bytes
    wallet: str
    charge: int
    record: bytes


@dataclass
class Model:
    """One partition."""

    generation: int = 0
    state: str = ""
    wallets: dict[str, Wallet] = field(default_factory=dict)
    open: dict[bytes, Open] = field(default_factory=dict)
    ended: dict[bytes, tuple[int, str, int]] = field(
        default_factory=dict
    )  # generation, kind, charge
    owed: dict[bytes, Open] = field(default_factory=dict)  # sums that ended calls owe
    log: list[Entry] = field(default_factory=list)  # of this generation
    bases: int = 0  # base entries in this generation's log

    # Sums ----------------------------------------------------------------------------------------

    def held(self, wallet: str) -> int:
        """The sum of the open holds in a wallet or window; nothing counts before activation."""
        if self.state != "A":
            return 0
        every = (*self.open.values(), *self.owed.values())
        return sum(o.amount for o in every if wallet in _wallets(o.hold))

    def free(self, wallet: str) -> int:
        """What may still be held or charged."""
        there = self.wallets[wallet]
        return there.base - there.spent - self.held(wallet)

    def places(self, slot: str) -> int:
        """Open calls of a slot."""
        if self.state != "A":
            return 0
        return sum(slot in {s.id for s in o.hold.slots} for o in self.open.values())

    # Calls ---------------------------------------------------------------------------------------

    def hold(self, hold: Hold) -> Held | Refused | None:
        """The answer to a hold; None: its id is used up."""
        self._must_be("A")
        if hold.call_id in self.open:
            wallet = self.open[hold.call_id].hold.wallet
            return Held(self.generation, self.free(wallet))
        if hold.call_id in self.ended:
            return None
        if refused := self._short(hold, hold.amount):
            return refused
        for slot in hold.slots:
            if self.places(slot.id) >= slot.limit:
                return Refused("slots", slot.id, held=self.places(slot.id))
        self._open(hold)
        return Held(self.generation, self.free(hold.wallet))

    def extend(self, hold: Hold) -> Held | Refused:
        """The answer to a new total."""
        self._must_be("A")
        there = self.open.get(hold.call_id)
        if there is None:
            return Refused("no_hold", hold.wallet)
        if refused := self._short(there.hold, max(0, hold.amount - there.amount)):
            return refused
        self._raise(there, hold)
        return Held(self.generation, self.free(there.hold.wallet))

    def rehold(self, hold: Hold) -> bool:
        """Whether it is held now."""
        self._must_be("AR")
        there = self.open.get(hold.call_id)
        if there is None and self._ended_here(hold.call_id):
            return False
        wallet = there.hold.wallet if there else hold.wallet
        if self.state == "A" and wallet not in self.wallets:
            return False
        if there is None:
            self._open(hold)
        else:
            self._raise(there, hold)
        return True

    def settle(self, end: End) -> Ended:
        """The outcome; the stream id is not modelled."""
        self._must_be("A")
        if end.call_id in self.open:
            self._finish(end.call_id, end.kind, end.charge, end.record)
            return Ended("settled")
        if self._ended_as_well(end):
            return Ended("duplicate")
        return Ended("unknown")

    def owe(self, owed: Hold) -> bool:
        """Whether the sum is held now."""
        self._must_be("AR")
        there = self.owed.get(owed.call_id)
        if there is not None:
            return True
        if self.state == "A" and owed.wallet not in self.wallets:
            return False
        there = Open(owed, owed.amount, owed.lease_ms == 0, generation=self.generation)
        self.owed[owed.call_id] = there
        if self.state == "A":
            self._ensure_windows(there)
        return True

    def acquit(self, owed: bytes) -> int:
        """How many sums were forgotten."""
        self._must_be("A")
        return int(self.owed.pop(owed, None) is not None)

    def repay(self, end: End, owed: bytes) -> Ended:
        """The outcome of a late end whose charge a sum keeps."""
        there = self.owed.get(owed)
        if self.state != "A" or there is None or there.hold.wallet != end.wallet:
            return self.late(end)
        if end.call_id in self.open:
            return Ended("open")
        if self._ended_as_well(end):
            return Ended("duplicate")
        there.amount -= min(there.amount, end.charge)
        for cap in end.caps if end.charge else ():
            self.wallets.setdefault(window(cap), Wallet(cap.limit)).spent += end.charge
        self.wallets[end.wallet].spent += end.charge
        self.ended[end.call_id] = (self.generation, end.kind, end.charge)
        self.log.append(Entry(end.kind, True, end.call_id, end.wallet, end.charge, end.record))
        return Ended("late")

    def late(self, end: End) -> Ended:
        """The outcome; while recovering it also ends a hold that survived."""
        self._must_be("AR")
        if end.call_id in self.open and self.state == "A":
            return Ended("open")
        if end.call_id not in self.open and self._ended_as_well(end):
            return Ended("duplicate")
        self.open.pop(end.call_id, None)
        self.ended[end.call_id] = (self.generation, end.kind, end.charge)
        self.log.append(Entry(end.kind, False, end.call_id, end.wallet, end.charge, end.record))
        return Ended("late")

    def renew(self, call_id: bytes, *, progress: int, record: bytes) -> bool:
        """Whether there was something to renew. Every renewal of a test is a long one."""
        self._must_be("A")
        there = self.open.get(call_id)
        if there is None:
            return False
        there.is_overdue = False
        if progress >= 0:
            there.progress, there.record = progress, record or there.record
        return True

    def sweep(self) -> int:
        """How many were overdue."""
        self._must_be("A")
        overdue = [call_id for call_id, there in self.open.items() if there.is_overdue]
        for call_id in overdue:
            there = self.open[call_id]
            kind = "lost" if there.progress >= 0 else "expired"
            self._finish(call_id, kind, max(0, there.progress), there.record)
        lapsed = [owed for owed, there in self.owed.items() if there.is_overdue]
        for owed in lapsed:
            del self.owed[owed]
        return len(overdue) + len(lapsed)

    def ack(self, call_ids: list[bytes]) -> int:
        """How many ended calls were forgotten."""
        self._must_be("AR")
        return sum(self.ended.pop(call_id, None) is not None for call_id in set(call_ids))

    def set_base(self, wallet: str, *, base: int, version: int, spent: int) -> bool:
        """Whether it was taken."""
        self._must_be("A")
        there = self.wallets.get(wallet)
        if there is None:
            self.wallets[wallet] = Wallet(base, spent, version)
        elif version <= there.version:
            return False
        else:
            there.base, there.version = base, version
        self.bases += 1
        return True

    # Recovery ------------------------------------------------------------------------------------

    def freeze(self, generation: int) -> None:
        """Begin anew; open holds stay, ended calls are of the past."""
        if generation <= self.generation:
            raise Fenced
        self.generation, self.state = generation, "R"
        self.wallets.clear()
        self.log.clear()
        self.bases = 0

    def load(self, wallet: str, loaded: Wallet) -> None:
        """What Postgres says of a wallet."""
        self._must_be("R")
        self.wallets[wallet] = loaded

    def activate(self) -> int:
        """How many holds are open; those of wallets nobody knows have expired."""
        self._must_be("AR")
        if self.state == "R":
            self.state = "A"
            for call_id, there in list(self.open.items()):
                if there.hold.wallet not in self.wallets:
                    self._log_end(call_id, "expired", 0, there.record)
                else:
                    self._ensure_windows(there)
            for owed, there in list(self.owed.items()):
                if there.hold.wallet in self.wallets and there.generation == self.generation:
                    self._ensure_windows(there)
                else:
                    del self.owed[owed]
            return len(self.open)
        return len(self.open) + len(self.owed)

    def lose_everything(self) -> None:
        """FLUSHALL. The server remembers its generation, the data is gone."""
        self.state = ""
        self.wallets.clear()
        self.open.clear()
        self.owed.clear()
        self.ended.clear()
        self.log.clear()
        self.bases = 0

    # Parts ---------------------------------------------------------------------------------------

    def _must_be(self, states: str) -> None:
        if not self.state or self.state not in states:
            raise Fenced

    def _short(self, hold: Hold, amount: int) -> Refused | None:
        if hold.wallet not in self.wallets:
            return Refused("no_wallet", hold.wallet)
        scopes = [("wallet", hold.wallet, hold.wallet)]
        scopes += [("cap", cap.id, window(cap)) for cap in hold.caps]
        limits = {window(cap): cap.limit for cap in hold.caps}
        short: list[tuple[bool, int, int, Refused]] = []
        for order, (code, name, wallet) in enumerate(scopes):
            free = self.free(wallet) if wallet in self.wallets else limits[wallet]
            if amount > 0 and free < amount:
                held = self.held(wallet)
                refused = Refused(code, name, free, held)
                short.append((free + held >= amount, free, order, refused))
        return min(short)[-1] if short else None

    def _open(self, hold: Hold) -> None:
        self.ended.pop(hold.call_id, None)
        self.open[hold.call_id] = Open(
            hold, hold.amount, is_overdue=hold.lease_ms == 0, record=hold.ticket
        )
        if self.state == "A":
            self._ensure_windows(self.open[hold.call_id])

    def _raise(self, there: Open, hold: Hold) -> None:
        there.amount = max(there.amount, hold.amount)
        there.is_overdue = hold.lease_ms == 0
        if self.state == "A":
            self._ensure_windows(there)

    def _ensure_windows(self, there: Open) -> None:
        """A window is there from its first nano-USD on."""
        for cap in there.hold.caps if there.amount else ():
            self.wallets.setdefault(window(cap), Wallet(cap.limit))

    def _finish(self, call_id: bytes, kind: str, charge: int, record: bytes) -> None:
        hold = self.open[call_id].hold
        if charge:
            for cap in hold.caps:
                self.wallets.setdefault(window(cap), Wallet(cap.limit))
            for wallet in _wallets(hold):
                self.wallets[wallet].spent += charge
        self._log_end(call_id, kind, charge, record)

    def _log_end(self, call_id: bytes, kind: str, charge: int, record: bytes) -> None:
        wallet = self.open.pop(call_id).hold.wallet
        self.ended[call_id] = (self.generation, kind, charge)
        self.log.append(Entry(kind, True, call_id, wallet, charge, record))

    def _ended_here(self, call_id: bytes) -> bool:
        return self.ended.get(call_id, (0, "", 0))[0] == self.generation

    def _ended_as_well(self, end: End) -> bool:
        if not self._ended_here(end.call_id):
            return False
        _, kind, charge = self.ended[end.call_id]
        if (kind, end.kind) == ("lost", "lost"):
            return charge >= end.charge
        return RANK[kind] >= RANK[end.kind]


def window(cap: Cap) -> str:
    """The window wallet of a cap whose windows began and begin far from now."""
    return f"{cap.id}@{cap.starts_ms[0]}"


def _wallets(hold: Hold) -> set[str]:
    return {hold.wallet, *(window(cap) for cap in hold.caps)}
