"""The authenticator on real stores. Outages are in test_auth_outages.py."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from gateway.auth import Authenticator, AuthLimits, Clock
from gateway.credential import AuthError, AuthUnavailable, Reason, Shown
from gateway.key_cache import KeyChange
from gateway.management import api_keys, known_keys
from gateway.management.api_keys import KeyTerms
from gateway.principal import KnownKey, Period
from ledger.money import nanos
from tests.gateway.tenancy import (
    Lookups,
    Tenancy,
    authenticating,
    digest_of,
    new_key,
    tenancy,
    until,
)

NEVER_CALLED = "0 SQL statements"


@pytest.fixture
async def stage(postgres_url: str, redis_url: str) -> AsyncIterator[Tenancy]:
    async with tenancy(postgres_url, redis_url) as made:
        yield made


async def reason(authenticator: Authenticator, key: str) -> Reason | None:
    """Why the key does not work; None: it does."""
    try:
        await authenticator.principal(f"Bearer {key}")
    except AuthError as error:
        return error.reason
    return None


async def test_a_key_is_looked_up_once_and_then_known_without_waiting(stage: Tenancy) -> None:
    text, find = new_key(), Lookups(stage.pool)
    await stage.make_key(text)
    await stage.redis.delete(f"tg:key:{digest_of(text).hex()}")
    header = f"Bearer {text}"
    async with authenticating(stage, find) as authenticator:
        assert authenticator.cached(header) is None
        principal = await authenticator.lookup(header)
        assert authenticator.cached(header) is principal
        assert await authenticator.principal(header) is principal
    assert find.asked == [1]


async def test_a_new_key_is_found_in_redis_without_postgres(stage: Tenancy) -> None:
    text, find = new_key(), Lookups(stage.pool)
    await stage.make_key(text)
    async with authenticating(stage, find) as authenticator:
        assert await reason(authenticator, text) is None
    assert find.asked == []


async def test_the_principal_says_what_the_key_was_given(stage: Tenancy) -> None:
    text = new_key()
    expires_at = datetime(2100, 1, 1, tzinfo=UTC)
    key = await stage.make_key(
        text,
        KeyTerms(
            name="production",
            project="Search",
            budget=nanos("12.5"),
            period=Period.WEEKLY,
            rpm=60,
            tpm=100_000,
            concurrency=4,
            models=("gpt-4o", "small"),
            expires_at=expires_at,
        ),
    )
    async with authenticating(stage, Lookups(stage.pool)) as authenticator:
        who = await authenticator.principal(text)
    assert who.organization_id == who.wallet == str(stage.organization_id)
    assert (who.key_id, who.partition, who.member_id) == (str(key.id), 0, "")
    assert who.budgets == ((f"key:{key.id}", 12_500_000_000, Period.WEEKLY),)
    assert (who.rpm, who.tpm, who.concurrency) == (60, 100_000, 4)
    assert who.models == frozenset({"gpt-4o", "small"})
    assert who.expires_at_ms == expires_at.timestamp() * 1000
    assert not who.is_suspended
    assert not who.allows_unpriced


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer ' OR '1'='1",
        "Bearer '||pg_sleep(6)||'",
        "Bearer tg_live_\0" + "a" * 49,
        "Bearer " + "k" * 65_536,
        "Bearer ключ",
        "Bearer a\r\nb",
        "Bearer tg_live_" + "a" * 43 + "_000000",
    ],
)
async def test_what_is_no_key_is_refused_at_once_without_any_store(header: str | None) -> None:
    async def find(_: Sequence[bytes]) -> dict[bytes, KnownKey]:
        raise AssertionError(NEVER_CALLED)

    clocks = Clock(time.monotonic, time.monotonic)
    # No store is behind it and nothing runs: only what needs neither can answer.
    authenticator = Authenticator(digest=digest_of, cache=None, find=find, clock=clocks)  # type: ignore[arg-type] # any use of the cache fails the test
    with pytest.raises(AuthError):
        authenticator.cached(header)


async def test_unknown_revoked_and_expired_keys_are_refused_with_their_reason(
    stage: Tenancy,
) -> None:
    revoked, expired = new_key(), new_key()
    key = await stage.make_key(revoked)
    await api_keys.revoke(stage.pool, stage.cache, key.id)
    yesterday = datetime.now(UTC) - timedelta(days=1)  # noqa: TID251 - what expired depends on now
    await stage.make_key(expired, KeyTerms(name="old", expires_at=yesterday))
    async with authenticating(stage, Lookups(stage.pool)) as authenticator:
        for _ in range(2):  # read, then remembered
            assert await reason(authenticator, new_key()) is Reason.UNKNOWN
            assert await reason(authenticator, revoked) is Reason.REVOKED
            assert await reason(authenticator, expired) is Reason.EXPIRED


async def test_a_key_stops_working_when_its_time_comes_though_remembered(stage: Tenancy) -> None:
    text = new_key()
    now_s = datetime(2030, 1, 1, tzinfo=UTC).timestamp()
    ends = datetime(2030, 1, 1, 0, 0, 5, tzinfo=UTC)
    await stage.make_key(text, KeyTerms(name="short", expires_at=ends))
    offset_s = 0.0
    clocks = Clock(lambda: now_s + offset_s, lambda: 1000.0 + offset_s)
    async with authenticating(stage, Lookups(stage.pool), clocks=clocks) as authenticator:
        assert await reason(authenticator, text) is None
        offset_s = 4.9
        assert authenticator.cached(text) is not None
        offset_s = 5.0
        assert authenticator.cached(text) is None
        assert await reason(authenticator, text) is Reason.EXPIRED


async def test_five_hundred_callers_of_a_cold_key_are_one_lookup(stage: Tenancy) -> None:
    text, find = new_key(), Lookups(stage.pool)
    await stage.make_key(text)
    await stage.redis.delete(f"tg:key:{digest_of(text).hex()}")
    async with authenticating(stage, find) as authenticator:
        calls = [authenticator.principal(text) for _ in range(500)]
        principals = await asyncio.gather(*calls)
    assert len(principals) == 500
    assert len(set(map(id, principals))) == 1
    assert find.asked == [1]


async def test_a_caller_that_gives_up_does_not_take_the_lookup_from_the_others(
    stage: Tenancy,
) -> None:
    text = new_key()
    await stage.make_key(text)
    async with (
        authenticating(stage, Lookups(stage.pool)) as authenticator,
        asyncio.TaskGroup() as group,
    ):
        first = group.create_task(authenticator.lookup(text))
        second = group.create_task(authenticator.lookup(text))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).wallet == str(stage.organization_id)


async def test_a_flood_of_invented_keys_becomes_a_few_queries(stage: Tenancy) -> None:
    text, find = new_key(), Lookups(stage.pool)
    await stage.make_key(text)
    async with authenticating(stage, find) as authenticator:
        await authenticator.principal(text)
        started_s = time.monotonic()
        for _ in range(4):
            keys = [new_key() for _ in range(250)]
            reasons = await asyncio.gather(*(reason(authenticator, key) for key in keys))
            assert set(reasons) == {Reason.UNKNOWN}
            assert authenticator.cached(text) is not None
        elapsed_s = time.monotonic() - started_s
    limits = AuthLimits()
    assert len(find.asked) <= limits.queries_burst + elapsed_s * limits.queries_per_s + 1
    assert sum(find.asked) == 1000


async def test_more_unknown_keys_than_can_wait_are_asked_to_retry(stage: Tenancy) -> None:
    limits = AuthLimits(waiting_max=10)
    async with authenticating(stage, Lookups(stage.pool), limits=limits) as authenticator:
        calls = [authenticator.principal(new_key()) for _ in range(30)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(one) for one in outcomes].count(AuthUnavailable) == 20
    assert [type(one) for one in outcomes].count(AuthError) == 10


async def test_a_key_refused_a_hundred_times_works_as_soon_as_it_is_made(stage: Tenancy) -> None:
    text = new_key()
    async with authenticating(stage, Lookups(stage.pool)) as authenticator:
        for _ in range(100):
            assert await reason(authenticator, text) is Reason.UNKNOWN
        await stage.make_key(text)

        async def works() -> bool:
            return await reason(authenticator, text) is None

        assert await until(works) < 0.5


async def test_without_the_news_a_refusal_is_remembered_for_a_second(stage: Tenancy) -> None:
    offset_s, find = 0.0, Lookups(stage.pool)
    clocks = Clock(lambda: offset_s, lambda: 1000.0 + offset_s)
    async with authenticating(stage, find, clocks=clocks) as authenticator:
        key = new_key()
        for _ in range(5):
            await reason(authenticator, key)
        assert find.asked == [1]
        offset_s = 1.0
        await reason(authenticator, key)
        assert find.asked == [1, 1]


async def test_a_revoked_key_is_forgotten_within_a_second(stage: Tenancy) -> None:
    text, shown = new_key(), Shown()
    key = await stage.make_key(text)
    async with authenticating(stage, Lookups(stage.pool)) as authenticator:
        assert await reason(authenticator, text) is None
        assert authenticator.cached(text, shown) is authenticator.cached(text, shown) is not None
        assert await api_keys.revoke(stage.pool, stage.cache, key.id)

        async def is_refused() -> bool:
            return await reason(authenticator, text) is Reason.REVOKED

        assert await until(is_refused) < 0.5
        with pytest.raises(AuthError):  # though the connection that showed it remembers it
            authenticator.cached(text, shown)


async def test_a_revoked_key_ends_in_four_other_processes_within_a_second(
    stage: Tenancy, postgres_url: str, redis_url: str
) -> None:
    text = new_key()
    key = await stage.make_key(text)
    command = [sys.executable, "-m", "tests.gateway.key_prober", postgres_url, redis_url, text]
    probers = [
        await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        for _ in range(4)
    ]
    outputs = [prober.stdout for prober in probers if prober.stdout]
    async with asyncio.timeout(30):
        assert [await output.readline() for output in outputs] == [b"ready\n"] * 4

        async def all_listen() -> bool:
            return await stage.listeners() == 4

        await until(all_listen)
        assert await api_keys.revoke(stage.pool, stage.cache, key.id)
        revoked_s = time.time()  # noqa: TID251 - compared with other processes
        for output in outputs:
            last_s, _, why = (await output.readline()).split()
            assert why == b"revoked"
            assert float(last_s) - revoked_s < 1.0
        assert [await prober.wait() for prober in probers] == [0] * 4


async def test_news_of_an_organization_reach_all_its_keys_and_no_others(stage: Tenancy) -> None:
    keys = [new_key() for _ in range(3)]
    for key in keys:
        await stage.make_key(key)
    async with authenticating(stage, Lookups(stage.pool)) as authenticator:
        for key in keys:
            await authenticator.principal(key)
        await stage.cache.announce(KeyChange(organization_id="somebody else"))
        await stage.cache.announce(KeyChange(organization_id=str(stage.organization_id)))

        async def are_forgotten() -> bool:
            return all(authenticator.cached(key) is None for key in keys)

        await until(are_forgotten)


async def test_an_older_fill_does_not_bring_a_revoked_key_back(stage: Tenancy) -> None:
    text = new_key()
    digest = digest_of(text)
    key = await stage.make_key(text)
    before = await known_keys.find(stage.pool, [digest])
    await api_keys.revoke(stage.pool, stage.cache, key.id)
    assert await stage.cache.put(before) == {digest}
    entry = (await stage.cache.read([digest]))[digest]
    assert entry.principal is None


async def test_a_key_revoked_while_it_is_being_read_is_refused(stage: Tenancy) -> None:
    """Postgres answers with the row of before; meanwhile the key is revoked and that is told."""
    text = new_key()
    digest = digest_of(text)
    key = await stage.make_key(text)
    await stage.redis.delete(f"tg:key:{digest.hex()}")

    async def slow_find(digests: Sequence[bytes]) -> dict[bytes, KnownKey]:
        found = await known_keys.find(stage.pool, digests)
        await api_keys.revoke(stage.pool, stage.cache, key.id)
        return found

    async with authenticating(stage, slow_find) as authenticator:
        assert await reason(authenticator, text) is Reason.REVOKED


async def test_a_key_that_changes_during_every_lookup_is_answered_with_retry(
    stage: Tenancy,
) -> None:
    text = new_key()
    digest = digest_of(text)

    async def restless_find(_: Sequence[bytes]) -> dict[bytes, KnownKey]:
        authenticator._apply(KeyChange(digest=digest))
        return {}

    limits = AuthLimits(queries_per_s=1000)
    async with authenticating(stage, restless_find, limits=limits) as authenticator:
        with pytest.raises(AuthUnavailable):
            await authenticator.lookup(text)
        assert authenticator._flights == {}


async def test_an_entry_of_redis_is_checked_against_postgres_now_and_then(stage: Tenancy) -> None:
    """The revocation below reaches Postgres alone, as when Redis is away at that moment."""
    text = new_key()
    key = await stage.make_key(text)
    await stage.pool.execute("UPDATE api_key SET revoked_at = now() WHERE id = $1", key.id)
    offset_s = time.time()  # noqa: TID251 - entries were just written by this clock
    clocks = Clock(lambda: offset_s, lambda: offset_s)
    async with authenticating(stage, Lookups(stage.pool), clocks=clocks) as authenticator:
        assert await reason(authenticator, text) is None
        offset_s += 9.0
        assert await reason(authenticator, text) is None
        offset_s += 16.0  # 25 s in all: remembered for 10, believed for 15
        assert await reason(authenticator, text) is Reason.REVOKED


async def test_a_key_gone_from_postgres_leaves_a_tombstone_in_redis(stage: Tenancy) -> None:
    text = new_key()
    digest = digest_of(text)
    await stage.make_key(text)
    await stage.pool.execute("DELETE FROM api_key")
    later_s = time.time() + 60  # noqa: TID251 - as above
    clocks = Clock(lambda: later_s, lambda: later_s)
    async with authenticating(stage, Lookups(stage.pool), clocks=clocks) as authenticator:
        assert await reason(authenticator, text) is Reason.UNKNOWN
        assert (await stage.cache.read([digest]))[digest].principal is None


async def test_rows_that_make_no_sense_are_not_taken_for_unknown_keys(stage: Tenancy) -> None:
    async def broken_find(_: Sequence[bytes]) -> dict[bytes, KnownKey]:
        raise ValueError("a period nobody knows")

    async with authenticating(stage, broken_find) as authenticator:
        with pytest.raises(AuthUnavailable):
            await authenticator.principal(new_key())


async def test_the_process_remembers_a_bounded_number_of_keys(stage: Tenancy) -> None:
    limits = AuthLimits(entries_max=3, refused_max=3)
    async with authenticating(stage, Lookups(stage.pool), limits=limits) as authenticator:
        keys = [new_key() for _ in range(6)]
        for key in keys:
            await stage.make_key(key)
            await authenticator.principal(key)
        refused = [reason(authenticator, new_key()) for _ in range(6)]
        await asyncio.gather(*refused)
        assert len(authenticator._known) == len(authenticator._refused) == 3
        assert authenticator.cached(keys[-1]) is not None
        assert authenticator.cached(keys[0]) is None
