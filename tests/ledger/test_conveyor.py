"""What callers may rely on."""

import asyncio
import logging

import pytest

from gateway.embedded import Urls
from ledger.admission import Held, Refused, Slot
from ledger.belt import LOOK_EVERY_S
from ledger.conveyor import Conveyor
from ledger.functions import Partition, Renewal
from ledger.record import EndKind
from ledger.step import Settled
from tests.ledger.line import Line, nothing_is_held, until
from tests.ledger.own_valkey import OwnValkey
from tests.ledger.partitions import NUMBER, WALLET, cap, end_of, hold, images


class TestCalls:
    async def test_a_call_is_admitted_and_ended(
        self, line: Line, conveyor: Conveyor, partition: Partition
    ) -> None:
        one = hold(300, caps=(cap("c", 500),))

        assert await conveyor.hold(one) == Held(1, 700)
        assert conveyor.held(one.call_id, NUMBER) == one.amount
        conveyor.settle(end_of(one, 120))

        assert await conveyor.drain(5.0) == 0
        await until(lambda: bool(line.settled))
        (entry,) = await partition.peek(1, "0", 9)
        assert line.settled == [Settled([end_of(one, 120)], NUMBER, 1, entry.id)]
        assert (await images(partition))["c@0"].spent == 120
        assert conveyor.open_count == 0

    async def test_what_comes_while_a_batch_is_under_way_goes_out_together(
        self, line: Line, conveyor: Conveyor
    ) -> None:
        await conveyor.hold(hold(0))
        line.batches.clear()

        await asyncio.gather(*(conveyor.hold(hold(1)) for _ in range(100)))

        assert 100 in line.batches

    @pytest.mark.parametrize("kind", ["settle", "late", "renew", "extend"])
    async def test_no_work_waits_until_the_lanes_are_looked_at(
        self, line: Line, conveyor: Conveyor, kind: str
    ) -> None:
        loop, waits_s = asyncio.get_running_loop(), []
        for _ in range(5):
            one = hold(1)
            if kind != "late":
                await conveyor.hold(one)
            await asyncio.sleep(0)
            line.batches.clear()
            began_s = loop.time()
            if kind in {"settle", "late"}:
                conveyor.settle(end_of(one, 0))
                await conveyor.drain(5.0)
            elif kind == "renew":
                conveyor.renew(NUMBER, [Renewal(one.call_id)])
            else:
                await conveyor.extend(hold(2, call_id=one.call_id))
            await until(lambda: bool(line.batches))
            waits_s.append(loop.time() - began_s)

        assert sorted(waits_s)[2] < LOOK_EVERY_S / 5

    async def test_a_refusal_is_an_answer(self, conveyor: Conveyor) -> None:
        assert await conveyor.hold(hold(1_001)) == Refused("wallet", WALLET, 1_000, 0)
        assert await conveyor.hold(hold(1, wallet="new")) == Refused("no_wallet", "new")

    async def test_a_flawed_hold_is_an_error(self, conveyor: Conveyor) -> None:
        with pytest.raises(ValueError, match="amount"):
            await conveyor.hold(hold(-1))

    async def test_a_flawed_end_is_not_sent_for_ever(
        self, conveyor: Conveyor, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.CRITICAL)
        conveyor.settle(end_of(hold(1), 5, EndKind.EXPIRED))

        assert await conveyor.drain(5.0) == 0
        assert conveyor.broken_count == 1

    async def test_money_held_by_a_call_that_ends_at_once_is_asked_for_again(
        self, conveyor: Conveyor
    ) -> None:
        first = hold(1_000)
        await conveyor.hold(first)
        second = asyncio.ensure_future(conveyor.hold(hold(1_000)))
        await asyncio.sleep(0)
        conveyor.settle(end_of(first, 0))

        assert isinstance(await second, Held)

    async def test_a_slot_that_stays_full_refuses(self, conveyor: Conveyor) -> None:
        slots = (Slot("key", 1),)
        await conveyor.hold(hold(0, slots=slots))

        assert await conveyor.hold(hold(0, slots=slots)) == Refused("slots", "key", held=1)

    async def test_a_hold_is_raised(self, conveyor: Conveyor, partition: Partition) -> None:
        one = hold(300)
        await conveyor.hold(one)

        assert await conveyor.extend(hold(500, call_id=one.call_id)) == Held(1, 500)
        assert await conveyor.extend(hold(500)) == Refused("no_hold", WALLET)
        assert (await images(partition))[WALLET].held == 500

    async def test_progress_is_what_the_sweeper_charges(
        self, conveyor: Conveyor, partition: Partition
    ) -> None:
        one = hold(300, lease_ms=0)
        await conveyor.hold(one)
        conveyor.renew(NUMBER, [Renewal(one.call_id, 0, 70, b"so far")])
        await conveyor.hold(hold(0))  # behind it on the same connection

        assert await partition.sweep(1, 10) == 1
        (entry,) = await partition.peek(1, "0", 9)
        assert (entry.fields[b"c"], entry.fields[b"r"]) == (b"70", b"so far")

    async def test_an_end_without_a_hold_is_logged_as_late(
        self, line: Line, conveyor: Conveyor, partition: Partition
    ) -> None:
        conveyor.settle(end_of(hold(1), 120))

        assert await conveyor.drain(5.0) == 0
        await until(lambda: bool(line.settled))
        (entry,) = await partition.peek(1, "0", 9)
        assert entry.fields[b"m"] == b"0"

    async def test_it_needs_no_more_rights_than_the_data_plane_has(
        self, servers: Urls, partition: Partition
    ) -> None:
        async with Line(servers.redis).running() as conveyor:
            await conveyor.hold(one := hold(1))
            conveyor.settle(end_of(one, 1))
            await conveyor.drain(5.0)
        assert (await images(partition))[WALLET].spent == 1


class TestCallersThatLeave:
    async def test_before_it_was_sent_hold_nothing(self, line: Line, partition: Partition) -> None:
        asked = asyncio.ensure_future(line.conveyor.hold(hold(300)))
        await asyncio.sleep(0)
        asked.cancel()
        async with line.running() as conveyor:
            await conveyor.hold(hold(1_000))

        assert (await images(partition))[WALLET].held == 1_000

    @pytest.mark.parametrize("turns", range(10))
    async def test_at_any_moment_hold_nothing_in_the_end(
        self, conveyor: Conveyor, partition: Partition, turns: int
    ) -> None:
        await conveyor.hold(hold(0, lease_ms=0))
        one = hold(3)
        asked = asyncio.ensure_future(conveyor.hold(one))
        for _ in range(turns):
            await asyncio.sleep(0)
        asked.cancel()
        await asyncio.wait({asked})
        if not asked.cancelled():
            conveyor.settle(end_of(one, 0))
        await conveyor.hold(hold(0, lease_ms=0))  # behind whatever was sent
        await conveyor.drain(5.0)

        await partition.sweep(1, 9)
        await nothing_is_held(partition)
        assert conveyor.open_count - 2 == 0

    async def test_with_the_answer_already_given_let_go_of_it(self, line: Line) -> None:
        asked = asyncio.ensure_future(line.conveyor.hold(hold(3)))
        await asyncio.sleep(0)
        (waiting,) = line.conveyor._lanes[NUMBER]._holds
        waiting.future.set_result(Held(1, 5))
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked

        assert line.conveyor.unanswered_count == 1

    async def test_leave_a_record_of_the_hold_that_they_did_not_see(
        self, line: Line, server: OwnValkey, apart: Partition
    ) -> None:
        line = Line(server.url)
        async with line.running() as conveyor:
            await conveyor.hold(hold(0))
            line.batches.clear()
            server.pause()
            asked = asyncio.ensure_future(conveyor.hold(one := hold(3)))
            await until(lambda: 1 in line.batches)
            asked.cancel()
            server.resume()
            async with asyncio.timeout(5.0):
                while not (logged := await apart.peek(1, "0", 9)):
                    await asyncio.sleep(0.002)

            (entry,) = logged
            assert (entry.fields[b"k"], entry.fields[b"r"]) == (b"released", one.ticket)
            assert line.settled == []  # nobody has journalled it
