"""Nothing is taken for proven that Postgres may not have."""

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.proof import Proof, Span
from tests.ledger.calls import call_id


def one_ended(proof: Proof, number: int = 1) -> Span:
    span = proof.begin(1, 0, 0.0)
    proof.opened(call_id(number), span)
    proof.ended(call_id(number), span)
    return span


def append(proof: Proof, number: int, *, generation: int, stream_id: str) -> None:
    proof.appended([call_id(number)], 7, generation=generation, stream_id=stream_id)


def test_a_watermark_of_a_newer_generation_proves_nothing_about_an_older_one() -> None:
    proof = Proof()
    one_ended(proof)
    append(proof, 1, generation=1, stream_id="500-0")
    # As a pair, (2, 900-0) is above (1, 500-0): that comparison lost 84 calls of 22,478.
    proof.proven(7, generation=2, stream_id="900-0")
    assert proof.placed_count == 1
    assert len(proof.pending()) == 1
    assert len(proof.stale({7: 2})) == 1


def test_a_watermark_of_an_older_generation_proves_nothing_about_a_newer_one() -> None:
    proof = Proof()
    one_ended(proof)
    append(proof, 1, generation=2, stream_id="500-0")
    proof.proven(7, generation=1, stream_id="900-0")
    assert len(proof.pending()) == 1


def test_a_watermark_seen_before_the_place_counts_only_in_its_generation() -> None:
    proof = Proof()
    proof.proven(7, generation=2, stream_id="900-0")
    one_ended(proof)
    append(proof, 1, generation=1, stream_id="500-0")
    assert len(proof.pending()) == 1
    late = Proof()
    late.proven(7, generation=2, stream_id="900-0")
    one_ended(late)
    append(late, 1, generation=2, stream_id="900-0")
    assert late.pending() == []


def test_ends_up_to_the_watermark_are_proven_and_those_above_are_not() -> None:
    for watermark, is_proven in (
        ("500-0", False),
        ("500-2", False),
        ("500-3", True),
        ("501", True),
    ):
        proof = Proof()
        one_ended(proof)
        append(proof, 1, generation=1, stream_id="500-3")
        proof.proven(7, generation=1, stream_id=watermark)
        assert (proof.pending() == []) is is_proven


def test_stream_ids_are_compared_as_numbers_and_not_as_text() -> None:
    proof = Proof()
    one_ended(proof)
    append(proof, 1, generation=1, stream_id="1000-10")
    proof.proven(7, generation=1, stream_id="999-99")
    proof.proven(7, generation=1, stream_id="1000-9")
    assert len(proof.pending()) == 1


def test_the_watermark_of_one_partition_says_nothing_about_another() -> None:
    proof = Proof()
    one_ended(proof)
    append(proof, 1, generation=1, stream_id="500-0")
    proof.proven(8, generation=1, stream_id="900-0")
    assert len(proof.pending()) == 1


def test_a_span_is_over_when_its_highest_end_is_proven() -> None:
    proof = Proof()
    span = one_ended(proof)
    proof.ended(call_id(2), span)
    append(proof, 2, generation=1, stream_id="600-0")
    append(proof, 1, generation=1, stream_id="500-0")
    proof.proven(7, generation=1, stream_id="550-0")
    assert (proof.pending(), proof.placed_count) == ([span], 2)
    proof.proven(7, generation=1, stream_id="600-0")
    assert (proof.pending(), proof.placed_count) == ([], 0)


def test_ends_that_are_told_together_are_proven_with_the_highest_and_not_before() -> None:
    proof = Proof()
    first, second = proof.begin(1, 0, 0.0), proof.begin(1, 100, 0.0)
    for number, span in ((1, first), (2, second), (3, first)):
        proof.ended(call_id(number), span)
    past = proof.begin(1, 200, 0.0)
    proof.opened(call_id(4), past)
    told = [call_id(number) for number in (1, 2, 3, 4, 99)]
    proof.appended(told, 7, generation=1, stream_id="500-4")
    proof.proven(7, generation=1, stream_id="500-3")
    assert (proof.placed_count, proof.pending()) == (4, [first, second, past])
    proof.proven(7, generation=1, stream_id="500-4")
    assert (proof.placed_count, proof.pending()) == (0, [])


def test_repeats_and_unknown_calls_change_nothing() -> None:
    proof = Proof()
    one_ended(proof)
    for _ in range(3):
        append(proof, 1, generation=1, stream_id="500-0")
        append(proof, 99, generation=1, stream_id="700-0")
    assert proof.placed_count == 1
    for _ in range(3):
        proof.proven(7, generation=1, stream_id="500-0")
    assert proof.pending() == []


def test_the_end_of_a_call_that_went_past_the_journal_is_proven_like_any_other() -> None:
    proof = Proof()
    span = proof.begin(1, 0, 0.0)
    proof.opened(call_id(1), span)
    append(proof, 1, generation=1, stream_id="500-0")
    assert (len(proof.open), proof.placed_count, proof.pending()) == (0, 1, [span])
    proof.proven(7, generation=1, stream_id="500-0")
    assert (proof.placed_count, proof.pending()) == (0, [])


def test_a_call_whose_end_went_past_the_journal_is_open_again_in_another_generation() -> None:
    proof = Proof()
    span = proof.begin(1, 0, 0.0)
    proof.opened(call_id(1), span)
    append(proof, 1, generation=1, stream_id="500-0")
    proof.reopen(7, generation=1)
    assert len(proof.open) == 0
    proof.reopen(7, generation=2)
    assert (proof.open, proof.placed_count, span.pending) == ({call_id(1): span}, 0, 1)


def test_the_oldest_unproven_is_as_old_as_its_span_and_open_calls_do_not_count() -> None:
    proof = Proof()
    first, second = proof.begin(1, 0, 10.0), proof.begin(1, 100, 20.0)
    proof.opened(call_id(1), first)
    assert proof.oldest_unproven_s() is None
    proof.ended(call_id(2), second)
    assert proof.oldest_unproven_s() == 20.0
    append(proof, 2, generation=1, stream_id="5-0")
    assert proof.oldest_unproven_s() == 20.0


class Model:
    """Remembers every end alone. The partition of an end is its number modulo 2."""

    def __init__(self) -> None:
        self.proof = Proof()
        self.spans = [self.proof.begin(1, index, 0.0) for index in range(3)]
        self.where: dict[int, Span] = {}
        self.places: dict[int, set[tuple[int, int]]] = {}
        self.watermarks: dict[tuple[int, int], int] = {}

    def end(self, number: int, _generation: int, _place: int) -> None:
        if number not in self.where:
            self.where[number] = self.spans[len(self.where) % 3]
            self.places[number] = set()
            self.proof.ended(call_id(number), self.where[number])

    def append(self, number: int, generation: int, place: int) -> None:
        """This end and its neighbour in the partition, which go up to this place."""
        together = [each for each in (number, number + 2) if each in self.where]
        for each in together:
            self.places[each].add((generation, place))
        call_ids = [call_id(each) for each in together]
        self.proof.appended(call_ids, number % 2, generation=generation, stream_id=f"{place}-0")

    def watermark(self, number: int, generation: int, place: int) -> None:
        partition = number % 2
        place = max(place, self.watermarks.get((partition, generation), 0))
        self.watermarks[partition, generation] = place
        self.proof.proven(partition, generation=generation, stream_id=f"{place}-0")

    def send_again(self, number: int, generation: int, _place: int) -> None:
        partition = number % 2
        for span in self.proof.stale({partition: generation}):
            for each, where in self.where.items():
                if where is span and each % 2 == partition:
                    self.proof.unplaced(call_id(each), span)
            self.proof.forget_places(span, partition, generation=generation)

    def is_proven(self, number: int) -> bool:
        return any(
            place <= self.watermarks.get((number % 2, generation), -1)
            for generation, place in self.places[number]
        )


STEPS = st.lists(
    st.tuples(
        st.sampled_from([Model.end, Model.append, Model.watermark, Model.send_again]),
        st.integers(0, 11),
        st.integers(1, 3),
        st.integers(1, 30),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(STEPS)
def test_whatever_happens_no_unproven_end_is_let_go_and_every_proven_one_is(
    steps: list[tuple[Callable[[Model, int, int, int], None], int, int, int]],
) -> None:
    model = Model()
    for step, number, generation, place in steps:
        step(model, number, generation, place)
        assert all(model.is_proven(each) or span.pending for each, span in model.where.items())
    for partition in (0, 1):
        model.send_again(partition, 9, 0)
    for number in range(12):
        model.append(number, 9, 50)
    for partition in (0, 1):
        model.watermark(partition, 9, 50)
    proof = model.proof
    assert proof.pending() == []
    assert (proof.placed_count, len(proof.unsent), len(proof.open)) == (0, 0, 0)
