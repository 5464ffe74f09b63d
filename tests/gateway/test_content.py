"""Rules of what is kept of what was said: who can read it, and that nobody can once it is over."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest
import uuid_utils

from gateway.content import Key, Lost, Said, Vault, day_of, destroy, forget, pack, unpack
from gateway.sealing import sealer
from ledger.postgres import Connection
from ledger.retention import first_id
from providers.adapter import Secret

ACME, OTHER = uuid4(), uuid4()
_ORGANIZATION = "INSERT INTO organization (id, name, partition) VALUES ($1, 'Acme', 0)"
KEY = Key(uuid4(), b"k" * 32)
TODAY = datetime.now(UTC).date()  # noqa: TID251 - a test is its own root


def vault(pepper: str = "pepper") -> Vault:
    return Vault(sealer(Secret(pepper), secrets.token_bytes), secrets.token_bytes)


def said(text: str, organization: UUID = ACME, *, on: date = TODAY) -> Said:
    number = first_id(on).int + int.from_bytes(secrets.token_bytes(9), "big")
    return Said(
        organization, number.to_bytes(16, "big"), text.encode(), b"answer to " + text.encode()
    )


async def keep(pool: asyncpg.Pool, *these: Said, by: Vault | None = None) -> None:
    by = by or vault()
    async with pool.acquire() as connection, connection.transaction():
        days = {(one.organization, day_of(one.call_id)) for one in these}
        await by.write(connection, these, await by.keys(connection, days))


async def forgotten(connection: Connection) -> None:
    async with connection.transaction():
        await destroy(connection, ACME)


def later_id() -> bytes:
    return uuid_utils.uuid7().bytes


async def read(pool: asyncpg.Pool, one: Said, *, by: Vault | None = None) -> Said | None:
    return await (by or vault()).read(pool, one.organization, UUID(bytes=one.call_id))


@pytest.fixture
async def pool(postgres_url: str) -> AsyncIterator[asyncpg.Pool]:
    async with asyncpg.create_pool(postgres_url, min_size=0, max_size=8) as made:
        for number in (ACME, OTHER):
            await made.execute(_ORGANIZATION, number)
        yield made


class TestForm:
    def test_it_opens_as_it_was(self) -> None:
        one = said("hello \N{SNOWMAN}")._replace(is_cut=True)
        assert unpack(pack(one, KEY, b"n" * 12), KEY, ACME, one.call_id) == one

    def test_it_opens_for_its_own_call_alone(self) -> None:
        one, another = said("hello"), said("hello")
        with pytest.raises(Lost):
            unpack(pack(one, KEY, b"n" * 12), KEY, ACME, another.call_id)

    @pytest.mark.parametrize("at", [0, 1, 13, -1])
    def test_a_changed_byte_is_noticed(self, at: int) -> None:
        one = said("hello")
        packed = bytearray(pack(one, KEY, b"n" * 12))
        packed[at] ^= 1
        with pytest.raises(Lost):
            unpack(bytes(packed), KEY, ACME, one.call_id)

    def test_a_call_is_of_the_day_that_its_id_names(self) -> None:
        assert day_of(uuid_utils.uuid7().bytes) in {TODAY, TODAY + timedelta(days=1)}
        assert day_of(first_id(date(2026, 3, 1)).bytes) == date(2026, 3, 1)


async def test_what_was_kept_is_read_and_stands_nowhere_as_it_was(pool: asyncpg.Pool) -> None:
    one, another = said("canary " * 9), said("canary", OTHER)
    await keep(pool, one, another)
    await keep(pool, one)  # again, as after a commit whose answer was lost
    assert [await read(pool, it) for it in (one, another)] == [one, another]
    for table in ("call_content", "content_key"):
        rows = await pool.fetch(f"SELECT t::text AS text FROM {table} AS t")  # noqa: S608 - a table
        assert len(rows) == 2
        assert b"canary".hex() not in str(rows)
        assert "canary" not in str(rows)


async def test_an_organization_reads_its_own_only(pool: asyncpg.Pool) -> None:
    one = said("hello")
    await keep(pool, one)
    assert await read(pool, one._replace(organization=OTHER)) is None


async def test_however_many_write_at_once_a_day_has_one_key(pool: asyncpg.Pool) -> None:
    these = [said(f"call {number}") for number in range(20)]
    await asyncio.gather(*(keep(pool, one) for one in these))
    assert await pool.fetchval("SELECT count(*) FROM content_key") == 1
    assert [await read(pool, one) for one in these] == these


async def test_with_another_pepper_it_is_lost_and_said_so(pool: asyncpg.Pool) -> None:
    one = said("hello")
    await keep(pool, one)
    with pytest.raises(Lost):
        await read(pool, one, by=vault("another"))
    await keep(pool, said("more"), by=vault("another"))  # nobody could read it: it is not kept
    assert await pool.fetchval("SELECT count(*) FROM call_content") == 1


async def test_what_is_destroyed_nobody_reads_and_what_comes_later_is_kept(
    pool: asyncpg.Pool,
) -> None:
    one, another = said("hello"), said("hello", OTHER)
    await keep(pool, one, another)
    async with pool.acquire() as connection:
        await forgotten(connection)
    later = said("later")._replace(call_id=later_id())
    await keep(pool, later)
    assert [await read(pool, it) for it in (one, another, later)] == [None, another, later]
    async with pool.acquire() as connection:
        assert await forget(connection, {}) == 1
        assert await forget(connection, {}) == 0
    assert await pool.fetchval("SELECT count(*) FROM call_content") == 2
    assert [await read(pool, it) for it in (one, another, later)] == [None, another, later]


async def test_days_are_forgotten_by_who_does_not_keep_them(pool: asyncpg.Pool) -> None:
    ago = [TODAY - timedelta(days=days) for days in range(4)]
    ours = [said("ours", on=day) for day in ago]
    theirs = [said("theirs", OTHER, on=day) for day in ago]
    await keep(pool, *ours, *theirs)
    async with pool.acquire() as connection:
        assert await forget(connection, {ACME: ago[1], OTHER: ago[3]}) == 2
    assert [await read(pool, one) for one in ours] == [*ours[:2], None, None]
    assert [await read(pool, one) for one in theirs] == theirs
    assert await pool.fetchval("SELECT count(*) FROM content_key") == 6


async def test_who_forgets_waits_for_who_writes_and_the_other_way_round(pool: asyncpg.Pool) -> None:
    """Else what was said before would be kept behind its end."""
    by, one = vault(), said("hello")
    async with pool.acquire() as connection, pool.acquire() as other:
        async with connection.transaction():
            keys = await by.keys(connection, {(ACME, TODAY)})
            ending = asyncio.ensure_future(forgotten(other))
            done, _ = await asyncio.wait({ending}, timeout=0.2)
            assert not done, "it waits for who writes"
            await by.write(connection, [one], keys)
        await ending
    assert await read(pool, one) is None


async def test_what_waited_in_a_process_is_not_kept_once_it_is_forgotten(
    pool: asyncpg.Pool,
) -> None:
    before = said("before")
    async with pool.acquire() as connection:
        await forgotten(connection)
    after = before._replace(call_id=later_id())
    await keep(pool, before, after)
    assert [await read(pool, one) for one in (before, after)] == [None, after]
