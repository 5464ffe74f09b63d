"""Count what a process lets in on its own word while Redis is away: never more than an allowance.

What always holds, per wallet: at every `take` that says yes, the calls that Postgres is not known
to have, this one included, count for the allowance at most; those that are open with the most they
can cost, those that have ended with their charge. Only a charge above that most can pass the
allowance afterwards, and then nothing is let in until Postgres has enough of them.
"""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from ledger.admission import Hold
from ledger.money import NANOS_MAX

UNBOOKED_MAX = 10_000  # calls of one wallet: those that cost nothing must not pile up without end


class Unbooked(NamedTuple):
    """A call that was let in and that Postgres is not known to have."""

    wallet: str
    nanos: int  # the most it can cost; once it has ended, what it is charged
    is_open: bool


class Allowances:
    """The calls of one process that nobody else has admitted. No await: each step is whole."""

    def __init__(self) -> None:
        self._calls: dict[bytes, Unbooked] = {}
        self._by_wallet: dict[str, set[bytes]] = {}
        self._used: Counter[str] = Counter()  # by wallet, the sum over its calls

    def take(self, hold: Hold, allowance: int) -> bool:
        """Let this call in, if its wallet has not used up its allowance; else change nothing."""
        assert 0 <= allowance <= NANOS_MAX
        assert 0 <= hold.amount <= NANOS_MAX
        assert hold.call_id not in self._calls, "a call is let in once"
        is_room = len(self._by_wallet.get(hold.wallet, ())) < UNBOOKED_MAX
        if not is_room or self.used(hold.wallet) + hold.amount > allowance:
            return False
        self._calls[hold.call_id] = Unbooked(hold.wallet, hold.amount, is_open=True)
        self._by_wallet.setdefault(hold.wallet, set()).add(hold.call_id)
        self._used[hold.wallet] += hold.amount
        return True

    def ended(self, call_id: bytes, charge: int) -> None:
        """The call has ended and its journal has the charge; Postgres does not have it yet."""
        call = self._calls[call_id]
        assert call.is_open, "a call ends once"
        self._calls[call_id] = call._replace(nanos=charge, is_open=False)
        self._used[call.wallet] += charge - call.nanos

    def booked(self, call_ids: Iterable[bytes]) -> None:
        """Postgres has these calls, which have ended: they count there now. May be repeated."""
        for call_id in call_ids:
            call = self._calls.get(call_id)
            if call is None:
                continue
            assert not call.is_open, "what is open may still cost more than any record says"
            del self._calls[call_id]
            ours = self._by_wallet[call.wallet]
            ours.discard(call_id)
            self._used[call.wallet] -= call.nanos
            if not ours:
                assert not self._used[call.wallet], "the sum is that of the calls"
                del self._by_wallet[call.wallet], self._used[call.wallet]

    def used(self, wallet: str) -> int:
        """What counts against its allowance, nano-USD."""
        return self._used[wallet]

    @property
    def used_in_all(self) -> int:
        """What counts against all allowances, nano-USD."""
        return self._used.total()

    @property
    def wallets(self) -> list[str]:
        """Those of which anything counts."""
        return [*self._by_wallet]

    def charged(self, wallet: str) -> dict[bytes, int]:
        """The charges of its calls that have ended, which Postgres may have."""
        calls = ((call_id, self._calls[call_id]) for call_id in self._by_wallet.get(wallet, ()))
        return {call_id: call.nanos for call_id, call in calls if not call.is_open}
