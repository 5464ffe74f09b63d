"""Histories of ends, as faults make them, and an oracle that knows only what must come out.

The oracle shares no code with the ledger: it sums what Redis took and asks, per call, which end
knows most.
"""

from collections import Counter
from collections.abc import Sequence

from hypothesis import strategies as st

from ledger.book import Organization
from ledger.record import EndKind
from ledger.stream import Window
from tests.ledger.deployment import Line, new_call_id

KNOWS = {EndKind.EXPIRED: 0, EndKind.LOST: 1, EndKind.RELEASED: 2, EndKind.SETTLED: 2}
WINDOWS = (Window("key-1", 0, 500), Window("key-1", 3_600_000, 500), Window("key-2", 0, 900))

Plan = list[tuple[int, EndKind, int, bool, tuple[Window, ...]]]


def plans(calls: int = 4, entries: int = 14) -> st.SearchStrategy[Plan]:
    """Ends of a few calls in any order: settled, swept, late, twice, in any windows."""
    windows = st.lists(st.sampled_from(WINDOWS), max_size=2, unique_by=lambda w: w.cap_id)
    ends = st.tuples(
        st.integers(0, calls - 1),
        st.sampled_from(list(EndKind)),
        st.integers(0, 60),
        st.booleans(),
        windows.map(tuple),
    ).map(_possible)
    return st.lists(ends, min_size=1, max_size=entries)


def _possible(
    end: tuple[int, EndKind, int, bool, tuple[Window, ...]],
) -> tuple[int, EndKind, int, bool, tuple[Window, ...]]:
    """Nothing is charged for an expired or released call, and then to no window."""
    number, kind, charge, moved, windows = end
    if kind in {EndKind.EXPIRED, EndKind.RELEASED} or charge == 0:
        return number, kind, 0, moved, ()
    return number, kind, charge, moved, windows


def lines(plan: Plan, organization: Organization) -> list[Line]:
    """The plan with calls of this moment."""
    ids = [new_call_id() for _ in range(max(number for number, *_ in plan) + 1)]
    return [
        Line(ids[number], organization, kind, charge, moved, windows)
        for number, kind, charge, moved, windows in plan
    ]


def _knowledge(end: Line) -> tuple[int, int]:
    """Who saw more of a lost call knows more; who knows how it ended, all of it."""
    return KNOWS[end.kind], end.charge if end.kind is EndKind.LOST else 0


class Expected:
    """What must be so after these ends, by nothing but the rules of the design."""

    def __init__(self, ends: Sequence[Line]) -> None:
        best: dict[bytes, Line] = {}
        for end in ends:
            known = best.get(end.call_id)
            if known is None or _knowledge(end) > _knowledge(known):
                best[end.call_id] = end
        self.calls = best
        self.charged = sum(end.charge for end in best.values())
        self.spent = sum(end.charge for end in ends if end.moved)
        self.by_window: Counter[str] = Counter()
        self.spent_by_window: Counter[str] = Counter()
        for end in best.values():
            for window in end.windows:
                self.by_window[window.id] += end.charge
        for end in ends:
            for window in end.windows if end.moved else ():
                self.spent_by_window[window.id] += end.charge
