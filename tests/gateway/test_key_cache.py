"""Keys in Redis: versions, tombstones, news."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest
from redis.asyncio import Redis

from gateway.key_cache import CacheAway, KeyCache, KeyChange
from gateway.principal import KnownKey, pack
from ledger.clients import open_redis
from ledger.functions import install
from tests.gateway.principals import PRINCIPAL

DIGEST, OTHER = bytes(32), bytes(31) + b"\1"
NOW_S = 1_800_000_000.0


def known(version: int, *, rpm: int = 1, is_revoked: bool = False) -> KnownKey:
    """A key of this version, told from others by its requests per minute."""
    principal = PRINCIPAL._replace(version=version, rpm=rpm)
    return KnownKey(principal, is_revoked)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = open_redis(redis_url)
    await install(client)
    yield client
    await client.aclose()


@pytest.fixture
def cache(redis: Redis) -> KeyCache:
    return KeyCache(redis, lambda: NOW_S)


async def test_what_was_put_is_read_with_the_time_it_was_read_from_postgres(
    cache: KeyCache,
) -> None:
    assert await cache.put({DIGEST: known(3)}) == set()
    found = await cache.read([OTHER, DIGEST])
    assert found == {DIGEST: (known(3).principal, 3, NOW_S * 1000)}


async def test_an_entry_of_a_release_that_knew_less_must_be_checked(
    cache: KeyCache, redis: Redis
) -> None:
    packed = pack(known(3).principal)
    for more, read_ms in (([], 0), ([99, "more"], NOW_S * 1000)):
        payload = msgspec.msgpack.encode([int(NOW_S * 1000), packed, *more])
        await redis.set(f"tg:key:{DIGEST.hex()}", b"3|" + payload)
        assert (await cache.read([DIGEST]))[DIGEST] == (known(3).principal, 3, read_ms)


async def test_only_an_older_version_is_refused(cache: KeyCache) -> None:
    await cache.put({DIGEST: known(3)})
    assert await cache.put({DIGEST: known(2, rpm=9), OTHER: known(1)}) == {DIGEST}
    assert await cache.put({DIGEST: known(3, rpm=5)}) == set()
    assert (await cache.read([DIGEST]))[DIGEST].principal == known(3, rpm=5).principal


async def test_nothing_of_the_same_or_an_older_version_replaces_a_tombstone(
    cache: KeyCache,
) -> None:
    await cache.put({DIGEST: known(3)})
    await cache.put({DIGEST: known(3, is_revoked=True)})
    assert await cache.put({DIGEST: known(3)}) == {DIGEST}
    entry = (await cache.read([DIGEST]))[DIGEST]
    assert (entry.principal, entry.version) == (None, 3)


async def test_an_entry_nobody_understands_is_no_entry(cache: KeyCache, redis: Redis) -> None:
    for stored in (b"3|not msgpack", b"", b"x|", b"3|\x92\x01\xa1?"):
        await redis.set(f"tg:key:{DIGEST.hex()}", stored)
        assert await cache.read([DIGEST]) == {}


async def test_a_key_is_kept_for_a_week(cache: KeyCache, redis: Redis) -> None:
    await cache.put({DIGEST: known(1), OTHER: known(1, is_revoked=True)})
    for digest in (DIGEST, OTHER):
        assert 6 * 86_400 < await redis.ttl(f"tg:key:{digest.hex()}") <= 7 * 86_400


async def test_without_the_functions_nothing_is_written(redis_url: str) -> None:
    client = open_redis(redis_url)
    cache = KeyCache(client, lambda: NOW_S)
    with pytest.raises(CacheAway):
        await cache.put({DIGEST: known(1)})
    await client.aclose()


async def test_changes_are_heard_after_one_that_says_anything_may_have_changed(
    cache: KeyCache, redis: Redis
) -> None:
    wanted = [
        KeyChange(digest=DIGEST),
        KeyChange(organization_id="0198f000-0000-7000-8000-000000000001"),
        KeyChange(),
    ]
    heard = cache.changes()
    async with asyncio.timeout(10):
        assert await anext(heard) == KeyChange()
        await cache.announce(*wanted)
        await redis.publish("tg:keys", b"?of a later release")
        assert [await anext(heard) for _ in range(4)] == [*wanted, KeyChange()]
    await heard.aclose()


async def test_a_cut_subscription_comes_back_and_says_that_anything_may_have_changed(
    cache: KeyCache, redis: Redis
) -> None:
    heard = cache.changes()
    async with asyncio.timeout(10):
        assert await anext(heard) == KeyChange()
        await redis.client_kill_filter(_type="pubsub")
        assert await anext(heard) == KeyChange()
        await cache.announce(KeyChange(digest=DIGEST))
        assert await anext(heard) == KeyChange(digest=DIGEST)
    await heard.aclose()
