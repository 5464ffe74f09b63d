"""A worker's part in keeping what is said: bounded, patient, and never in a call's way."""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import asyncpg
import pytest
import uuid_utils

from gateway.content import Vault
from gateway.content_log import WAITING_BYTES_MAX, ContentLog
from gateway.copied import SIDE_BYTES_MAX, Copy
from gateway.metrics import Metrics
from gateway.sealing import sealer
from ledger.postgres import pooled
from providers.adapter import Secret
from tests.ledger.deployment import until

ACME = uuid4()
SEALER = sealer(Secret("pepper"), secrets.token_bytes)
VAULT = Vault(SEALER, secrets.token_bytes)


class Stage:
    """A worker's log of contents, and what Postgres has of it."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self.pool, self.metrics = pool, Metrics()
        self.log = ContentLog(pool, VAULT, self.metrics)

    def keep(self, request: bytes, answer: bytes = b"answer") -> UUID:
        call_id, copy = uuid_utils.uuid7().bytes, Copy()
        copy.add(answer)
        self.log.keep(str(ACME), call_id, request, copy)
        return UUID(bytes=call_id)

    async def count(self) -> int:
        return int(await self.pool.fetchval("SELECT count(*) FROM call_content"))


@pytest.fixture
async def stage(postgres_url: str) -> AsyncIterator[Stage]:
    async with pooled(postgres_url, name="test", size=2) as pool:
        await pool.execute(
            "INSERT INTO organization (id, name, partition) VALUES ($1, 'Acme', 0)", ACME
        )
        yield Stage(pool)


async def test_what_is_said_is_kept_beside_the_calls(stage: Stage) -> None:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(stage.log.run())
        calls = [stage.keep(b"request %d" % number) for number in range(450)]

        async def has_all() -> bool:
            return await stage.count() == len(calls)

        await until(has_all)
        task.cancel()
    said = await VAULT.read(stage.pool, ACME, calls[7])
    assert said is not None
    assert (said.request, said.answer, said.is_cut) == (b"request 7", b"answer", False)


async def test_a_long_side_is_cut(stage: Stage) -> None:
    call = stage.keep(b"x" * (SIDE_BYTES_MAX + 1))
    assert await stage.log.drain(5.0) == 0
    said = await VAULT.read(stage.pool, ACME, call)
    assert said is not None
    assert (len(said.request), said.is_cut) == (SIDE_BYTES_MAX, True)


async def test_no_more_waits_than_there_is_room_for(stage: Stage) -> None:
    most = WAITING_BYTES_MAX // SIDE_BYTES_MAX
    for _ in range(most + 5):
        stage.keep(b"x" * (SIDE_BYTES_MAX - 6))
    assert await stage.log.drain(30.0) == 0
    assert await stage.count() == most
    stage.keep(b"there is room again")
    assert await stage.log.drain(5.0) == 0
    assert await stage.count() == most + 1


async def until_told(log: ContentLog, caplog: pytest.LogCaptureFixture, words: str) -> None:
    """It runs until it has said so."""

    async def is_told() -> bool:
        return words in caplog.text

    with caplog.at_level(logging.WARNING):
        async with asyncio.TaskGroup() as group:
            task = group.create_task(log.run())
            await until(is_told)
            task.cancel()


async def test_while_postgres_is_away_it_waits(caplog: pytest.LogCaptureFixture) -> None:
    nowhere = asyncpg.create_pool("postgresql://nobody@127.0.0.1:1/none", min_size=0, max_size=1)
    async with nowhere as pool:
        log = ContentLog(pool, VAULT, Metrics())
        log.keep(str(ACME), uuid_utils.uuid7().bytes, b"request", Copy())
        await until_told(log, caplog, "contents of calls wait for postgres")
        assert await log.drain(0.5) == 1, "nothing is dropped while there is room"


async def test_what_cannot_be_sealed_is_dropped_and_the_process_lives(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    def no_chance(count: int) -> bytes:
        raise ZeroDivisionError(count)

    log = ContentLog(stage.pool, Vault(SEALER, no_chance), Metrics())
    log.keep(str(ACME), uuid_utils.uuid7().bytes, b"request", Copy())
    await until_told(log, caplog, "contents of calls cannot be sealed")
    assert await log.drain(1.0) == 0, "nothing waits for ever"


async def test_what_another_pepper_would_have_to_open_is_dropped_and_said_so(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.keep(b"mine")
    assert await stage.log.drain(5.0) == 0
    other = Vault(sealer(Secret("another"), secrets.token_bytes), secrets.token_bytes)
    log = ContentLog(stage.pool, other, stage.metrics)
    log.keep(str(ACME), uuid_utils.uuid7().bytes, b"request", Copy())
    await until_told(log, caplog, "another pepper sealed a key")
    assert await log.drain(1.0) == 0
    assert await stage.count() == 1


async def test_however_many_write_at_once_each_is_written_and_none_is_lost(stage: Stage) -> None:
    """As when a process ends: its job is at it, and what waits is drained."""
    for number in range(450):
        stage.keep(b"request %d" % number)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(stage.log.run())
        left = await asyncio.gather(*(stage.log.drain(20.0) for _ in range(3)))
        task.cancel()
    assert (left, await stage.count()) == ([0, 0, 0], 450)
