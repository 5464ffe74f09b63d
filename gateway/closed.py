"""The partitions that admit nothing until Postgres has caught up, as the control process tells."""

import logging

from redis.asyncio import Redis

from gateway.channel import hear
from ledger.backlog import BACKLOG_CHANNEL, read_over

log = logging.getLogger(__name__)


class Closed:
    """What was told last; it holds until something else is told, once a second."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.partitions: frozenset[int] = frozenset()

    async def hear(self) -> None:
        """Listen until cancelled."""
        await hear(self._redis, BACKLOG_CHANNEL, lambda said: self._note(read_over(said)))

    def _note(self, partitions: frozenset[int]) -> None:
        if partitions != self.partitions:
            log.warning(
                "partitions closed by backlog",
                extra={"partitions": [*partitions], "cause": "backlog"},
            )
        self.partitions = partitions
