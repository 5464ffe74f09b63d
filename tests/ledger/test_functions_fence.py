"""Data that is not what this server wrote last admits nothing, from the first call on."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from ledger import functions
from ledger.fcall import key_names
from ledger.functions import Epoch, Partition, Renewal, WalletState, install
from tests.ledger.own_valkey import OwnValkey
from tests.ledger.partitions import NUMBER, WALLET, end_of, held, hold, images, ready, recovered

Call = Callable[[Partition, int], Awaitable[object]]

EVERY_WRITE: dict[str, Call] = {
    "hold": lambda partition, generation: partition.hold(generation, hold(1)),
    "extend": lambda partition, generation: partition.extend(generation, hold(1)),
    "rehold": lambda partition, generation: partition.rehold(generation, hold(1)),
    "settle": lambda partition, generation: partition.settle(generation, end_of(hold(1), 1)),
    "late": lambda partition, generation: partition.late(generation, end_of(hold(1), 1)),
    "renew": lambda partition, generation: partition.renew(generation, [Renewal(b"1" * 16)]),
    "sweep": lambda partition, generation: partition.sweep(generation, 1),
    "ack": lambda partition, generation: partition.ack(generation, [b"1" * 16]),
    "set_base": lambda partition, generation: partition.set_base(
        generation, WALLET, base=1, version=9, cause="grant"
    ),
    "forget": lambda partition, generation: partition.forget(generation, ["c@0"]),
    "load": lambda partition, generation: partition.load(
        generation, [WalletState(WALLET, 1, 0, 1)]
    ),
    "activate": lambda partition, generation: partition.activate(generation, 1),
}
every_write = pytest.mark.parametrize("write", EVERY_WRITE.values(), ids=EVERY_WRITE)


async def everything(client: Redis) -> dict[str | bytes, bytes]:
    """The whole data, to see that a refused call has changed nothing."""
    return {key: await client.dump(key) or b"" for key in sorted(await client.keys("*"))}


@every_write
async def test_another_generation_is_refused(
    client: Redis, partition: Partition, write: Call
) -> None:
    before = await everything(client)

    for generation in (0, 2):
        with pytest.raises(Epoch):
            await write(partition, generation)
    assert await everything(client) == before


@every_write
async def test_empty_data_is_refused(client: Redis, partition: Partition, write: Call) -> None:
    await client.flushall()

    with pytest.raises(Epoch):
        await write(partition, 1)
    assert await everything(client) == {}


@every_write
@pytest.mark.parametrize("change", [-1, 1])
async def test_a_sequence_that_is_not_the_servers_own_is_refused(
    client: Redis, partition: Partition, write: Call, change: int
) -> None:
    await client.hincrby(key_names(NUMBER, 1)[0], "seq", change)
    before = await everything(client)

    with pytest.raises(Epoch):
        await write(partition, 1)
    assert await everything(client) == before


async def test_older_data_put_back_is_refused(client: Redis, partition: Partition) -> None:
    before = await everything(client)
    await held(partition, 1)
    for key, value in before.items():
        await client.restore(key, 0, value, replace=True)

    with pytest.raises(Epoch):
        await partition.hold(1, hold(1))


async def test_data_put_back_under_another_generation_is_refused(
    client: Redis, partition: Partition
) -> None:
    await client.hset(key_names(NUMBER, 1)[0], "gen", "2")

    with pytest.raises(Epoch):
        await partition.hold(2, hold(1))


async def test_a_stream_of_another_generation_is_refused(
    client: Redis, partition: Partition
) -> None:
    keys = (*key_names(NUMBER, 1)[:-1], key_names(NUMBER, 2)[-1])

    with pytest.raises(ResponseError, match="ARGS"):
        await client.fcall("tg_sweep", len(keys), *keys, "1", "1")
    assert (await partition.state()).is_active()


async def test_the_sequence_goes_on_through_a_recovery(client: Redis, partition: Partition) -> None:
    meta = key_names(NUMBER, 1)[0]
    sequences = [int(await client.hget(meta, "seq") or 0)]
    for generation, loss in ((2, None), (3, client.flushall), (4, client.flushall)):
        if loss:
            await loss()
        await recovered(partition, generation)
        sequences.append(int(await client.hget(meta, "seq") or 0))

    assert sequences == sorted(set(sequences))


async def test_replacing_the_library_needs_a_recovery(client: Redis, partition: Partition) -> None:
    code = (Path(functions.__file__).parent / "lua" / "tollgate.lua").read_text()
    await client.function_load(code, replace=True)

    with pytest.raises(Epoch):
        await partition.hold(1, hold(1))
    await recovered(partition, 2)
    await held_in(partition, 2)


async def test_a_server_without_the_library_is_like_one_without_data(
    client: Redis, partition: Partition
) -> None:
    await client.function_flush("SYNC")

    with pytest.raises(Epoch) as refused:
        await partition.hold(1, hold(1))
    assert (refused.value.generation, refused.value.state) == (0, "")
    assert await partition.state() == functions.PartitionState()


async def test_a_function_that_failed_half_way_needs_a_recovery(
    client: Redis, partition: Partition
) -> None:
    kept = await held(partition, 5)
    await client.set(key_names(NUMBER, 1)[4], "not a hash")

    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await partition.hold(1, hold(7))
    await client.delete(key_names(NUMBER, 1)[4])
    with pytest.raises(Epoch):
        await partition.hold(1, hold(1))

    await recovered(partition, 2)
    assert (await images(partition, 2))[WALLET].held == 5
    assert [there.call_id for there in await partition.open_holds(2)] == [kept.call_id]


async def test_a_recovery_drops_deadlines_that_have_no_hold(
    client: Redis, partition: Partition
) -> None:
    await client.zadd(key_names(NUMBER, 1)[7], {b"x" * 16: 1})
    await client.hset(key_names(NUMBER, 1)[6], b"y" * 16, b"o garbled")
    await client.zadd(key_names(NUMBER, 1)[7], {b"y" * 16: 1})

    await recovered(partition, 2)

    assert await partition.open_holds(2) == []
    assert await partition.sweep(2, 10) == 0


class TestAcrossServers:
    @pytest.fixture
    async def server(self, tmp_path: Path) -> AsyncIterator[OwnValkey]:
        server = OwnValkey(tmp_path / "one")
        await server.start()
        yield server
        server.kill()

    async def test_a_restart_is_noticed_by_the_first_call(self, server: OwnValkey) -> None:
        client = Redis.from_url(server.url)
        partition = await ready(client)
        kept = await held(partition, 300)
        for write in EVERY_WRITE.values():
            server.kill()
            await server.start()
            state = await partition.state()
            assert (state.generation, state.sequence_matches) == (1, False)

            with pytest.raises(Epoch):
                await write(partition, 1)

        await install(client)  # survives in the append-only file: nothing to do
        await recovered(partition, 2)
        assert (await images(partition, 2))[WALLET].free == 700
        assert (await partition.settle(2, end_of(kept, 9))).outcome == "settled"
        await client.aclose()

    async def test_a_replica_that_is_promoted_admits_nothing(
        self, server: OwnValkey, tmp_path: Path
    ) -> None:
        replica = OwnValkey(tmp_path / "two", "replicaof no one")
        await replica.start()
        client, other = Redis.from_url(server.url), Redis.from_url(replica.url)
        try:
            await server_listens(client)
            partition = await ready(client)
            port = (await client.config_get("port"))["port"]
            await other.replicaof("127.0.0.1", port)
            await held(partition, 300)
            assert await client.wait(1, 5_000) == 1
            await other.replicaof("NO", "ONE")

            promoted = Partition(other, NUMBER)
            assert (await promoted.state()).generation == 1
            with pytest.raises(Epoch):
                await promoted.hold(1, hold(1))
            assert (await partition.state()).is_active()
        finally:
            await client.aclose()
            await other.aclose()
            replica.kill()

    async def test_the_old_primary_does_not_take_back_its_old_partition(
        self, server: OwnValkey, tmp_path: Path
    ) -> None:
        """It lost its tail to the new one's data; what it remembers is not what it has."""
        replica = OwnValkey(tmp_path / "two")
        await replica.start()
        client, other = Redis.from_url(server.url), Redis.from_url(replica.url)
        try:
            await server_listens(client)
            await server_listens(other)
            partition, promoted = await ready(client), Partition(other, NUMBER)
            await other.replicaof("127.0.0.1", (await client.config_get("port"))["port"])
            assert await client.wait(1, 5_000) is not None
            await in_step(client)
            await other.replicaof("NO", "ONE")
            await held(partition, 300)  # lost
            await recovered(promoted, 2)
            await client.replicaof("127.0.0.1", (await other.config_get("port"))["port"])
            await in_step(other)
            await client.replicaof("NO", "ONE")

            assert (await partition.state()).generation == 2
            with pytest.raises(Epoch):
                await partition.hold(2, hold(1))
        finally:
            await client.aclose()
            await other.aclose()
            replica.kill()


async def server_listens(client: Redis) -> None:
    """Give a server that only has a socket a free port, so that another can follow it."""
    for port in range(20_000, 60_000, 7):
        try:
            await client.config_set("port", port)
        except ResponseError:
            continue
        return


async def in_step(primary: Redis) -> None:
    """Wait until the one replica has everything."""
    await primary.set("tg:mark", "1")
    assert await primary.wait(1, 10_000) == 1


async def held_in(partition: Partition, generation: int) -> None:
    answer = await partition.hold(generation, hold(1))
    assert answer.__class__.__name__ == "Held"
