"""Listens to one channel of Redis for as long as the process runs, whatever becomes of Redis."""

import asyncio
import logging
from collections.abc import Callable

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from ledger.cancelled import obeyed, raise_if_cancelled
from ledger.fcall import heard
from ledger.outage import REDIS, outage

log = logging.getLogger(__name__)

RETRY_S = 0.5


async def hear(redis: Redis, channel: str, take: Callable[[bytes], None]) -> None:
    """Give every message on `channel` to `take`, until cancelled. What is said meanwhile is lost
    while Redis is away, so a channel is for news that are repeated or can be asked for."""
    while True:
        try:
            async with redis.pubsub() as subscription:
                await obeyed(subscription.subscribe(channel))
                await _listen(subscription, take)
        except (RedisError, OSError) as error:
            raise_if_cancelled()
            log.warning("channel not heard", extra={"channel": channel, **outage(error, of=REDIS)})
        await asyncio.sleep(RETRY_S)


async def _listen(subscription: PubSub, take: Callable[[bytes], None]) -> None:
    async for message in heard(subscription):
        if message["type"] == "message":
            take(message["data"])
