"""A lane whose partition begins a new generation: what it asks, tells again and holds again."""

import pytest
from hiredis import ReplyError

from ledger.admission import LedgerUnavailable
from ledger.fcall import Renewal
from ledger.lane import TELL_EVERY_S, Lane
from ledger.waiting import RECOVERY_WAIT_S
from tests.ledger.lanes import NOW_S, Told, ask, missing, only, sent, state
from tests.ledger.partitions import NUMBER, end_of, hold


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

        missing(lane, 3, end_of(hold(1), 5))
        missing(lane, 4, gone)

        again, owed = (step for step in lane.steps(NOW_S) if step.function != "tg_state")
        assert (again.function, again.items) == ("tg_rehold", [goes_on.hold])
        assert (owed.function, [one.amount for one in owed.items]) == ("tg_owe", [9 + 30])
        assert {again.generation, owed.generation} == {4}
        assert told.generations == [(NUMBER, 3), (NUMBER, 4)]

    async def test_once_active_what_is_missing_is_told_and_the_rest_of_its_sum_given_back(
        self, lane: Lane
    ) -> None:
        missing(lane, 3, end_of(hold(1), 5), end_of(hold(1), 7))
        owed, late = lane.steps(NOW_S)
        assert [step.function for step in (owed, late)] == ["tg_owe", "tg_late"]
        lane.answered(owed, [1], NOW_S)
        lane.answered(late, [b"L7-0", b"D6-0"], NOW_S)

        lane.answered(only(lane, "tg_acquit"), 1, NOW_S)

        assert (sent(lane), lane.unanswered) == ([], 0)

    async def test_a_library_that_knows_no_sums_is_told_the_ends_all_the_same(
        self, lane: Lane
    ) -> None:
        missing(lane, 3, end_of(hold(1), 5))
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


def test_one_that_has_ended_meanwhile_is_held_for_its_end_alone(lane: Lane) -> None:
    ended = hold(5)
    lane.rehold(ended)
    lane.end(end_of(ended, 3))
    assert sent(lane) == ["tg_rehold", "tg_settle"]
