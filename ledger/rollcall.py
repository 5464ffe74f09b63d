"""The roll call of a recovery: who is alive, and who has held again all it has.

A gateway says that it is alive by a heartbeat, in Redis' own time. It signs a partition's roll in a
generation once all that it has open is held there, and what it has yet to tell is held as sums:
then both count before anybody is admitted. Nobody who is silent is waited for longer than
`ROLL_CALL_S`: the dead delay and never stop a recovery.
"""

import asyncio
import logging
from collections.abc import Iterable

from redis.asyncio import Redis
from redis.exceptions import RedisError

from ledger.cancelled import raise_if_cancelled
from ledger.clients import HOME_KEY
from ledger.fcall import KEY_COUNT, Word, execute, key_names
from ledger.outage import REDIS, outage

GENERATION_CHANNEL = "tg:generation"  # "<partition> <generation>": a recovery calls the roll
GATEWAYS_KEY = HOME_KEY  # zset: gateway id -> unix ms of Redis of its last heartbeat
BEAT_S = 0.5
ALIVE_MS = 1_500  # a gateway whose heartbeat is older is not waited for
ROLL_CALL_S = 1.5
# After a loss of data the heartbeats are lost as well: every live gateway beats within this.
ROSTER_S = BEAT_S + 0.25

_AGAIN_S = 0.1  # after a heartbeat that failed: Redis is back at any moment
_LEAVE_S = 1.0
_FORGET_MS = 60_000  # heartbeats so old are of the dead, and dropped
_LOOK_EVERY_S = 0.01

_log = logging.getLogger(__name__)


def roll_key(partition: int, generation: int) -> str:
    """The set in which gateways sign that they have sent and held again what they have."""
    return f"tg:{{p{partition:02d}}}:roll:{generation}"


def read_call(message: bytes) -> tuple[int, int]:
    """Partition and generation of a message on `GENERATION_CHANNEL`."""
    partition, generation = message.split()
    return int(partition), int(generation)


async def call_roll(redis: Redis, partition: int, generation: int, *, known_s: float) -> None:
    """Let live gateways hold again what is open, and what ended calls owe.

    Each signs when it has; the ends themselves follow once calls are admitted. What is of one that
    did not sign is held afterwards. `known_s`, of the loop's clock: since when heartbeats tell of
    everybody who is alive, for they may have gone with the data.
    """
    await execute(redis, "PUBLISH", GENERATION_CHANNEL, f"{partition} {generation}")
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    while loop.time() < began_s + ROLL_CALL_S:
        if loop.time() >= known_s and not await _missing(redis, partition, generation):
            return
        await asyncio.sleep(_LOOK_EVERY_S)
    missing = await _missing(redis, partition, generation)
    _log.warning(
        "gateways missing at roll call",
        extra={"partition": partition, "gateways": len(missing), "cause": "roll call"},
    )


async def _missing(redis: Redis, partition: int, generation: int) -> set[bytes]:
    """The live gateways that have not signed."""
    since_ms = await _now_ms(redis) - ALIVE_MS
    alive = await execute(redis, "ZRANGEBYSCORE", GATEWAYS_KEY, since_ms, "+inf")
    if not alive:
        return set()
    return set(alive) - set(await execute(redis, "SMEMBERS", roll_key(partition, generation)))


async def _now_ms(redis: Redis) -> int:
    seconds, microseconds = await execute(redis, "TIME")
    return int(seconds) * 1000 + int(microseconds) // 1000


class Presence:
    """Says that this gateway is alive. `gateway` is unique to its process.

    Nothing may be admitted before `known` is set: a recovery waits only for those it knows of.
    """

    def __init__(self, redis: Redis, gateway: str) -> None:
        self._redis, self._gateway = redis, gateway
        self.known = asyncio.Event()

    async def run(self) -> None:
        """Beat until cancelled."""
        while True:
            try:
                await self._beat()
            except (RedisError, OSError) as error:
                raise_if_cancelled()
                _log.warning("heartbeat not told", extra=outage(error, of=REDIS))
                await asyncio.sleep(_AGAIN_S)
            else:
                self.known.set()
                await asyncio.sleep(BEAT_S)

    async def leave(self) -> None:
        """No recovery need wait for us any more. Redis may be away: then it notices by itself."""
        try:
            async with asyncio.timeout(_LEAVE_S):
                await execute(self._redis, "ZREM", GATEWAYS_KEY, self._gateway)
        except (RedisError, OSError) as error:
            _log.info("leaving not told", extra=outage(error, of=REDIS))

    async def _beat(self) -> None:
        now_ms = await _now_ms(self._redis)
        await execute(self._redis, "ZADD", GATEWAYS_KEY, now_ms, self._gateway)
        oldest_ms = now_ms - _FORGET_MS
        await execute(self._redis, "ZREMRANGEBYSCORE", GATEWAYS_KEY, "-inf", f"({oldest_ms}")


class Signature:
    """Of one partition's lane: what must be held in a generation before its roll is signed.

    `gateway` "" never signs.
    """

    def __init__(self, partition: int, gateway: str) -> None:
        self._partition, self._gateway = partition, gateway
        self._generation = 0  # of what is owed
        self._is_told = self._is_given = False
        self._owed: set[bytes] = set()

    def begin(self, generation: int, calls: Iterable[bytes]) -> None:
        """The partition is in a new generation, in which these calls are to be held again."""
        self._generation, self._owed = generation, set(calls)
        self._is_told = self._is_given = False

    def told(self, sums: Iterable[bytes]) -> None:
        """The journals have been read, and these sums keep what the missing ends charge."""
        self._owed.update(sums)
        self._is_told = True

    def paid(self, holds: Iterable[bytes]) -> None:
        """These calls and sums are held, or need not be."""
        self._owed.difference_update(holds)

    def give(self) -> None:
        """It is given, or cannot be given in this generation: the roll call then does without."""
        self._is_given = True

    def words(self) -> tuple[Word, ...]:
        """The call that signs; empty while something is owed, and once it is done."""
        if not self._is_told or self._owed or self._is_given or not self._gateway:
            return ()
        generation = self._generation
        keys = (*key_names(self._partition, generation), roll_key(self._partition, generation))
        return ("FCALL", "tg_sign", KEY_COUNT + 1, *keys, generation, self._gateway)
