"""Listening to a channel."""

import asyncio

from gateway.channel import hear
from ledger.clients import open_redis


async def test_messages_are_taken_and_a_lost_connection_is_made_again(redis_url: str) -> None:
    redis = open_redis(redis_url)
    taken: asyncio.Queue[bytes] = asyncio.Queue()
    async with redis, asyncio.TaskGroup() as group:
        hearing = group.create_task(hear(redis, "tg:test", taken.put_nowait), name="hear")
        for word in ("one", "two"):
            async with asyncio.timeout(10):
                while not await redis.publish("tg:test", word):
                    await asyncio.sleep(0.01)
                assert await taken.get() == word.encode()
            await redis.client_kill_filter(_type="pubsub", skipme=True)
        hearing.cancel()


async def test_it_ends_when_it_is_told_to_however_early(redis_url: str) -> None:
    redis = open_redis(redis_url)
    async with redis:
        for turns in range(30):
            async with asyncio.timeout(5), asyncio.TaskGroup() as group:
                hearing = group.create_task(hear(redis, "tg:test", lambda _: None), name="hear")
                for _ in range(turns):
                    await asyncio.sleep(0)
                hearing.cancel()
