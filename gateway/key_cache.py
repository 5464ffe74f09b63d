"""API keys in Redis, where every gateway finds them first, and the news that one has changed.

An entry is versioned: a fill with an older version than the one there changes nothing, so nothing
brings a revoked key back, whose entry is a tombstone. All this is a copy; Postgres is the truth.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from gateway.principal import KnownKey, Principal, pack, unpack
from ledger.cancelled import obeyed, raise_if_cancelled
from ledger.outage import REDIS, outage

log = logging.getLogger(__name__)

CHANNEL = "tg:keys"
KEEP_MS = 7 * 24 * 3600 * 1000  # how long a Postgres outage an idle key survives
_FOR_EVER_MS = 2**53  # a tombstone need not be checked against Postgres: keys do not come back
_RETRY_S = 0.2  # after a lost subscription; changes missed meanwhile are covered by the flush
_PING_S = 2.0  # a silent connection is asked after this, and given up after twice this
_DIGEST, _ORGANIZATION = b"d", b"o"  # how a message on the channel begins
# Raised when principals learn something that gateways must obey: an entry of a release that did
# not know it is checked against Postgres, and served as it is only while that does not answer.
_FORM = 1


class CacheAway(Exception):
    """Redis did not answer."""


class CachedKey(NamedTuple):
    """What Redis holds for a digest."""

    principal: Principal | None  # None: revoked
    version: int
    read_ms: int  # when it was last read from Postgres, unix ms on the reader's clock


class KeyChange(NamedTuple):
    """What is no longer true; both `None`: anything may have changed unheard."""

    digest: bytes | None = None
    organization_id: str | None = None


class _Payload(msgspec.Struct, array_like=True, gc=False):
    read_ms: int
    principal: bytes
    form: int = 0


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Payload).decode


class KeyCache:
    """The keys in Redis. `clock` gives unix seconds."""

    def __init__(self, redis: Redis, clock: Callable[[], float]) -> None:
        self._redis, self._clock = redis, clock

    async def read(self, digests: Sequence[bytes]) -> dict[bytes, CachedKey]:
        """The entries of those digests that have one; `CacheAway` if Redis does not answer."""
        try:
            async with self._redis.pipeline(transaction=False) as pipeline:
                for digest in digests:
                    _ = pipeline.get(_name(digest))
                found = await obeyed(pipeline.execute())
        except (RedisError, OSError) as error:
            raise CacheAway(str(error)) from error
        entries = zip(digests, map(_cached, found), strict=True)
        return {digest: entry for digest, entry in entries if entry is not None}

    async def put(self, keys: Mapping[bytes, KnownKey]) -> set[bytes]:
        """Write what Postgres just said; answers the digests of which Redis has a newer version."""
        read_ms = int(self._clock() * 1000)
        try:
            async with self._redis.pipeline(transaction=False) as pipeline:
                for digest, (principal, is_revoked) in keys.items():
                    name, version = _name(digest), str(principal.version)
                    if is_revoked:
                        _ = pipeline.fcall("tg_key_drop", 1, name, version, str(KEEP_MS))
                        continue
                    payload = _encode(_Payload(read_ms, pack(principal), _FORM))
                    # The stubs know only text, the protocol knows bytes.
                    arguments = (name, version, payload, str(KEEP_MS))
                    _ = pipeline.execute_command("FCALL", "tg_key_put", 1, *arguments)
                stored = await obeyed(pipeline.execute())
        except (RedisError, OSError) as error:
            raise CacheAway(str(error)) from error
        return {digest for digest, done in zip(keys, stored, strict=True) if not done}

    async def announce(self, *changes: KeyChange) -> None:
        """Tell every process what has changed; after `put`, so that it then reads what is new."""
        try:
            async with self._redis.pipeline(transaction=False) as pipeline:
                for change in changes:
                    _ = pipeline.publish(CHANNEL, _message(change))
                await obeyed(pipeline.execute())
        except (RedisError, OSError) as error:
            raise CacheAway(str(error)) from error

    async def changes(self) -> AsyncGenerator[KeyChange, None]:
        """What changes, for ever. Each new subscription begins with a change of anything."""
        while True:
            try:
                async with self._redis.pubsub() as subscription:
                    await obeyed(subscription.subscribe(CHANNEL))
                    async for change in _heard(subscription):
                        yield change
            except (RedisError, OSError) as error:
                raise_if_cancelled()
                log.warning("key changes are not heard", extra=outage(error, of=REDIS))
            await asyncio.sleep(_RETRY_S)


async def _heard(subscription: PubSub) -> AsyncIterator[KeyChange]:
    """The changes one subscription brings; ends when its connection is silent for too long."""
    silences = 0
    while silences <= 1:
        message = await obeyed(subscription.get_message(timeout=_PING_S))
        if message is None:
            silences += 1
            await obeyed(subscription.ping())
            continue
        silences = 0
        if message["type"] == "subscribe":
            # The client subscribes again by itself after a lost connection; only this tells.
            yield KeyChange()
        elif message["type"] == "message":
            yield _change(message["data"])


def _name(digest: bytes) -> str:
    return f"tg:key:{digest.hex()}"


def _cached(stored: bytes | None) -> CachedKey | None:
    """An entry, `<version>|<payload>`; without a payload it is a tombstone."""
    if stored is None:
        return None
    version, _, payload = stored.partition(b"|")
    try:
        if not payload:
            return CachedKey(None, int(version), _FOR_EVER_MS)
        entry = _decode(payload)
        read_ms = entry.read_ms if entry.form >= _FORM else 0
        return CachedKey(unpack(entry.principal), int(version), read_ms)
    except (msgspec.MsgspecError, ValueError):
        # Written by a release we do not know: Postgres can tell.
        return None


def _message(change: KeyChange) -> bytes:
    if change.digest is not None:
        return _DIGEST + change.digest
    if change.organization_id is not None:
        return _ORGANIZATION + change.organization_id.encode()
    return b""


def _change(message: bytes) -> KeyChange:
    kind, what = message[:1], message[1:]
    if kind == _DIGEST:
        return KeyChange(digest=what)
    if kind == _ORGANIZATION:
        return KeyChange(organization_id=what.decode(errors="replace"))
    return KeyChange()
