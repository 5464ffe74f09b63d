"""Partitions that are closed until Postgres has caught up."""

import asyncio
from pathlib import Path

import orjson

from gateway.closed import Closed
from ledger.backlog import BACKLOG_CHANNEL
from ledger.clients import open_redis
from tests.gateway.proxy.gatehouse import Gatehouse
from tests.vendor import Vendor


async def test_what_was_told_last_holds(redis_url: str) -> None:
    redis = open_redis(redis_url)
    closed = Closed(redis)
    async with redis, asyncio.TaskGroup() as group:
        hearing = group.create_task(closed.hear(), name="hear")
        for told, partitions in (("3 5", {3, 5}), ("", set[int]())):
            async with asyncio.timeout(5):
                while not await redis.publish(BACKLOG_CHANNEL, told):
                    await asyncio.sleep(0.01)
                while closed.partitions != partitions:
                    await asyncio.sleep(0.01)
        hearing.cancel()


async def test_a_closed_partition_admits_nothing_and_says_why(
    redis_url: str, vendor: Vendor, tmp_path: Path
) -> None:
    async with Gatehouse.opened(redis_url, vendor, tmp_path) as gate:
        gate.parts.closed.partitions = frozenset({0})

        status, headers, body = await gate.post({"model": "m", "messages": []})

        assert (status, orjson.loads(body)["error"]["code"]) == (503, "ledger_backlog")
        assert int(headers["retry-after"]) >= 1
        assert (await gate.settled())["held"] == 0
