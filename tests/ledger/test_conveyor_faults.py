"""What callers may rely on while Redis is silent, dead, full, cut off or recovering."""

import asyncio
import logging
import time
from pathlib import Path

import pytest
from redis.asyncio import Redis

from ledger.admission import Held, LedgerUnavailable, Slot
from ledger.belt import HOLD_S
from ledger.conveyor import Conveyor
from ledger.functions import Partition, WalletState
from ledger.outage import REDIS
from ledger.step import Settled
from ledger.waiting import QUEUE_MAX, RECOVERY_WAIT_S
from tests.ledger.cutter import Cutter
from tests.ledger.line import Line, nothing_is_held, until
from tests.ledger.own_valkey import OwnValkey
from tests.ledger.partitions import NUMBER, WALLET, cap, end_of, hold, images, recovered


async def test_what_ended_calls_owe_is_held_while_they_are_told_and_a_lease_longer(
    redis_url: str, partition: Partition
) -> None:
    line = Line(redis_url, needs_replica=True, gateway="g", renew_s=0.1, lease_s=0.4)
    async with line.running() as conveyor:
        await until(lambda: (NUMBER, 1) in line.generations)
        owing, end = conveyor.owing(NUMBER, 1), end_of(hold(300), 300)
        assert owing is not None
        owing.add(end)
        conveyor.owed(owing)
        conveyor.late(end, 1)  # for ever: there is no replica
        async with asyncio.timeout(5.0):
            while not (found := await partition.open_holds(1)):
                await asyncio.sleep(0.002)
            while (await partition.open_holds(1))[0].deadline_ms < found[0].deadline_ms + 1_000:
                await partition.sweep(1, 9)
                await asyncio.sleep(0.02)

    async with asyncio.timeout(5.0):
        while not await partition.sweep(1, 9):
            await asyncio.sleep(0.01)
    assert await partition.open_holds(1) == []


class TestRedisAway:
    async def test_connections_that_break_all_the_time_do_not_put_renewals_off(
        self, client: Redis, redis_url: str, partition: Partition
    ) -> None:
        lives_s = 0.2
        async with (
            Line(redis_url, renew_s=2 * lives_s).running() as conveyor,
            asyncio.timeout(20),
        ):
            await conveyor.hold(hold(300))
            (before,) = await partition.open_holds(1)
            while (await partition.open_holds(1))[0].deadline_ms < before.deadline_ms + 2_000:
                await until(lambda: conveyor.is_connected)
                await asyncio.sleep(lives_s)
                await client.client_kill_filter(_type="normal", skipme=True)

    async def test_a_silent_one_is_told_in_time_and_holds_nothing_in_the_end(
        self, server: OwnValkey, apart: Partition
    ) -> None:
        async with Line(server.url).running() as conveyor:
            await conveyor.hold(hold(0, lease_ms=0))
            server.pause()
            async with asyncio.timeout(4 * HOLD_S):  # four times: machines are busy
                with pytest.raises(LedgerUnavailable, match="does not answer"):
                    await conveyor.hold(hold(300))
            server.resume()

            await conveyor.hold(hold(0, lease_ms=0))
            await conveyor.drain(5.0)
            await apart.sweep(1, 9)
            await nothing_is_held(apart)

    async def test_it_is_not_blamed_for_a_process_that_was_busy_itself(
        self, server: OwnValkey, apart: Partition
    ) -> None:
        async with Line(server.url).running() as conveyor:
            await conveyor.hold(hold(0, lease_ms=0))
            first, second = asyncio.ensure_future(conveyor.hold(hold(300))), hold(100)
            await asyncio.sleep(0)
            asyncio.get_running_loop().call_soon(time.sleep, 2 * HOLD_S)
            later = asyncio.ensure_future(conveyor.hold(second))

            assert isinstance(await first, Held)
            assert isinstance(await later, Held)
            assert (await images(apart))[WALLET].held == 400

    async def test_one_that_stays_silent_is_connected_anew(
        self, server: OwnValkey, apart: Partition
    ) -> None:
        async with Line(server.url).running() as conveyor:
            await conveyor.hold(one := hold(300))
            server.pause()
            conveyor.settle(end_of(one, 120))
            await until(lambda: not conveyor.is_connected)
            server.resume()

            assert await conveyor.drain(5.0) == 0
            there = (await images(apart))[WALLET]
            assert (there.held, there.spent) == (0, 120)

    async def test_an_end_survives_it_and_is_logged_once(
        self, server: OwnValkey, apart: Partition
    ) -> None:
        line = Line(server.url)
        async with line.running() as conveyor:
            await conveyor.hold(one := hold(300))
            server.kill()
            conveyor.settle(end_of(one, 120))
            with pytest.raises(LedgerUnavailable):
                await conveyor.hold(hold(1))
            await server.start()
            await recovered(apart, 2)

            assert await conveyor.drain(5.0) == 0
            await until(lambda: bool(line.settled))
            (entry,) = await apart.peek(2, "0", 9)
            assert line.settled == [Settled([end_of(one, 120)], NUMBER, 2, entry.id)]

    async def test_a_refusal_for_lack_of_memory_is_told_and_ends_pass(
        self, client: Redis, conveyor: Conveyor, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.CRITICAL)
        await conveyor.hold(one := hold(300))
        await client.config_set("maxmemory", "1")
        try:
            with pytest.raises(LedgerUnavailable, match="OOM"):
                await conveyor.hold(hold(1))
            conveyor.settle(end_of(one, 120))
            left = await conveyor.drain(5.0)
        finally:
            await client.config_set("maxmemory", "0")

        assert left == 0

    async def test_what_is_wrong_is_said_with_its_cause(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with Line(f"unix://{tmp_path}/nobody.sock").running() as conveyor:
            with pytest.raises(LedgerUnavailable, match="does not answer"):
                await conveyor.hold(hold(1), deadline_s=0.9)

        told = {(record.message, record.__dict__["cause"]) for record in caplog.records}
        assert told == {("Redis is away", REDIS)}

    async def test_a_wrong_password_admits_nobody(
        self, server: OwnValkey, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with Line(f"unix://app:wrong@{server.socket}").running() as conveyor:
            with pytest.raises(LedgerUnavailable):
                await conveyor.hold(hold(1))
            assert not conveyor.is_connected
        assert "WRONGPASS" in str(caplog.records[0].__dict__["reason"])

    async def test_stopping_tells_everyone_who_waits(self, tmp_path: Path) -> None:
        async with Line(f"unix://{tmp_path}/nobody.sock").running() as conveyor:
            asked = asyncio.ensure_future(conveyor.hold(hold(1)))
            await asyncio.sleep(0)
        with pytest.raises(LedgerUnavailable, match="stopping"):
            await asked

    async def test_the_queue_is_bounded(self, line: Line) -> None:
        asked = [
            asyncio.ensure_future(line.conveyor.hold(hold(1), deadline_s=60.0))
            for _ in range(QUEUE_MAX)
        ]
        await asyncio.sleep(0)
        with pytest.raises(LedgerUnavailable, match="too many"):
            await line.conveyor.hold(hold(1))
        for each in asked:
            each.cancel()
        await asyncio.wait(asked)

    @pytest.mark.parametrize("seed", [1, 2])
    async def test_replies_that_never_come_lose_nothing_and_double_nothing(
        self,
        server: OwnValkey,
        apart: Partition,
        tmp_path: Path,
        seed: int,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.CRITICAL)
        await apart.set_base(1, WALLET, base=10**9, version=2, cause="grant")
        cutter = Cutter(str(server.socket), seed=seed)
        unavailable, charged = 0, 0

        async def calls(conveyor: Conveyor, count: int) -> None:
            nonlocal unavailable, charged
            for charge in range(count):
                try:
                    await conveyor.hold(one := hold(100, caps=(cap("c", 10**9),)))
                except LedgerUnavailable:
                    unavailable += 1
                    continue
                charged += charge
                conveyor.settle(end_of(one, charge))

        async with cutter.listening(tmp_path) as path:
            line = Line(f"unix://{path}")
            async with line.running() as conveyor:
                await conveyor.hold(hold(0))
                cutter.cut_share = 0.2
                await asyncio.gather(*(calls(conveyor, 60) for _ in range(10)))
                cutter.cut_share = 0.0
                assert await conveyor.drain(5.0) == 0

        there = await images(apart)
        assert cutter.cuts > 5
        assert unavailable < 300  # a cut is mended within the time of a hold
        assert [(i.spent, i.held) for i in there.values()] == [(charged, 0), (charged, 0)]


HELD_AGAIN = ({300, 20}, {300, 50})  # by the charge, or by its hold if it ended after the loss


class TestRecovery:
    async def test_a_hold_waits_for_it(self, line: Line, conveyor: Conveyor, client: Redis) -> None:
        await conveyor.hold(hold(0))
        await client.flushall()
        asked = asyncio.ensure_future(conveyor.hold(hold(300)))
        await until(lambda: NUMBER in line.epochs)
        await asyncio.sleep(0.5)  # longer than a hold waits for a server that is silent
        await recovered(Partition(client, NUMBER), 2)

        assert await asked == Held(2, 700)
        assert conveyor.generation(NUMBER) == 2

    async def test_that_takes_too_long_is_told(self, conveyor: Conveyor, client: Redis) -> None:
        await conveyor.hold(hold(0))
        await client.flushall()

        async with asyncio.timeout(2 * RECOVERY_WAIT_S):  # twice: machines are busy
            with pytest.raises(LedgerUnavailable, match="recovering"):
                await conveyor.hold(hold(1))
        assert NUMBER in conveyor.inactive

    async def test_calls_under_way_and_what_ended_meanwhile_count_before_it_is_over(
        self, line: Line, conveyor: Conveyor, client: Redis, partition: Partition
    ) -> None:
        stays, ends = hold(300, slots=(Slot("key", 1),)), hold(50)
        await conveyor.hold(stays)
        await conveyor.hold(ends)
        await client.flushall()
        await partition.freeze(2)
        conveyor.settle(end_of(ends, 20))
        async with asyncio.timeout(5.0):
            while {there.amount for there in await partition.open_holds(2)} not in HELD_AGAIN:
                await asyncio.sleep(0.002)
        await partition.load(2, [WalletState(WALLET, 1_000, 0, 1)])
        await partition.activate(2, 1)

        await until(lambda: bool(line.settled))
        (entry,) = await partition.peek(2, "0", 9)
        assert (entry.fields[b"m"], entry.fields[b"c"]) == (b"1", b"20")
        async with asyncio.timeout(5.0):
            while (there := (await images(partition, 2))[WALLET]).held != 300:
                await asyncio.sleep(0.002)
        assert there.free == 680
        assert line.generations == [(NUMBER, 1), (NUMBER, 2)]

    async def test_a_call_without_traffic_is_held_again_too(
        self, line: Line, conveyor: Conveyor, client: Redis, partition: Partition
    ) -> None:
        await conveyor.hold(hold(300))
        await client.flushall()
        await until(lambda: NUMBER in line.epochs, within_s=1.5)
        await recovered(partition, 2)
        async with asyncio.timeout(1.5):
            while (await images(partition, 2))[WALLET].held != 300:
                await asyncio.sleep(0.002)
