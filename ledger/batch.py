"""Judge a batch of stream entries: what each changes, given what Postgres has of its call.

Pure. The rules of money are here and nowhere else:

- `spent` follows every entry whose charge Redis took (`moved`), once, whatever is thought of it.
- A call costs what the end that knows most says: settled and released know more than lost, lost
  more than expired. Of two lost ones the higher counts, which saw more of the call; between other
  equals the first. A later end that knows more is a correction.
- What Redis took and what the call costs from now on differ only through `base`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ledger.record import EndKind
from ledger.row import (
    Figures,
    RollupKey,
    Row,
    figures_of,
    report_hour_us,
    rollup_key,
    row_of,
)
from ledger.stream import Ended, Parsed, Poison, Window

_RANK = {EndKind.EXPIRED: 1, EndKind.LOST: 2, EndKind.RELEASED: 3, EndKind.SETTLED: 3}


class Known(NamedTuple):
    """A call that has ended before, as it stands with all its corrections."""

    kind: str
    charge: int
    wallet: str
    windows: tuple[Window, ...]
    admitted_us: int
    key: RollupKey
    figures: Figures
    corrections: int


class First(NamedTuple):
    """The first end of a call within a batch."""

    ended: Ended
    row: Row


class Correction(NamedTuple):
    """A row of the table of the same name."""

    call_id: str
    number: int
    organization_id: str
    wallet_id: str
    entry_kind: str
    entry_charge: int
    old_kind: str
    old_charge: int
    kind: str
    charge: int
    spent_delta: int
    base_delta: int
    windows: list[str] | None
    record: bytes
    outcome: str
    provider: str
    model_target: str
    usage_source: str
    list_price: int
    input: int
    cache_read: int
    cache_write: int
    output: int
    reasoning: int


class DeadLetter(NamedTuple):
    """A row of the table of the same name."""

    stream_id: str
    error: str
    wallet_id: str | None  # whose money was posted for the letter itself; None: nobody's
    spent_delta: int
    windows: list[str] | None
    is_posted: bool  # what the entry moved is posted: for the letter, or as the end that it is


class Moves:
    """What a wallet's or a cap window's numbers change by."""

    __slots__ = ("base", "spent", "window")

    def __init__(self, window: Window | None = None) -> None:
        self.window = window
        self.spent = 0
        self.base = 0


class Judgement:
    """What a batch changes, besides the new records."""

    def __init__(self) -> None:
        self.wallets: dict[str, Moves] = {}
        self.windows: dict[str, Moves] = {}
        self.rollups: dict[tuple[int, RollupKey], list[int]] = {}
        self.corrections: list[Correction] = []
        self.dead_letters: list[DeadLetter] = []
        self.late = 0

    @property
    def moves_base(self) -> bool:
        """Whether Redis must be told something."""
        return any(moves.base for moves in self.wallets.values()) or any(
            moves.base for moves in self.windows.values()
        )

    def lines(self) -> dict[str, int]:
        """The postings: what each wallet gains, against revenue. They sum to zero."""
        lines = {
            wallet: moves.base - moves.spent
            for wallet, moves in self.wallets.items()
            if moves.base != moves.spent
        }
        revenue = -sum(lines.values())
        if revenue:
            lines["revenue"] = revenue
        return lines

    def take_back(self, wallet: str, spent: int, windows: Iterable[Window]) -> None:
        """Undo what was posted of an entry while it could not be read whole."""
        _wallet(self, wallet).spent -= spent
        for window in windows:
            _window(self, window).spent -= spent


def firsts_of(entries: Iterable[Parsed]) -> dict[bytes, First]:
    """The first end of every call, in order."""
    firsts: dict[bytes, First] = {}
    for entry in entries:
        if isinstance(entry, Ended) and entry.call_id not in firsts:
            firsts[entry.call_id] = First(entry, row_of(entry))
    return firsts


def replaces(kind: str, charge: int, before: Known) -> bool:
    """Whether an end of this kind and charge knows more of the call than what is known."""
    rank, known = _RANK[EndKind(kind)], _RANK[EndKind(before.kind)]
    return rank > known or (kind == before.kind == EndKind.LOST and charge > before.charge)


def known_of(ended: Ended, row: Row) -> Known:
    """The first end of a call as what is known of it from now on."""
    return Known(
        ended.kind,
        ended.charge,
        ended.wallet,
        ended.windows,
        ended.record.admitted_us,
        rollup_key(row),
        figures_of(row),
        0,
    )


def replaced(before: Known, ended: Ended, row: Row) -> Known:
    """What is known of a call after an end that knows more. Whose call it is stays what it was."""
    key = before.key._replace(provider=row.provider, model=row.model_target)
    return Known(
        ended.kind,
        ended.charge,
        before.wallet,
        ended.windows,
        before.admitted_us,
        key,
        figures_of(row),
        before.corrections + 1,
    )


def judge(
    entries: Sequence[Parsed],
    firsts: Mapping[bytes, First],
    *,
    known: Mapping[bytes, Known],
    arrived_us: int,
) -> Judgement:
    """What the entries change, in their order.

    `firsts` has the first end of every call in the batch; `known` the calls that had one before it.
    """
    judgement = Judgement()
    state = dict(known)
    for entry in entries:
        if isinstance(entry, Ended):
            first = firsts[entry.call_id]
            if entry is first.ended and entry.call_id not in known:
                _count_new(judgement, entry, first.row, arrived_us)
            else:
                before = state.get(entry.call_id) or known_of(first.ended, first.row)
                state[entry.call_id] = _count_again(judgement, entry, before, arrived_us)
            if entry.error:
                letter = DeadLetter(entry.stream_id, entry.error, None, 0, None, is_posted=True)
                judgement.dead_letters.append(letter)
        elif isinstance(entry, Poison):
            _count_poison(judgement, entry)
    return judgement


def _count_new(judgement: Judgement, ended: Ended, row: Row, arrived_us: int) -> None:
    charge = ended.charge
    moves = _wallet(judgement, ended.wallet)
    if ended.moved:
        moves.spent += charge
        for window in ended.windows:
            _window(judgement, window).spent += charge
    else:
        judgement.late += 1
        moves.base -= charge
        for window in ended.windows:
            _window(judgement, window).base -= charge
    hour_us = report_hour_us(ended.record.admitted_us, arrived_us)
    _roll(judgement, hour_us, rollup_key(row), figures_of(row))


def _count_again(judgement: Judgement, ended: Ended, before: Known, arrived_us: int) -> Known:
    """Correct a call that had ended before; what is known of it from now on."""
    if before.wallet != ended.wallet:
        spent = ended.charge if ended.moved else 0
        error = "the call is another wallet's"
        poison = Poison(ended.stream_id, {}, error, ended.wallet, spent, ended.windows)
        _count_poison(judgement, poison)
        return before
    knows_more = replaces(ended.kind, ended.charge, before)
    taken = ended.charge if ended.moved else 0
    if not knows_more and not taken:
        return before
    charge = ended.charge if knows_more else before.charge
    base_delta = taken - (charge - before.charge)
    moves = _wallet(judgement, ended.wallet)
    moves.spent += taken
    moves.base += base_delta
    for window in ended.windows:
        window_moves = _window(judgement, window)
        window_moves.spent += taken
        window_moves.base += taken - (charge if knows_more else 0)
    if knows_more:
        for window in before.windows:
            _window(judgement, window).base += before.charge
    row = row_of(ended)
    after = before._replace(corrections=before.corrections + 1)
    if knows_more:
        after = replaced(before, ended, row)
        hour_us = report_hour_us(before.admitted_us, arrived_us)
        _roll(judgement, hour_us, before.key, Figures(*(-one for one in before.figures)))
        _roll(judgement, hour_us, after.key, after.figures)
    judgement.corrections.append(
        Correction(
            call_id=row.call_id,
            number=after.corrections,
            organization_id=before.key.organization_id,
            wallet_id=ended.wallet,
            entry_kind=ended.kind,
            entry_charge=ended.charge,
            old_kind=before.kind,
            old_charge=before.charge,
            kind=after.kind,
            charge=after.charge,
            spent_delta=taken,
            base_delta=base_delta,
            windows=row.windows,
            record=ended.packed,
            outcome=row.outcome,
            provider=row.provider,
            model_target=row.model_target,
            usage_source=row.usage_source,
            list_price=row.list_price,
            input=row.input,
            cache_read=row.cache_read,
            cache_write=row.cache_write,
            output=row.output,
            reasoning=row.reasoning,
        )
    )
    return after


def _count_poison(judgement: Judgement, poison: Poison) -> None:
    if poison.wallet is not None and poison.spent:
        _wallet(judgement, poison.wallet).spent += poison.spent
        for window in poison.windows:
            _window(judgement, window).spent += poison.spent
    judgement.dead_letters.append(
        DeadLetter(
            poison.stream_id,
            poison.error,
            poison.wallet,
            poison.spent,
            [window.id for window in poison.windows] or None,
            is_posted=poison.wallet is not None,
        )
    )


def _wallet(judgement: Judgement, wallet: str) -> Moves:
    moves = judgement.wallets.get(wallet)
    if moves is None:
        moves = judgement.wallets[wallet] = Moves()
    return moves


def _window(judgement: Judgement, window: Window) -> Moves:
    moves = judgement.windows.get(window.id)
    if moves is None:
        moves = judgement.windows[window.id] = Moves(window)
    return moves


def _roll(judgement: Judgement, hour_us: int, key: RollupKey, figures: Figures) -> None:
    sums = judgement.rollups.get((hour_us, key))
    if sums is None:
        judgement.rollups[hour_us, key] = list(figures)
        return
    for index, figure in enumerate(figures):
        sums[index] += figure
