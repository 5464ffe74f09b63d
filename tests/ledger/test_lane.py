"""What a lane decides, with answers made by hand: every order in which a connection can fail."""

import asyncio
from typing import Any

import pytest
from hiredis import ReplyError

from ledger.admission import End, Held, Hold, LedgerUnavailable, Refused
from ledger.fcall import Renewal
from ledger.lane import ITEMS_MAX, PAUSE_S, TELL_EVERY_S, Lane
from ledger.record import EndKind
from ledger.step import Asked, Settled, Step, Tell
from ledger.waiting import QUEUE_MAX, RECOVERY_WAIT_S
from tests.ledger.partitions import NUMBER, end_of, hold, total

NOW_S = 100.0


class Told:
    """Whom a lane tells."""

    def __init__(self) -> None:
        self.epochs: list[int] = []
        self.generations: list[tuple[int, int]] = []
        self.settled: list[tuple[bytes, int, str]] = []
        self.troubles: list[str] = []
        self.moved: list[int] = []
        self.tell = Tell(
            self.epochs.append,
            lambda *told: self.generations.append(told),
            self._settle,
            lambda what, _: self.troubles.append(what),
            self.moved.append,
        )

    def _settle(self, settled: Settled) -> None:
        generation, at = settled.generation, settled.stream_id
        self.settled += [(end.call_id, generation, at) for end in settled.ends]


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def lane(told: Told) -> Lane:
    """One that knows that its partition is active in generation 3."""
    lane = Lane(NUMBER, told.tell)
    lane.doubt()
    (step,) = lane.steps(NOW_S)
    lane.answered(step, state(3), NOW_S)
    return lane


def state(generation: int, phase: bytes = b"A", *, matches: int = 1) -> list[Any]:
    return [str(generation).encode(), b"9", phase, b"1", b"us", matches, 5]


def ask(lane: Lane, one: Hold | None = None, *, deadline_s: float = NOW_S + 0.3) -> Asked:
    future: asyncio.Future[Held | Refused] = asyncio.get_running_loop().create_future()
    asked = Asked(one or hold(5), future, NOW_S, deadline_s)
    lane.ask(asked)
    return asked


def only(lane: Lane, function: str, *, now_s: float = NOW_S) -> Step:
    """The one step that the lane takes now."""
    (step,) = lane.steps(now_s)
    assert step.function == function
    return step


def sent(lane: Lane, *, now_s: float = NOW_S) -> list[str]:
    return [step.function for step in lane.steps(now_s)]


class TestSending:
    async def test_asks_for_the_generation_before_anything_else(self, told: Told) -> None:
        lane = Lane(NUMBER, told.tell)
        lane.doubt()
        asked = ask(lane)
        lane.end(end_of(hold(1), 1))

        step = only(lane, "tg_state")
        assert sent(lane) == []
        lane.answered(step, state(3), NOW_S)

        assert sent(lane) == ["tg_settle", "tg_hold"]
        assert told.generations == [(NUMBER, 3)]
        assert not asked.future.done()

    async def test_ends_go_before_holds_and_calls_under_way_before_both(self, lane: Lane) -> None:
        ask(lane)
        lane.end(end_of(hold(1), 1))
        lane.renew([Renewal(b"1" * 16)])

        assert sent(lane) == ["tg_renew", "tg_settle", "tg_hold"]

    async def test_a_step_is_bounded(self, lane: Lane) -> None:
        for _ in range(ITEMS_MAX + 1):
            lane.end(end_of(hold(1), 1))

        assert [len(lane.steps(NOW_S)[0].items) for _ in range(2)] == [ITEMS_MAX, 1]

    async def test_the_queue_is_bounded(self, lane: Lane) -> None:
        for _ in range(QUEUE_MAX):
            ask(lane)

        with pytest.raises(LedgerUnavailable, match="too many"):
            await ask(lane).future

    async def test_whoever_left_is_not_sent(self, lane: Lane) -> None:
        ask(lane).future.cancel()

        assert sent(lane) == []


class TestMoves:
    @pytest.mark.parametrize(
        "said", ["MOVED 7 127.0.0.1:1", "ASK 7 127.0.0.1:1", "TRYAGAIN soon", "CLUSTERDOWN now"]
    )
    async def test_what_another_node_is_to_answer_waits_for_it(
        self, lane: Lane, told: Told, said: str
    ) -> None:
        asked = ask(lane)
        lane.end(end := end_of(hold(1), 1))
        for step in lane.steps(NOW_S):
            lane.answered(step, ReplyError(said), NOW_S)

        assert set(told.moved) == {NUMBER}
        assert not asked.future.done()
        assert [step.function for step in lane.steps(NOW_S + 1)] == ["tg_state"]
        lane.answered(Step("tg_state", [], 3, b""), [b"3", b"1", b"A", b"1", b"", 1, 5], NOW_S)
        assert {step.function for step in lane.steps(NOW_S + 1)} == {"tg_settle", "tg_hold"}
        assert end.call_id not in lane.open


class TestHolds:
    async def test_an_answer_goes_to_the_one_who_asked(self, lane: Lane) -> None:
        first, second = ask(lane), ask(lane)

        lane.answered(only(lane, "tg_hold"), [[1, 70], [0, b"wallet", b"w", 1, 2, 0]], NOW_S)

        assert first.future.result() == Held(3, 70)
        assert second.future.result() == Refused("wallet", "w", 1, 2, 0)
        assert list(lane.open) == [first.hold.call_id]

    async def test_one_that_is_admitted_for_nobody_is_released(self, lane: Lane) -> None:
        asked = ask(lane)
        step = only(lane, "tg_hold")
        asked.future.cancel()
        lane.answered(step, [[1, 70]], NOW_S)

        (end,) = only(lane, "tg_settle").items
        assert (end.call_id, end.kind, end.charge) == (asked.hold.call_id, EndKind.RELEASED, 0)
        assert end.record == asked.hold.ticket
        assert not lane.open

    async def test_one_that_is_refused_for_nobody_leaves_nothing(self, lane: Lane) -> None:
        asked = ask(lane)
        step = only(lane, "tg_hold")
        asked.future.cancel()
        lane.answered(step, [[0, b"wallet", b"w", 1, 2, 0]], NOW_S)

        assert sent(lane) == []

    async def test_one_whose_answer_is_lost_is_asked_again(self, lane: Lane) -> None:
        asked = ask(lane)
        lane.lost(only(lane, "tg_hold"))
        lane.doubt()
        lane.answered(only(lane, "tg_state"), state(3), NOW_S)

        assert only(lane, "tg_hold").items == [asked]

    @pytest.mark.parametrize("leaves", ["before", "after"])
    async def test_one_whose_answer_is_lost_is_released_if_nobody_waits(
        self, lane: Lane, leaves: str
    ) -> None:
        asked = ask(lane)
        step = only(lane, "tg_hold")
        if leaves == "before":
            asked.future.cancel()
        lane.lost(step)
        if leaves == "after":
            lane.expire(NOW_S + 1, is_answering=False)
        lane.expire(NOW_S + 1, is_answering=False)
        lane.doubt()
        lane.answered(only(lane, "tg_state"), state(3), NOW_S)

        (end,) = only(lane, "tg_settle").items
        assert end.call_id == asked.hold.call_id

    async def test_one_that_was_never_there_needs_no_record(self, lane: Lane, told: Told) -> None:
        lane.release_unseen(hold(5))

        lane.answered(only(lane, "tg_settle"), [b"U"], NOW_S)

        assert (lane.unanswered, sent(lane), told.settled) == (0, [], [])

    async def test_a_script_that_failed_may_have_held(self, lane: Lane) -> None:
        asked = ask(lane)
        lane.answered(only(lane, "tg_hold"), ReplyError("WRONGTYPE of a key"), NOW_S)

        assert isinstance(asked.future.exception(), LedgerUnavailable)
        assert sent(lane, now_s=NOW_S + PAUSE_S) == ["tg_settle"]

    async def test_a_server_that_ran_nothing_has_held_nothing(self, lane: Lane) -> None:
        asked = ask(lane)
        lane.answered(only(lane, "tg_hold"), ReplyError("OOM command not allowed"), NOW_S)

        assert isinstance(asked.future.exception(), LedgerUnavailable)
        assert sent(lane, now_s=NOW_S + PAUSE_S) == []
        assert not lane.must_break

    async def test_a_server_that_is_no_primary_is_left(self, lane: Lane) -> None:
        lane.end(end_of(hold(1), 1))
        lane.answered(only(lane, "tg_settle"), ReplyError("READONLY replica"), NOW_S)

        assert lane.must_break
        assert sent(lane, now_s=NOW_S + PAUSE_S) == ["tg_settle"]

    async def test_waiting_ends_in_time(self, lane: Lane) -> None:
        asked = ask(lane)

        lane.expire(NOW_S + 0.29, is_answering=True)
        assert not asked.future.done()
        lane.expire(NOW_S + 0.30, is_answering=True)
        assert isinstance(asked.future.exception(), LedgerUnavailable)

    async def test_an_extension_replaces_what_would_be_held_again(self, lane: Lane) -> None:
        asked = ask(lane)
        lane.answered(only(lane, "tg_hold"), [[1, 70]], NOW_S)
        more = total(asked.hold, 10)
        future: asyncio.Future[Held | Refused] = asyncio.get_running_loop().create_future()
        lane.ask_more(Asked(more, future, NOW_S, NOW_S + 1))

        lane.answered(only(lane, "tg_extend"), [[1, 65]], NOW_S)

        assert future.result() == Held(3, 65)
        assert lane.open[more.call_id] == more


class TestEnds:
    async def test_one_is_kept_until_a_stream_has_it(self, lane: Lane, told: Told) -> None:
        end = end_of(hold(1), 1)
        lane.end(end)
        lane.answered(only(lane, "tg_settle"), ReplyError("MISCONF disk full"), NOW_S)
        now_s = NOW_S + PAUSE_S
        lane.answered(only(lane, "tg_settle", now_s=now_s), ReplyError("EPOCH 3 A"), now_s)
        lane.answered(only(lane, "tg_state", now_s=now_s), state(3), now_s)
        lane.lost(only(lane, "tg_settle", now_s=now_s))
        assert lane.unanswered == 1

        lane.answered(only(lane, "tg_settle", now_s=now_s), [b"S7-0"], NOW_S)

        assert (lane.unanswered, told.settled) == (0, [(end.call_id, 3, "7-0")])

    async def test_one_that_was_logged_before_is_told_where(self, lane: Lane, told: Told) -> None:
        end = end_of(hold(1), 1)
        lane.end(end)

        lane.answered(only(lane, "tg_settle"), [b"D7-0"], NOW_S)

        assert told.settled == [(end.call_id, 3, "7-0")]

    async def test_those_of_one_step_are_told_together(self, lane: Lane, told: Told) -> None:
        ends = [end_of(hold(1), charge) for charge in range(4)]
        for end in ends:
            lane.end(end)
        answers = [b"S7-1", b"U", b"D5-3", b"S7-2"]
        lane.answered(only(lane, "tg_settle"), answers, NOW_S)

        assert told.settled == [(ends[i].call_id, 3, "7-2") for i in (0, 2, 3)]
        assert lane.unanswered == 1

    async def test_one_without_a_hold_goes_on_as_late(self, lane: Lane, told: Told) -> None:
        end = end_of(hold(1), 1)
        lane.end(end)
        lane.answered(only(lane, "tg_settle"), [b"U"], NOW_S)
        late = only(lane, "tg_late")
        lane.answered(late, [b"L7-0"], NOW_S)

        assert (lane.unanswered, told.settled) == (0, [(end.call_id, 3, "7-0")])

    async def test_a_late_one_whose_hold_is_open_after_all_is_settled(self, lane: Lane) -> None:
        lane.end(end_of(hold(1), 1))
        lane.answered(only(lane, "tg_settle"), [b"U"], NOW_S)
        lane.answered(only(lane, "tg_late"), [b"O"], NOW_S)

        assert sent(lane) == ["tg_settle"]

    async def test_lost_ones_keep_their_order(self, lane: Lane) -> None:
        ends = [end_of(hold(1), charge) for charge in range(ITEMS_MAX + 3)]
        for end in ends:
            lane.end(end)
        lane.lost(only(lane, "tg_settle"))

        again: list[End] = [*only(lane, "tg_settle").items, *only(lane, "tg_settle").items]
        assert again == ends


class TestGenerations:
    async def test_a_fence_that_is_open_calls_for_a_recovery(self, lane: Lane, told: Told) -> None:
        asked = ask(lane)
        lane.answered(only(lane, "tg_hold"), ReplyError("EPOCH 0 -"), NOW_S)

        assert told.epochs == [NUMBER]
        assert not lane.is_active
        assert not asked.future.done()

    async def test_the_call_is_repeated_but_not_hammered(self, lane: Lane, told: Told) -> None:
        ask(lane)
        lane.answered(only(lane, "tg_hold"), ReplyError("EPOCH 0 -"), NOW_S)
        for tenths in range(1, 25):
            now_s = NOW_S + tenths / 10
            lane.answered(only(lane, "tg_state", now_s=now_s), state(0, b"", matches=0), now_s)

        assert len(told.epochs) == 1 + int(2.4 / TELL_EVERY_S)

    async def test_a_hold_waits_for_a_recovery_and_no_longer(self, lane: Lane) -> None:
        asked = ask(lane)
        lane.answered(only(lane, "tg_hold"), ReplyError("STATE 4 R"), NOW_S)

        lane.expire(NOW_S + RECOVERY_WAIT_S - 0.01, is_answering=True)
        assert not asked.future.done()
        lane.expire(NOW_S + RECOVERY_WAIT_S, is_answering=True)
        with pytest.raises(LedgerUnavailable, match="recovering"):
            await asked.future

    async def test_while_recovering_what_is_under_way_is_told_and_nothing_else(
        self, lane: Lane, told: Told
    ) -> None:
        goes_on, unseen, ends = ask(lane), hold(1), end_of(hold(1), 9)
        gone = end_of(hold(1), 30)
        lane.answered(only(lane, "tg_hold"), [[1, 70]], NOW_S)
        lane.end(ends)
        lane.release_unseen(unseen)
        ask(lane)
        lane.doubt()
        lane.answered(only(lane, "tg_state"), state(4, b"R"), NOW_S)

        lane.told(3, [end_of(hold(1), 5)])
        lane.told(4, [gone])

        again, owed = (step for step in lane.steps(NOW_S) if step.function != "tg_state")
        assert (again.function, again.items) == ("tg_rehold", [goes_on.hold])
        assert (owed.function, [one.amount for one in owed.items]) == ("tg_owe", [9 + 30])
        assert {again.generation, owed.generation} == {4}
        assert told.generations == [(NUMBER, 3), (NUMBER, 4)]

    async def test_once_active_what_is_missing_is_told_and_the_rest_of_its_sum_given_back(
        self, lane: Lane
    ) -> None:
        lane.told(3, [end_of(hold(1), 5), end_of(hold(1), 7)])
        owed, late = lane.steps(NOW_S)
        assert [step.function for step in (owed, late)] == ["tg_owe", "tg_late"]
        lane.answered(owed, [1], NOW_S)
        lane.answered(late, [b"L7-0", b"D6-0"], NOW_S)

        lane.answered(only(lane, "tg_acquit"), 1, NOW_S)

        assert (sent(lane), lane.unanswered) == ([], 0)

    async def test_a_library_that_knows_no_sums_is_told_the_ends_all_the_same(
        self, lane: Lane
    ) -> None:
        lane.told(3, [end_of(hold(1), 5)])
        owed, late = lane.steps(NOW_S)
        lane.answered(owed, ReplyError("ERR Function not found"), NOW_S)
        lane.answered(late, ReplyError("EPOCH 3 A"), NOW_S)
        lane.answered(only(lane, "tg_state", now_s=NOW_S + 1), state(3), NOW_S + 1)

        assert sent(lane, now_s=NOW_S + 1) == ["tg_late"]

    async def test_a_call_that_ends_meanwhile_is_held_again_until_it_is_settled(
        self, lane: Lane
    ) -> None:
        asked = ask(lane)
        lane.answered(only(lane, "tg_hold"), [[1, 70]], NOW_S)
        lane.doubt()
        lane.answered(only(lane, "tg_state"), state(4), NOW_S)
        again = only(lane, "tg_rehold")
        lane.lost(again)
        lane.end(end_of(asked.hold, 1))
        lane.doubt()
        lane.answered(only(lane, "tg_state"), state(4), NOW_S)

        again, settle = lane.steps(NOW_S)
        assert [step.function for step in (again, settle)] == ["tg_rehold", "tg_settle"]
        lane.answered(settle, [b"S7-0"], NOW_S)
        lane.lost(again)

        assert sent(lane) == []

    async def test_renewals_that_find_nothing_are_counted(self, lane: Lane) -> None:
        lane.renew([Renewal(b"1" * 16), Renewal(b"2" * 16)])
        lane.answered(only(lane, "tg_renew"), [1, 0], NOW_S)

        assert lane.lapsed == 1


async def test_a_call_that_nobody_admitted_is_held_before_anything_is_admitted(lane: Lane) -> None:
    lane.doubt()
    goes_on = hold(5)
    lane.rehold(goes_on)
    ask(lane)
    lane.answered(only(lane, "tg_state"), state(3), NOW_S)
    again, admission = lane.steps(NOW_S)
    assert (again.function, again.items) == ("tg_rehold", [goes_on])
    assert admission.function == "tg_hold"


def test_one_that_has_ended_meanwhile_is_ended_and_not_held(lane: Lane) -> None:
    ended = hold(5)
    lane.rehold(ended)
    lane.end(end_of(ended, 3))
    assert [step.function for step in lane.steps(NOW_S)] == ["tg_settle"]
