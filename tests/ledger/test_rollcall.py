"""What is under way counts again before anybody is admitted, and nobody delays that for long."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Protocol

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from ledger.admission import Cap, Held, Hold, Refused, Slot
from ledger.book import Organization
from ledger.fcall import KEY_COUNT, execute, key_names
from ledger.functions import Partition
from ledger.money import Nanos
from ledger.record import encode
from ledger.recovery import Recovered
from ledger.rollcall import (
    ALIVE_MS,
    GATEWAYS_KEY,
    ROLL_CALL_S,
    ROSTER_S,
    Presence,
    Signature,
    roll_key,
)
from tests.ledger.deployment import Deployment, new_call_id, record_of, until
from tests.ledger.gateways import Gateway
from tests.ledger.partitions import NUMBER, call

CAP = Cap("key-1", Nanos(5_000), (0,))
SLACK_S = 0.5


async def _last(recovered: list[Recovered], of: Organization) -> Recovered:
    """Its partition's, told a moment after it admits; others have a first start at any time."""
    found: list[Recovered] = []

    async def is_told() -> bool:
        found[:] = [one for one in recovered if one.partition == of.partition]
        return bool(found)

    await until(is_told)
    return found[-1]


class Start(Protocol):
    """Starts a gateway that lives as long as the test."""

    async def __call__(self) -> Gateway: ...


@pytest.fixture
async def start(deployment: Deployment, redis_url: str, tmp_path: Path) -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        async def started() -> Gateway:
            alive = Gateway.alive(redis_url, tmp_path, on_epoch=deployment.recovery.request)
            return await stack.enter_async_context(alive)

        yield started


@pytest.fixture
async def recovered(deployment: Deployment) -> AsyncIterator[list[Recovered]]:
    """Recoveries run on notice; what they did."""
    done: list[Recovered] = []
    deployment.recovery._on_recovered = done.append
    async with asyncio.TaskGroup() as group:
        task = group.create_task(deployment.recovery.run(), name="recovery")
        yield done
        task.cancel()


def asked(
    organization: Organization,
    amount: int,
    *,
    caps: tuple[Cap, ...] = (),
    slots: tuple[Slot, ...] = (),
) -> Hold:
    call_id = new_call_id()
    ticket = encode(record_of(organization, call_id, charge=0))
    return Hold(
        call_id,
        organization.partition,
        organization.id,
        Nanos(amount),
        caps,
        slots=slots,
        ticket=ticket,
    )


async def held(gateway: Gateway, hold: Hold) -> Hold:
    assert isinstance(await gateway.conveyor.hold(hold, deadline_s=5.0), Held)
    gateway.dispatched(hold)
    return hold


async def signed(client: Redis, generation: int) -> set[bytes]:
    """The signatures of this generation's roll, with one more."""
    keys = (*key_names(NUMBER, generation), roll_key(NUMBER, generation))
    await execute(client, "FCALL", "tg_sign", KEY_COUNT + 1, *keys, generation, "gateway")
    return set(await execute(client, "SMEMBERS", keys[-1]))


class TestOpenCalls:
    @pytest.mark.parametrize("loss", ["flushall", "fence"])
    async def test_of_two_live_gateways_count_before_the_first_admission(
        self, deployment: Deployment, start: Start, recovered: list[Recovered], loss: str
    ) -> None:
        acme = await deployment.active(credit=10_000)
        gateways = [await start(), await start()]
        for gateway in gateways:
            await held(gateway, asked(acme, 4_000))

        for generation in range(2, 6):
            if loss == "flushall":
                await deployment.redis.flushall()
            else:
                await deployment.redis.hset(f"tg:{{p{acme.partition:02d}}}:meta", "seq", "5")
            tries = [
                gateway.conveyor.hold(asked(acme, 2_001), deadline_s=5.0)
                for gateway in gateways
                for _ in range(20)
            ]
            answers = await asyncio.gather(*tries)

            assert {answer[:4] for answer in answers} == {("wallet", acme.id, 2_000, 8_000)}
            (done,) = [one for one in recovered if one[:2] == (acme.partition, generation)]
            assert done.open_holds == 2

    async def test_keep_their_cap_and_their_slot(
        self, deployment: Deployment, start: Start, recovered: list[Recovered]
    ) -> None:
        acme = await deployment.active(credit=10_000)
        gateway = await start()
        slots = (Slot("key", 1),)
        await held(gateway, asked(acme, 4_000, caps=(CAP,), slots=slots))
        await deployment.redis.flushall()

        by_cap = await gateway.conveyor.hold(asked(acme, 1_001, caps=(CAP,)), deadline_s=5.0)
        by_slot = await gateway.conveyor.hold(asked(acme, 1, slots=slots), deadline_s=5.0)

        assert recovered
        assert isinstance(by_cap, Refused)
        assert isinstance(by_slot, Refused)
        assert (by_cap.code, by_cap.free, by_cap.held) == ("cap", 1_000, 4_000)
        assert (by_slot.code, by_slot.scope) == ("slots", "key")

    async def test_that_end_meanwhile_are_charged_before_the_first_admission(
        self, deployment: Deployment, start: Start, recovered: list[Recovered]
    ) -> None:
        acme = await deployment.active(credit=10_000)
        gateway = await start()
        hold = await held(gateway, asked(acme, 4_000))
        before = await held(gateway, asked(acme, 1_000))
        gateway.ended(deployment.end(acme, before.call_id, 700))
        assert await gateway.conveyor.drain(5.0) == 0
        await deployment.redis.flushall()  # with the end, which Postgres does not have
        waits = asyncio.ensure_future(gateway.conveyor.hold(asked(acme, 5_301), deadline_s=5.0))
        await asyncio.sleep(0)
        gateway.ended(deployment.end(acme, hold.call_id, 4_000))

        answer = await waits

        assert isinstance(answer, Refused)
        assert (answer.free, answer.held) == (5_300, 0)
        assert recovered
        assert await gateway.conveyor.drain(5.0) == 0
        assert await deployment.flush(acme) == 2
        assert await deployment.balance(acme) == 10_000 - 4_700
        assert await deployment.differences() == []

    async def test_that_ended_in_a_stream_that_survives_are_not_sent_again(
        self, deployment: Deployment, start: Start, recovered: list[Recovered]
    ) -> None:
        acme = await deployment.active(credit=10_000)
        gateway = await start()
        for _ in range(20):
            hold = await held(gateway, asked(acme, 100))
            gateway.ended(deployment.end(acme, hold.call_id, 10))
        assert await gateway.conveyor.drain(5.0) == 0
        await deployment.redis.hset(f"tg:{{p{acme.partition:02d}}}:meta", "seq", "5")

        assert isinstance(await gateway.conveyor.hold(asked(acme, 1), deadline_s=5.0), Held)

        assert (await _last(recovered, acme)).drained == 20
        assert gateway.journal.unproven_count == 0
        assert await deployment.balance(acme) == 9_800

    async def test_of_a_quiet_gateway_are_held_again_as_fast(
        self, deployment: Deployment, start: Start
    ) -> None:
        acme = await deployment.active(credit=10_000)
        quiet = await start()
        await held(quiet, asked(acme, 4_000))
        meta = f"tg:{{p{acme.partition:02d}}}:meta"
        times_s = []
        for _ in range(5):
            # A partition that is damaged has lost no heartbeat.
            await deployment.pool.execute("UPDATE part SET state = 'damaged'")
            await deployment.redis.zrem(
                f"tg:{{p{acme.partition:02d}}}:due", *quiet.conveyor._lanes[acme.partition].open
            )
            done = await deployment.recover(acme)
            assert done is not None
            assert done.open_holds == 1
            times_s.append(done.seconds)
        assert await deployment.redis.hget(meta, "state") == b"A"
        assert sorted(times_s)[2] < 0.3, "faster than the look that every lane takes"


class TestWaiting:
    async def test_a_silent_gateway_delays_a_recovery_by_so_much_at_most(
        self, deployment: Deployment
    ) -> None:
        acme = await deployment.active()
        seconds, _ = await deployment.redis.time()
        await deployment.redis.zadd(GATEWAYS_KEY, {"silent": int(seconds) * 1000 + 60_000})
        await deployment.pool.execute("UPDATE part SET state = 'damaged'")

        done = await deployment.recover(acme)

        assert done is not None
        assert ROLL_CALL_S <= done.seconds < ROLL_CALL_S + SLACK_S

    async def test_one_that_dies_during_the_roll_call_is_given_up(
        self, deployment: Deployment
    ) -> None:
        acme = await deployment.active()
        seconds, microseconds = await deployment.redis.time()
        last_beat_ms = int(seconds) * 1000 + int(microseconds) // 1000 - ALIVE_MS // 2
        await deployment.redis.zadd(GATEWAYS_KEY, {"dying": last_beat_ms})
        await deployment.pool.execute("UPDATE part SET state = 'damaged'")

        done = await deployment.recover(acme)

        assert done is not None
        assert ALIVE_MS / 2_000 - 0.1 < done.seconds < ROLL_CALL_S

    async def test_after_a_loss_of_data_heartbeats_are_waited_for(
        self, deployment: Deployment
    ) -> None:
        acme = await deployment.active()
        await deployment.redis.flushall()
        done = await deployment.recover(acme)
        assert done is not None
        assert ROSTER_S <= done.seconds < ROSTER_S + SLACK_S

    async def test_a_partition_without_gateways_or_losses_waits_for_nobody(
        self, deployment: Deployment
    ) -> None:
        acme = await deployment.active()
        await deployment.pool.execute("UPDATE part SET state = 'damaged'")
        done = await deployment.recover(acme)
        assert done is not None
        assert done.seconds < ROSTER_S


class TestSigning:
    async def test_an_older_generation_is_refused(
        self, client: Redis, partition: Partition
    ) -> None:
        await partition.freeze(2)
        assert await signed(client, 2) == {b"gateway"}
        for generation in (1, 3):
            with pytest.raises(ResponseError, match="EPOCH 2 R"):
                await signed(client, generation)
            assert not await client.exists(roll_key(NUMBER, generation))
        assert 0 < await client.ttl(roll_key(NUMBER, 2)) <= 60

    async def test_another_generations_roll_cannot_be_signed(
        self, client: Redis, partition: Partition
    ) -> None:
        with pytest.raises(ResponseError, match="ARGS"):
            await call(client, "tg_sign", "gateway")
        keys = (*key_names(NUMBER, 1), roll_key(NUMBER, 2))
        with pytest.raises(ResponseError, match="roll"):
            await execute(client, "FCALL", "tg_sign", KEY_COUNT + 1, *keys, 1, "gateway")
        assert await partition.open_holds(1) == []

    def test_it_waits_for_everything_that_is_owed_and_no_more(self) -> None:
        signature = Signature(NUMBER, "gateway")
        signature.begin(3, [b"open"])
        signature.paid([b"open"])
        assert signature.words() == (), "the journals have told nothing yet"
        signature.begin(3, [b"open"])
        signature.told([b"sum"])
        assert signature.words() == ()
        signature.paid([b"open", b"another"])
        assert signature.words() == ()
        signature.paid([b"sum"])
        words = signature.words()
        assert words[-2:] == (3, "gateway")
        assert signature.words() == words, "until it is answered"
        signature.give()
        assert signature.words() == ()
        signature.begin(4, [])
        assert signature.words() == ()

    def test_nobody_signs_without_a_name(self) -> None:
        signature = Signature(NUMBER, "")
        signature.begin(1, [])
        signature.told([])
        assert signature.words() == ()


class TestPresence:
    async def test_a_gateway_beats_while_it_lives_and_leaves_when_it_stops(
        self, deployment: Deployment, redis_url: str, tmp_path: Path
    ) -> None:
        redis = deployment.redis
        async with Gateway.alive(redis_url, tmp_path, on_epoch=lambda _: None) as gateway:
            name = gateway.name.encode()
            first = await redis.zscore(GATEWAYS_KEY, name)
            assert first is not None

            async def later() -> bool:
                score = await redis.zscore(GATEWAYS_KEY, name)
                return score is not None and score > first

            await until(later, within_s=ALIVE_MS / 1000)
            await redis.flushall()
            await until(later, within_s=ROSTER_S)
        assert await redis.zscore(GATEWAYS_KEY, name) is None

    async def test_the_dead_are_forgotten(self, deployment: Deployment) -> None:
        await deployment.redis.zadd(GATEWAYS_KEY, {"dead": 1})
        presence = Presence(deployment.redis, "alive")
        async with asyncio.TaskGroup() as group:
            task = group.create_task(presence.run())
            await presence.known.wait()

            async def forgotten() -> bool:
                return await deployment.redis.zrange(GATEWAYS_KEY, 0, -1) == [b"alive"]

            await until(forgotten)
            task.cancel()

    async def test_a_redis_that_is_away_stops_nobody(self, tmp_path: Path) -> None:
        redis = Redis.from_url(f"unix://{tmp_path}/nobody.sock")
        presence = Presence(redis, "gateway")
        task = asyncio.ensure_future(presence.run())
        await asyncio.sleep(0)
        await presence.leave()
        assert not task.done()
        assert not presence.known.is_set()
        task.cancel()
        await asyncio.wait({task})
        await redis.aclose()
