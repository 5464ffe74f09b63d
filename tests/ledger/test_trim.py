"""Rules of shortening the streams."""

from ledger.commit import Position
from ledger.trim import KEEP_MS, trim
from tests.ledger.deployment import Deployment

HUGE = 1 << 40
_RECOVERIES = """
    INSERT INTO recovery_log (partition, generation, cause, owner, started_at, ended_at)
    SELECT $1, generation, 'test', 'test', now() - ago::interval, now() - ago::interval
    FROM (VALUES (1, $2), (2, $3)) AS recovery (generation, ago)
"""


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


async def test_a_stream_is_kept_for_a_day_after_the_next_recovery_began(
    deployment: Deployment,
) -> None:
    acme = await deployment.organization()
    partition = deployment.partition(acme)
    await _log(deployment, acme.partition, [5])
    async with deployment.connected() as connection:

        async def trimmed(began: str, over: str, *, keep_bytes: int = HUGE) -> int:
            await connection.execute("DELETE FROM recovery_log")
            await connection.execute(_RECOVERIES, acme.partition, began, over)
            watermark = Position(2, "0-0")
            await trim(connection, partition, watermark=watermark, keep_bytes=keep_bytes)
            return await partition.log_length(1)

        for began in ("1 hour", "2 days", "5 days", "1 year"):
            assert await trimmed(began, "1 minute") == 1, f"it began {began} ago"
        assert await trimmed("1 year", "23 hours") == 1
        assert await trimmed("1 year", "25 hours") == 0
        await _log(deployment, acme.partition, [5])
        assert await trimmed("1 year", "1 minute", keep_bytes=0) == 0
