"""Rules of shortening the streams."""

from ledger.commit import Position
from ledger.trim import KEEP_MS, trim
from tests.ledger.deployment import Deployment

HUGE = 1 << 40


async def _log(deployment: Deployment, partition: int, ids: list[int]) -> None:
    for at_ms in ids:
        await deployment.redis.xadd(f"tg:{{p{partition:02d}}}:log:1", {"k": "?"}, id=f"{at_ms}-0")


async def test_a_day_is_kept_and_nothing_that_is_not_flushed_is_dropped(
    deployment: Deployment,
) -> None:
    acme = await deployment.organization()
    partition = deployment.partition(acme)
    now_ms = int((await deployment.redis.time())[0]) * 1000
    old = list(range(now_ms - 2 * KEEP_MS, now_ms - 2 * KEEP_MS + 1_000))
    await _log(deployment, acme.partition, [*old, now_ms - 5])
    async with deployment.connected() as connection:
        unflushed = Position(1, f"{old[500]}-0")
        await trim(connection, partition, watermark=unflushed, keep_bytes=HUGE)
        kept = await partition.peek(1, "0-0", 2_000)
        assert f"{old[501]}-0" in {entry.id for entry in kept}
        assert len(kept) < 1_001
        await trim(connection, partition, watermark=Position(1, f"{now_ms}-0"), keep_bytes=HUGE)
    kept = await partition.peek(1, "0-0", 2_000)
    assert kept[-1].id == f"{now_ms - 5}-0"
    assert len(kept) < 200  # whole nodes of the stream go, so a few stay


async def test_a_stream_over_its_bytes_is_cut_within_the_day(deployment: Deployment) -> None:
    acme = await deployment.organization()
    partition = deployment.partition(acme)
    now_ms = int((await deployment.redis.time())[0]) * 1000
    await _log(deployment, acme.partition, list(range(now_ms - 2_000, now_ms)))
    size = await partition.log_bytes(1)
    watermark = Position(1, f"{now_ms}-0")
    async with deployment.connected() as connection:
        await trim(connection, partition, watermark=watermark, keep_bytes=size // 2)
    assert size // 4 < await partition.log_bytes(1) < size * 3 // 4


async def test_streams_of_older_generations_go_when_their_day_is_over(
    deployment: Deployment,
) -> None:
    acme = await deployment.organization()
    partition = deployment.partition(acme)
    await _log(deployment, acme.partition, [5])
    insert = """
        INSERT INTO recovery_log (partition, generation, cause, owner, started_at, ended_at)
        VALUES ($1, 1, 'test', 'test', now() - interval '2 days', now())
    """
    async with deployment.connected() as connection:
        await connection.execute(
            insert.replace("$2::interval", "interval '1 hour'"), acme.partition
        )
        await trim(connection, partition, watermark=Position(2, "0-0"), keep_bytes=HUGE)
        assert await partition.log_length(1) == 1
        await connection.execute("UPDATE recovery_log SET ended_at = now() - interval '25 hours'")
        await trim(connection, partition, watermark=Position(2, "0-0"), keep_bytes=HUGE)
    assert await partition.log_length(1) == 0
