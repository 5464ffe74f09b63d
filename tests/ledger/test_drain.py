"""Rules of one step from a stream into Postgres."""

from datetime import timedelta

import pytest

from ledger.drain import BATCH_MAX, Drain, NewerRelease
from ledger.fcall import key_names
from tests.ledger.deployment import Deployment


async def test_a_step_takes_what_follows_the_watermark_up_to_its_limit(
    deployment: Deployment,
) -> None:
    acme = await deployment.active()
    for _ in range(5):
        await deployment.call(acme, 10)
    partition = deployment.partition(acme)
    async with deployment.connected() as connection:
        drain = Drain(connection)
        first = await drain.step(partition, await deployment.watermark(acme), limit=3)
        assert (first.read, len(first.committed)) == (3, 1)
        assert first.position == await deployment.watermark(acme)
        second = await drain.step(partition, await deployment.watermark(acme), limit=3)
        assert second.read == 2
        third = await drain.step(partition, await deployment.watermark(acme), limit=3)
        assert (third.read, third.position, third.oldest_ms) == (0, None, None)
    assert await deployment.balance(acme) == 1_000_000 - 50


async def test_what_a_newer_release_logs_is_left_to_its_flusher(deployment: Deployment) -> None:
    acme = await deployment.active()
    partition, log = deployment.partition(acme), key_names(acme.partition, 1)[-1]
    await deployment.call(acme, 5)
    await deployment.redis.xadd(log, {"k": "new", "w": acme.id, "c": "7"})
    await deployment.call(acme, 6)
    async with deployment.connected() as connection:
        drain = Drain(connection)
        await deployment.newer(by=1)
        step = await drain.step(partition, await deployment.watermark(acme))
        assert (step.read, [done.entries for done in step.committed]) == (BATCH_MAX, [1])
        with pytest.raises(NewerRelease):
            await drain.step(partition, await deployment.watermark(acme))
        assert await deployment.count("dead_letter") == 0
        assert await deployment.balance(acme) == 1_000_000 - 5

        await deployment.newer(by=0)
        await drain.step(partition, await deployment.watermark(acme))

    assert await deployment.count("dead_letter") == 1, "no release knows it"
    assert await deployment.balance(acme) == 1_000_000 - 11


async def test_what_postgres_has_is_forgotten_by_redis(deployment: Deployment) -> None:
    acme = await deployment.active()
    call_id = await deployment.call(acme, 10)
    key = f"tg:{{p{acme.partition:02d}}}:holds"
    assert await deployment.redis.hexists(
        key, call_id.decode("latin-1")
    ) or await deployment.redis.hlen(key)
    await deployment.flush(acme)
    assert await deployment.redis.hlen(key) == 0


async def test_a_day_without_a_partition_gets_one_when_a_call_needs_it(
    deployment: Deployment,
) -> None:
    acme = await deployment.active()
    today = await deployment.pool.fetchval("SELECT to_char(now(), 'YYYYMMDD')")
    for parent in ("usage_record", "call_log_standard"):
        await deployment.pool.execute(f"DROP TABLE {parent}_{today}")
    await deployment.call(acme, 10)
    await deployment.flush(acme)
    assert await deployment.count(f"usage_record_{today}") == 1
    assert await deployment.count("usage_record_default") == 0


async def test_a_call_from_the_far_future_is_kept_and_found_by_the_alarm(
    deployment: Deployment,
) -> None:
    acme = await deployment.active()
    now = await deployment.pool.fetchval("SELECT now()")
    future_ms = int((now + timedelta(days=90)).timestamp() * 1000)
    call_id = future_ms.to_bytes(6, "big") + bytes(10)
    assert await deployment.late(acme, call_id, 10) == "late"
    await deployment.flush(acme)
    assert await deployment.count("usage_record_default") == 1
    assert await deployment.balance(acme) == 1_000_000 - 10
    assert [d for d in await deployment.differences() if "default partition" not in d] == []
