"""What Postgres has, as far as the judgement of entries needs it: in memory, a batch at a time.

Entries are parsed and judged by the ledger's own code; only the tables are stood in for.
"""

from collections.abc import Sequence
from uuid import UUID

from ledger.batch import Known, firsts_of, judge, known_of
from ledger.stream import parse
from tests.ledger.model import Entry


class Books:
    """One wallet, and what is known of every call."""

    def __init__(self, wallet: str, granted: int) -> None:
        self.wallet, self.granted = wallet, granted
        self.base, self.spent, self.version = granted, 0, 1
        self.known: dict[bytes, Known] = {}
        self.generation = 0
        self.position = (0, 0)  # generation, and how many entries of its stream are in here

    def commit(self, generation: int, entries: Sequence[Entry]) -> None:
        """Take the entries that follow the position, all or none."""
        at = self.position[1] if self.position[0] == generation else 0
        parsed = [
            parse(f"{at + number + 1}-0", _fields(entry)) for number, entry in enumerate(entries)
        ]
        firsts = firsts_of(parsed)
        known = {call_id: self.known[call_id] for call_id in firsts if call_id in self.known}
        judgement = judge(parsed, firsts, known=known, arrived_us=0)
        assert not judgement.dead_letters, judgement.dead_letters
        for call_id, first in firsts.items():
            if call_id not in known:
                self.known[call_id] = known_of(first.ended, first.row)
        for correction in judgement.corrections:
            call_id = UUID(correction.call_id).bytes
            self.known[call_id] = self.known[call_id]._replace(
                kind=correction.kind, charge=correction.charge, corrections=correction.number
            )
        for wallet, moves in judgement.wallets.items():
            assert wallet == self.wallet
            self.spent += moves.spent
            self.base += moves.base
            self.version += bool(moves.base)
        self.position = (generation, at + len(entries))
        charged = sum(one.charge for one in self.known.values())
        assert self.base - self.spent == self.granted - charged, "the wallet is not its records"


def _fields(entry: Entry) -> dict[bytes, bytes]:
    """The entry as the stream has it."""
    return {
        b"k": entry.kind.encode(),
        b"m": b"1" if entry.moved else b"0",
        b"i": entry.call_id,
        b"w": entry.wallet.encode(),
        b"c": str(entry.charge).encode(),
        b"x": b"\x90",
        b"r": entry.record,
    }
