"""What of a journal is not yet known to be in Postgres, kept small: positions, never content.

An end is proven when its stream entry is at or below the watermark of the *same* generation in
Postgres, and by nothing else: a watermark of a newer generation says nothing about an older one,
because recovery may have drained the old stream before this end reached it.

The unit of proof is a span, a stretch of a segment: of the ends that Redis has, a span keeps only
the highest stream id per partition and generation.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from itertools import takewhile

from ledger.stream import place_of


class Span:
    """A stretch of one segment, and how much in it is open, unsent or unproven."""

    __slots__ = ("end", "has_copies", "pending", "segment", "since_s", "start")

    def __init__(self, segment: int, start: int, since_s: float) -> None:
        self.segment, self.start, self.since_s = segment, start, since_s
        self.end = start
        self.pending = 0
        self.has_copies = False  # of what is pending in older spans


class Place:
    """Of a span's ends in one partition and generation: the highest stream id, and their number."""

    __slots__ = ("count", "highest")

    def __init__(self) -> None:
        self.highest, self.count = -1, 0


class Proof:
    """The calls without an end, the ends without a place in a stream, the places without proof."""

    def __init__(self) -> None:
        self.open: dict[bytes, Span] = {}
        self.unsent: dict[bytes, Span] = {}
        self.placed_count = 0
        self._placed: dict[tuple[int, int], dict[Span, Place]] = {}
        self._placed_past: dict[bytes, tuple[tuple[int, int], int, Span]] = {}
        self._watermarks: dict[tuple[int, int], int] = {}
        self._spans: deque[Span] = deque()

    def begin(self, segment: int, start: int, since_s: float) -> Span:
        """A new span, in which the next calls and ends are written."""
        span = Span(segment, start, since_s)
        self._spans.append(span)
        return span

    def opened(self, call_id: bytes, span: Span) -> None:
        """The call was written into this span."""
        if call_id in self.open:
            _leave(self.open, call_id)
        self.open[call_id] = span
        span.pending += 1

    def ended(self, call_id: bytes, span: Span) -> None:
        """The call's end was written into this span."""
        before = self.open.pop(call_id, None)
        if before is not None:
            before.pending -= 1
        if call_id in self.unsent:
            _leave(self.unsent, call_id)
        self.unsent[call_id] = span
        span.pending += 1

    def appended(
        self, call_ids: Iterable[bytes], partition: int, *, generation: int, stream_id: str
    ) -> None:
        """The ends of these calls have places in the stream up to this one, the highest of them.

        That all are taken to be there proves none too early. Unknown and repeated ones change
        nothing. The end of a call that is open here went past the journal: it could not be written,
        or the call was adopted and given up as lost. It is kept one by one, for it can't be read
        again.
        """
        key, highest = (partition, generation), ordered(stream_id)
        is_proven = highest <= self._watermarks.get(key, -1)
        leave, last, place = self.unsent.pop, None, Place()
        for call_id in call_ids:
            span = leave(call_id, None)
            if span is None:
                self._appended_past(call_id, key, highest)
            elif is_proven:
                span.pending -= 1
            else:
                if span is not last:  # neighbours mostly share one
                    last, place = span, self._place_of(span, key)
                    place.highest = max(place.highest, highest)
                place.count += 1
                self.placed_count += 1
        if not self.unsent:
            self.unsent.clear()  # gives back the room of a backlog: popping does not

    def _appended_past(self, call_id: bytes, key: tuple[int, int], place_id: int) -> None:
        span = self.open.pop(call_id, None)
        if span is None:
            return
        if place_id <= self._watermarks.get(key, -1):
            span.pending -= 1
        else:
            self._placed_past[call_id] = (key, place_id, span)
            self.placed_count += 1

    def _place_of(self, span: Span, key: tuple[int, int]) -> Place:
        return self._placed.setdefault(key, {}).setdefault(span, Place())

    def proven(self, partition: int, *, generation: int, stream_id: str) -> None:
        """Postgres has everything of this generation's stream up to this id. Repeats do nothing."""
        key, watermark = (partition, generation), ordered(stream_id)
        if key not in self._watermarks:
            for older in [each for each in self._watermarks if each[0] == partition]:
                del self._watermarks[older]
        self._watermarks[key] = watermark
        places = self._placed.get(key, {})
        for span in [span for span, place in places.items() if place.highest <= watermark]:
            self._leave_place(places, span)
        if not places:
            self._placed.pop(key, None)
        for call_id, (its_key, place_id, span) in list(self._placed_past.items()):
            if its_key == key and place_id <= watermark:
                del self._placed_past[call_id]
                span.pending -= 1
                self.placed_count -= 1

    def stale(self, generations: Mapping[int, int]) -> set[Span]:
        """Spans with ends whose place is in a stream of another generation than their partition's
        in here.
        """
        return {
            span
            for (partition, generation), places in self._placed.items()
            if generations.get(partition, generation) != generation
            for span in places
        }

    def stale_in(self, span: Span, generations: Mapping[int, int]) -> set[int]:
        """The partitions of these ends in the span."""
        return {
            partition
            for (partition, generation), places in self._placed.items()
            if generations.get(partition, generation) != generation and span in places
        }

    def forget_places(self, span: Span, partition: int, *, generation: int) -> None:
        """The span's places in streams of other generations count no more: send its ends again."""
        for key, places in list(self._placed.items()):
            if key[0] == partition and key[1] != generation and span in places:
                self._leave_place(places, span)
                if not places:
                    del self._placed[key]

    def reopen(self, partition: int, *, generation: int) -> None:
        """Calls whose end went past the journal into a stream of another generation: open again."""
        for call_id, (key, _, span) in list(self._placed_past.items()):
            if key[0] == partition and key[1] != generation:
                del self._placed_past[call_id]
                self.placed_count -= 1
                self.open[call_id] = span

    def unplaced(self, call_id: bytes, span: Span) -> None:
        """The end, written in this span, is to be sent again."""
        if call_id not in self.unsent:
            self.unsent[call_id] = span
            span.pending += 1

    def partitions_placed(self, span: Span) -> set[int]:
        """The partitions of which ends in this span wait for proof."""
        return {partition for (partition, _), places in self._placed.items() if span in places}

    def carry_places(self, span: Span, to: Span) -> None:
        """The ends of `span` that wait for proof were copied into `to`."""
        for places in self._placed.values():
            place = places.pop(span, None)
            if place is None:
                continue
            there = places.setdefault(to, Place())
            there.highest = max(there.highest, place.highest)
            there.count += place.count
            span.pending -= place.count
            to.pending += place.count

    def head(self) -> Span:
        """The first span that is not over; the newest never is. What is before it is forgotten."""
        spans = self._spans
        while len(spans) > 1 and not spans[0].pending:
            spans.popleft()
        return spans[0]

    def pending(self) -> list[Span]:
        """The spans in which something is open, unsent or unproven, in the order of writing."""
        return [span for span in self._spans if span.pending]

    def oldest_unproven_s(self) -> float | None:
        """When the span with the oldest unproven end was begun; None if every end is proven."""
        waiting = {id(span) for places in self._placed.values() for span in places}
        waiting.update(id(span) for span in self.unsent.values())
        return next((span.since_s for span in self._spans if id(span) in waiting), None)

    def drop_before(self, segment: int, offset: int) -> None:
        """A mark in the file says that everything before this position is proven."""

        def is_before(span: Span) -> bool:
            return (span.segment, span.end) <= (segment, offset)

        while self._spans and is_before(self._spans[0]):
            self._spans.popleft()
        for calls in (self.open, self.unsent):
            # Both are in the order of writing, so this reads no further than it must.
            for call_id in list(takewhile(lambda each: is_before(calls[each]), calls)):  # noqa: B023 - used at once
                calls.pop(call_id).pending -= 1

    def _leave_place(self, places: dict[Span, Place], span: Span) -> None:
        count = places.pop(span).count
        span.pending -= count
        self.placed_count -= count


def ordered(stream_id: str) -> int:
    """A stream id, `milliseconds-sequence`, as a number of the same order."""
    milliseconds, sequence = place_of(stream_id)
    return (milliseconds << 64) | sequence


def _leave(calls: dict[bytes, Span], call_id: bytes) -> None:
    span = calls.pop(call_id, None)
    if span is not None:
        span.pending -= 1
