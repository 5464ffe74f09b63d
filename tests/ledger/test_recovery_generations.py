"""Rules of the generations that recoveries use up, whatever they fail at."""

import asyncpg
import pytest
from redis.exceptions import ResponseError

from tests.ledger.deployment import Deployment, deployed
from tests.ledger.own_valkey import OwnValkey

_MISLAID = "ALTER TABLE usage_record RENAME TO mislaid"
_FOUND = "ALTER TABLE mislaid RENAME TO usage_record"
_KILL = """
    CREATE FUNCTION killed() RETURNS trigger LANGUAGE plpgsql AS
        $$BEGIN RAISE 'killed once Redis was frozen'; END$$;
    CREATE TRIGGER killed BEFORE UPDATE ON part FOR EACH ROW
        WHEN (NEW.watermark_generation > OLD.watermark_generation) EXECUTE FUNCTION killed();
"""


async def _breaks(deployment: Deployment, partition: int) -> None:
    await deployment.redis.hset(f"tg:{{p{partition:02d}}}:meta", "seq", "5")


async def _generations(deployment: Deployment, partition: int) -> list[int]:
    """Those of which there are notes."""
    query = "SELECT generation FROM recovery_log WHERE partition = $1 ORDER BY generation"
    return [row[0] for row in await deployment.pool.fetch(query, partition)]


async def test_a_server_without_its_replicas_costs_one_generation_however_long(
    postgres_url: str, server: OwnValkey
) -> None:
    async with deployed(postgres_url, server.url) as deployment:
        acme = await deployment.active()
        await deployment.call(acme, 10)
        await _breaks(deployment, acme.partition)
        await deployment.redis.config_set("min-replicas-to-write", 1)
        for _ in range(50):
            with pytest.raises(ResponseError, match="good replicas"):
                await deployment.recover(acme)
        assert await _generations(deployment, acme.partition) == [1, 2]
        await deployment.redis.config_set("min-replicas-to-write", 0)

        recovered = await deployment.recover(acme)

        assert recovered is not None
        assert recovered.generation == 2
        assert recovered.cause == "redis restarted or was changed", "as at the first attempt"
        assert await _generations(deployment, acme.partition) == [1, 2]
        assert await deployment.free(acme) == await deployment.balance(acme) == 1_000_000 - 10
        assert await deployment.differences() == []


async def test_a_postgres_that_takes_no_records_costs_one_generation_however_long(
    deployment: Deployment,
) -> None:
    acme = await deployment.active()
    await deployment.call(acme, 10)
    await _breaks(deployment, acme.partition)
    await deployment.pool.execute(_MISLAID)
    for _ in range(50):
        with pytest.raises(asyncpg.UndefinedTableError):
            await deployment.recover(acme)
    await deployment.pool.execute(_FOUND)

    recovered = await deployment.recover(acme)

    assert recovered is not None
    assert recovered.generation == 2
    assert await _generations(deployment, acme.partition) == [1, 2]
    assert await deployment.balance(acme) == 1_000_000 - 10
    assert await deployment.differences() == []


async def test_a_generation_that_was_sent_to_a_redis_is_never_used_again(
    deployment: Deployment,
) -> None:
    acme = await deployment.active()
    await _breaks(deployment, acme.partition)
    await deployment.pool.execute(_KILL)
    with pytest.raises(asyncpg.RaiseError):
        await deployment.recover(acme)
    assert await deployment.generation(acme) == 2
    await deployment.pool.execute("DROP FUNCTION killed CASCADE")
    # Another server in its place, which has not heard of it: gateways have.
    await deployment.redis.flushall()
    await deployment.redis.function_flush("SYNC")

    recovered = await deployment.recover(acme)

    assert recovered is not None
    assert recovered.generation == 3
