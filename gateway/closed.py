"""The partitions that admit nothing until Postgres has caught up, as the control process tells."""

import asyncio
import logging

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from ledger.backlog import BACKLOG_CHANNEL, read_over

log = logging.getLogger(__name__)

_RETRY_S = 0.5


class Closed:
    """What was told last; it holds until something else is told, once a second."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.partitions: frozenset[int] = frozenset()

    async def hear(self) -> None:
        """Listen until cancelled."""
        while True:
            try:
                async with self._redis.pubsub() as subscription:
                    await subscription.subscribe(BACKLOG_CHANNEL)
                    await self._take(subscription)
            except (RedisError, OSError) as error:
                log.warning("backlog is not heard", extra={"reason": str(error)})
            await asyncio.sleep(_RETRY_S)

    async def _take(self, subscription: PubSub) -> None:
        async for message in subscription.listen():
            if message["type"] == "message":
                self._note(read_over(message["data"]))

    def _note(self, partitions: frozenset[int]) -> None:
        if partitions != self.partitions:
            log.warning("partitions closed by backlog", extra={"partitions": [*partitions]})
        self.partitions = partitions
