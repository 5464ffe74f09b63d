"""What a lane decides, with answers made by hand: every order in which a connection can fail."""

import asyncio

import pytest
from hiredis import ReplyError

from ledger.admission import End, Held, LedgerUnavailable, Refused
from ledger.fcall import Renewal
from ledger.lane import ITEMS_MAX, PAUSE_S, Lane
from ledger.record import EndKind
from ledger.step import Asked, Step
from ledger.waiting import QUEUE_MAX
from tests.ledger.lanes import NOW_S, Told, ask, only, sent, state
from tests.ledger.partitions import NUMBER, end_of, hold, total


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
