"""With a store away, a valid key is served or asked to retry, and an invalid one never passes."""

import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit

import asyncpg
import pytest

from gateway.auth import Authenticator, AuthLimits, Clock
from gateway.credential import AuthError, AuthUnavailable
from gateway.key_cache import KeyCache
from gateway.management import api_keys
from ledger.clients import open_redis
from tests.gateway.door import Door, door_to
from tests.gateway.tenancy import (
    Lookups,
    Tenancy,
    authenticating,
    clock,
    digest_of,
    new_key,
    running,
    tenancy,
    until,
)


class Town(NamedTuple):
    """An organization, the doors to its stores, and stores seen through the doors."""

    stage: Tenancy
    outside: Tenancy  # the same, reached through the doors
    postgres: Door
    redis: Door

    async def cut(self, what: str, how: str) -> None:
        """Make "postgres", "redis" or "both" dead or silent."""
        for name, door in (("postgres", self.postgres), ("redis", self.redis)):
            if what not in (name, "both"):
                continue
            if how == "dead":
                await door.shut()
            else:
                door.silence()

    async def mend(self) -> None:
        """Both stores answer again."""
        await self.postgres.open()
        await self.redis.open()


@pytest.fixture
async def town(postgres_url: str, redis_url: str) -> AsyncIterator[Town]:
    async with AsyncExitStack() as stack:
        stage = await stack.enter_async_context(tenancy(postgres_url, redis_url))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tg-")))
        postgres = urlsplit(postgres_url)
        socket = Path(parse_qs(postgres.query)["host"][0]) / ".s.PGSQL.5432"
        postgres_door = await stack.enter_async_context(door_to(socket, folder / socket.name))
        redis = urlsplit(redis_url)
        redis_door = await stack.enter_async_context(
            door_to(Path(unquote(redis.path)), folder / "redis.sock")
        )
        pool = await stack.enter_async_context(
            asyncpg.create_pool(
                postgres._replace(query=f"host={quote(str(folder), safe='')}").geturl(),
                min_size=0,
                timeout=1,
            )
        )
        stack.callback(pool.terminate)
        client = open_redis(redis._replace(path=str(folder / "redis.sock")).geturl())
        stack.push_async_callback(client.aclose)
        outside = Tenancy(pool, client)
        outside.organization_id = stage.organization_id
        outside.listeners = stage.listeners  # type: ignore[method-assign] # counted where no door is
        yield Town(stage, outside, postgres_door, redis_door)


async def outcome(authenticator: Authenticator, key: str) -> int:
    """The HTTP status a call with this key would get from authentication."""
    try:
        await authenticator.principal(f"Bearer {key}")
    except AuthError:
        return 401
    except AuthUnavailable:
        return 503
    return 200


class Keys(NamedTuple):
    """A key of each kind."""

    warm: str  # this process knows it
    cached: str  # Redis knows it
    cold: str  # Postgres alone knows it
    revoked: str  # Redis has its tombstone
    invented: str


async def make_keys(stage: Tenancy, authenticator: Authenticator) -> Keys:
    """One of each, as they would be after some time of service."""
    keys = Keys(*(new_key() for _ in Keys._fields))
    for text in (keys.warm, keys.cached, keys.cold):
        await stage.make_key(text)
    revoked = await stage.make_key(keys.revoked)
    await api_keys.revoke(stage.pool, stage.cache, revoked.id)
    await stage.redis.delete(f"tg:key:{digest_of(keys.cold).hex()}")
    assert await outcome(authenticator, keys.warm) == 200
    return keys


ROWS = [
    # away        warm cached cold revoked invented
    ("nothing", (200, 200, 200, 401, 401)),
    ("redis", (200, 200, 200, 401, 401)),
    ("postgres", (200, 200, 503, 401, 503)),
    ("both", (200, 503, 503, 503, 503)),
]


@pytest.mark.parametrize("how", ["dead", "silent"])
@pytest.mark.parametrize(("away", "expected"), ROWS)
async def test_each_kind_of_key_has_its_answer_in_each_outage(
    town: Town, away: str, expected: tuple[int, ...], how: str
) -> None:
    async with authenticating(town.outside, Lookups(town.outside.pool)) as authenticator:
        keys = await make_keys(town.stage, authenticator)
        await town.cut(away, how)
        started_s = time.monotonic()
        answers = [await outcome(authenticator, key) for key in keys]
        assert tuple(answers) == expected
        assert time.monotonic() - started_s < 5 * 1.0
        await town.mend()

        async def has_recovered() -> bool:
            return [await outcome(authenticator, key) for key in keys] == [200, 200, 200, 401, 401]

        assert await until(has_recovered) < 5.0


async def test_with_both_away_a_known_key_is_served_for_thirty_seconds(town: Town) -> None:
    offset_s = 0.0
    clocks = Clock(lambda: time.time() + offset_s, lambda: time.monotonic() + offset_s)  # noqa: TID251 - real clocks, moved by hand
    async with authenticating(
        town.outside, Lookups(town.outside.pool), clocks=clocks
    ) as authenticator:
        keys = await make_keys(town.stage, authenticator)
        await town.cut("both", "dead")
        for passed_s in (9.0, 20.0, 29.0):
            offset_s = passed_s
            assert await outcome(authenticator, keys.warm) == 200
        offset_s = 31.0
        assert await outcome(authenticator, keys.warm) == 503


async def test_an_old_entry_of_redis_is_served_while_postgres_is_away(town: Town) -> None:
    day_later = Clock(lambda: time.time() + 86_400, time.monotonic)  # noqa: TID251 - as above
    find = Lookups(town.outside.pool)
    async with authenticating(town.outside, find, clocks=day_later) as authenticator:
        keys = await make_keys(town.stage, authenticator)
        await town.cut("postgres", "dead")
        assert await outcome(authenticator, keys.cached) == 200
        assert await outcome(authenticator, keys.revoked) == 401


async def test_started_without_any_store_it_asks_to_retry_until_they_are_there(
    town: Town,
) -> None:
    text = new_key()
    await town.stage.make_key(text)
    await town.cut("both", "dead")
    cache = KeyCache(town.outside.redis, time.time)  # noqa: TID251 - as above
    authenticator = Authenticator(
        digest=digest_of,
        cache=cache,
        find=Lookups(town.outside.pool),
        clock=Clock(time.time, time.monotonic),  # noqa: TID251 - as above
    )
    async with running(authenticator):
        assert await outcome(authenticator, text) == 503
        assert await outcome(authenticator, new_key()) == 503
        await town.mend()

        async def tells_keys_apart() -> bool:
            return [await outcome(authenticator, key) for key in (text, new_key())] == [200, 401]

        assert await until(tells_keys_apart) < 5.0


async def test_what_was_missed_while_the_subscription_was_cut_is_not_served_after_it(
    town: Town,
) -> None:
    text = new_key()
    key = await town.stage.make_key(text)
    async with authenticating(town.outside, Lookups(town.outside.pool)) as authenticator:
        assert await outcome(authenticator, text) == 200
        await town.cut("redis", "dead")
        await api_keys.revoke(town.stage.pool, town.stage.cache, key.id)
        await town.mend()

        async def is_refused() -> bool:
            return await outcome(authenticator, text) == 401

        assert await until(is_refused) < 1.0


async def test_a_connection_that_has_gone_silent_is_given_up(town: Town) -> None:
    """No end of the connection is ever seen, as behind a router that forgot it."""
    text = new_key()
    key = await town.stage.make_key(text)
    async with authenticating(town.outside, Lookups(town.outside.pool)) as authenticator:
        assert await outcome(authenticator, text) == 200
        town.redis.forget()
        await api_keys.revoke(town.stage.pool, town.stage.cache, key.id)

        async def is_refused() -> bool:
            return await outcome(authenticator, text) == 401

        assert await until(is_refused) < 9.0


@pytest.mark.parametrize("again", ["when it is heard", "a second later"])
async def test_a_silent_redis_is_not_waited_for_again_and_again(town: Town, again: str) -> None:
    texts, find = [new_key() for _ in range(3)], Lookups(town.outside.pool)
    for text in texts:
        await town.stage.make_key(text)
    now_s, limits = 0.0, AuthLimits()
    clocks = Clock(clock().unix_s, lambda: now_s)
    async with authenticating(town.outside, find, clocks=clocks, limits=limits) as authenticator:
        await town.cut("redis", "silent")
        assert await outcome(authenticator, texts[0]) == 200
        assert find.asked == [1], "Postgres is asked in its stead"
        await town.mend()
        assert await outcome(authenticator, texts[1]) == 200
        assert find.asked == [1, 1], "and at once from then on"

        if again == "a second later":
            now_s = limits.refused_s
        else:
            await town.cut("redis", "dead")
            await town.mend()

            async def has_subscribed() -> bool:
                return authenticator.cached(f"Bearer {texts[0]}") is None

            await until(has_subscribed)
        assert await outcome(authenticator, texts[2]) == 200
        assert find.asked == [1, 1], "Redis has it"


async def test_while_a_query_hangs_no_other_is_sent(town: Town) -> None:
    limits = AuthLimits(refused_s=0.0, postgres_s=0.05)
    async with authenticating(
        town.outside, Lookups(town.outside.pool), limits=limits
    ) as authenticator:
        await town.cut("postgres", "silent")
        for _ in range(5):
            assert await outcome(authenticator, new_key()) == 503
        assert authenticator.queries == 1
        await town.mend()

        async def has_recovered() -> bool:
            return await outcome(authenticator, new_key()) == 401

        await until(has_recovered)
