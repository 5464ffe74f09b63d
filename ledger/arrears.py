"""What ended calls of one partition owe in a generation whose stream does not have their ends.

After a loss of data ends must be told again, which takes the longer the more they are. What they
charge must count before anybody is admitted, so it is held first as one sum per wallet and caps;
telling an end then takes its charge from that sum (`owe`, `late` and `acquit` in lua/tollgate.lua).
"""

import hashlib
from collections import deque
from collections.abc import Iterable

from ledger.admission import Cap, End, Hold
from ledger.fcall import KEY_COUNT, Renewal, Word, key_names, late_arguments, owe_arguments
from ledger.money import NANOS_MAX, Nanos

Group = tuple[str, tuple[Cap, ...]]  # what is one sum: a wallet and caps

_ACQUIT_MAX = 500  # in one step of Redis


def call_ids(*queues: Iterable[End]) -> set[bytes]:
    """The calls that these ends are of."""
    return {end.call_id for queue in queues for end in queue}


class Owing:
    """What ended calls owe in a partition's new generation, each call once: only sums are kept.

    `queued` are ends that wait here already; `held_again` are calls whose own holds keep it.
    """

    def __init__(
        self,
        partition: int,
        generation: int,
        queued: Iterable[End] = (),
        held_again: frozenset[bytes] = frozenset(),
    ) -> None:
        self.partition, self.generation = partition, generation
        self.sums: dict[Group, int] = {}
        self._counted = held_again
        waiting = {end.call_id: end for end in queued}
        for end in waiting.values():
            self.add(end)
        self._counted = held_again.union(waiting)

    def add(self, end: End) -> None:
        """Count the end of a call; one that waits or is held again counts already."""
        if end.charge and end.call_id not in self._counted:
            group = end.wallet, end.caps
            self.sums[group] = self.sums.get(group, 0) + end.charge


class Arrears:
    """The sums one gateway owes in one partition and generation. `gateway` makes their ids.

    A gateway that dies while it tells its ends pins what they owe for `lease_ms`, as a call does.
    """

    def __init__(self, partition: int, gateway: str, lease_ms: int) -> None:
        self._partition, self._gateway, self._lease_ms = partition, gateway, lease_ms
        self._generation = 0
        self._held_again: frozenset[bytes] = frozenset()
        self._sum_ids: dict[Group, bytes] = {}
        self._keepers: dict[bytes, bytes] = {}  # call id of an end that waits -> id of its sum
        self._is_all_there = False  # no more ends come that are in the sums
        self.held: list[bytes] = []  # ids of the sums, until Redis has forgotten them
        self.sums: deque[Hold] = deque()  # to be held

    def begin(self, generation: int, open_calls: Iterable[bytes]) -> None:
        """A new generation: the sums of older ones are void; calls open now are held by their own
        holds, even if they end.
        """
        self._generation, self._held_again = generation, frozenset(open_calls)
        self._sum_ids.clear()
        self._keepers.clear()
        self._is_all_there = False
        self.held.clear()
        self.sums.clear()

    def owing(self, queued: Iterable[End]) -> Owing:
        """To be added to: what ends owe that wait here, and those that are read elsewhere."""
        return Owing(self._partition, self._generation, queued, self._held_again)

    def owe(self, owing: Owing) -> list[bytes]:
        """Owe these sums; their ids, which are to be held now."""
        made: list[bytes] = []
        self._is_all_there = False
        for (wallet, caps), amount in owing.sums.items():
            owed, most = self._id(len(self.held)), Nanos(min(amount, NANOS_MAX))
            hold = Hold(owed, self._partition, wallet, most, caps, lease_ms=self._lease_ms)
            self._sum_ids[wallet, caps] = owed
            self.held.append(owed)
            self.sums.append(hold)
            made.append(owed)
        return made

    def keep(self, end: End) -> bool:
        """Have the end, which waits from now on, take its charge from its sum; False: it did."""
        if end.call_id in self._keepers:
            return False
        owed = self._sum_ids.get((end.wallet, end.caps))
        if owed and end.charge and end.call_id not in self._held_again:
            self._keepers[end.call_id] = owed
        return True

    def all_there(self) -> None:
        """Every end that is in the sums was `keep`t: what they leave may be given back."""
        self._is_all_there = True

    def renewals(self) -> list[Renewal]:
        """New leases of the sums: however long it takes to tell the ends, what they owe is held."""
        return [Renewal(one, self._lease_ms) for one in self.held]

    def told(self, ends: Iterable[End]) -> None:
        """These ends are in the generation's stream, or need not be told."""
        for end in ends:
            self._keepers.pop(end.call_id, None)

    def owe_arguments(self, *sums: Hold) -> list[bytes]:
        """Those of tg_owe."""
        return owe_arguments(self._generation, *sums)

    def late_arguments(self, *ends: End) -> list[bytes]:
        """Those of tg_late."""
        return late_arguments(self._keepers, *ends)

    def acquittal(self) -> tuple[Word, ...]:
        """The call that gives back what is left once every end is told; empty before, and after."""
        if self._keepers or self.sums or not self.held or not self._is_all_there:
            return ()
        generation, keys = self._generation, key_names(self._partition, self._generation)
        return ("FCALL", "tg_acquit", KEY_COUNT, *keys, generation, *self.held[:_ACQUIT_MAX])

    def acquitted(self) -> None:
        """Redis has done what `acquittal` asked, or cannot."""
        del self.held[:_ACQUIT_MAX]

    def _id(self, number: int) -> bytes:
        """16 bytes, as of a call; printable, because a head that Lua reads has no other text."""
        text = f"{self._gateway} {self._partition} {self._generation} {number}"
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest().encode()
