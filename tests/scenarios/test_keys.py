"""Keys that end at once, keys that nobody has, and what a flood of them costs."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from statistics import quantiles
from uuid import UUID

import pytest

from gateway.key_cache import KeyChange
from gateway.keys import issue
from gateway.management import api_keys
from gateway.management.api_keys import KeyLabel, KeyTerms
from tests.scenarios.caller import CHAT, Caller, asks, caller, request
from tests.scenarios.deployment import Deployment, Key, Stores
from tests.scenarios.invariants import assert_books, assert_nothing_recorded
from tests.scenarios.page import page
from tests.scenarios.scale import LONG
from tests.vendor import Vendor

pytestmark = pytest.mark.scenario
LINES = 16  # connections, so that every worker has some
FLOOD_S = 60 if LONG else 4
FLOODERS = 50
QUERIES_PER_S = 10.0
HANDLED_S_MAX = 0.050
MODELS = "/v1/models"


@asynccontextmanager
async def lines_to(tollgate: Deployment, count: int) -> AsyncIterator[list[Caller]]:
    """So many connections."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(caller(tollgate)) for _ in range(count)]


def probe(secret: str) -> bytes:
    """The cheapest request that needs a key."""
    return request(MODELS, secret, b"", method="GET")


def invented() -> str:
    """A key in good form that nobody has."""
    return issue(os.urandom(32)).secret.reveal()


@dataclass
class Users:
    """Callers with one key on many connections, about 50 calls a second, until it is refused."""

    key: Key
    last_good_s: float = 0.0
    good: int = 0
    refused: set[int] = field(default_factory=set)

    async def run(self, lines: list[Caller]) -> None:
        """Call until every connection was refused."""
        async with asyncio.TaskGroup() as group:
            for number, line in enumerate(lines):
                group.create_task(self._user(number, line))

    async def _user(self, number: int, line: Caller) -> None:
        while True:
            answer = await line.post(CHAT, self.key.secret, asks(CHAT, "m", max_tokens=5))
            if answer.status == 401:
                self.refused.add(number)
                return
            assert answer.status == 200
            self.last_good_s = time.monotonic()
            self.good += 1
            await asyncio.sleep(LINES / 50)


async def test_a_revoked_key_works_nowhere_a_second_after_its_revocation(
    fleet: Deployment, vendor_apart: Vendor
) -> None:
    key = await fleet.new_key()
    users = Users(key)
    async with lines_to(fleet, LINES) as lines, asyncio.TaskGroup() as group:
        group.create_task(users.run(lines))
        async with asyncio.timeout(20):
            while users.good < 2 * LINES:
                await asyncio.sleep(0.01)
        said = await asyncio.to_thread(fleet.run, "key", "revoke", key.id)
        revoked_s = time.monotonic()
    late_s = max(0.0, users.last_good_s - revoked_s)
    assert "No gateway takes it any more" in said
    assert len(users.refused) == LINES
    assert late_s <= 1.0
    assert len(await vendor_apart.quiet()) == users.good
    await assert_books(fleet, key, records=users.good)
    print(
        f"E1: revoked under {users.good} calls on 4 workers: last success"
        f" {1000 * late_s:.0f} ms after the command's"
    )


class Flood:
    """Callers with a new invented key for each call, until they are stopped."""

    def __init__(self) -> None:
        self.answers: dict[int, int] = {}
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Let each end its call."""
        self._stop.set()

    async def run(self, line: Caller, secrets: Iterator[str]) -> None:
        """Ask and ask."""
        while not self._stop.is_set():
            await line.send(probe(next(secrets)))
            status = (await line.answer()).status
            self.answers[status] = self.answers.get(status, 0) + 1


async def times_s(line: Caller, key: Key, count: int) -> list[float]:
    """How long a good caller waits."""
    took = []
    for _ in range(count):
        began_s = time.monotonic()
        await line.send(probe(key.secret))
        assert (await line.answer()).status == 200
        took.append(time.monotonic() - began_s)
    return took


async def test_a_flood_of_invented_keys_reaches_postgres_as_a_trickle(fleet: Deployment) -> None:
    key, flood = await fleet.new_key(), Flood()
    secrets = iter(invented, "")
    before = await page(fleet)
    async with lines_to(fleet, FLOODERS + 1) as lines, asyncio.TaskGroup() as group:
        good, *others = lines
        calm = await times_s(good, key, 200)
        began_s = time.monotonic()
        for line in others:
            group.create_task(flood.run(line, secrets))
        beset = list[float]()
        while time.monotonic() - began_s < FLOOD_S:
            beset += await times_s(good, key, 20)
        flood.stop()
    took_s = time.monotonic() - began_s
    after = await page(fleet)
    queries = after.sum("key_queries_total") - before.sum("key_queries_total")
    assert set(flood.answers) <= {401, 503}
    # A full bucket of every worker's goes at once.
    assert queries <= QUERIES_PER_S * took_s + 3 * fleet.workers
    await assert_nothing_recorded(fleet, key)
    calm_ms, beset_ms = (1000 * quantiles(sample, n=100)[98] for sample in (calm, beset))
    print(
        f"E2: {flood.answers} answers to invented keys in {took_s:.1f} s cost {queries:.0f} queries"
        f" ({queries / took_s:.1f}/s); {len(beset)} good calls: 0 refused, p99 {beset_ms:.1f} ms,"
        f" {calm_ms:.1f} without the flood"
    )


async def test_a_key_made_after_it_was_refused_works_within_a_second(fleet: Deployment) -> None:
    secret, organization_id = invented(), await fleet.new_organization()
    async with lines_to(fleet, LINES) as lines, fleet.stores() as stores:
        for turn in range(100):
            line = lines[turn % LINES]
            await line.send(probe(secret))
            assert (await line.answer()).status == 401
        await made(stores, secret, organization_id)
        began_s = time.monotonic()
        async with asyncio.timeout(10):
            for line in lines:
                await line.send(probe(secret))
                while (await line.answer()).status != 200:
                    await line.send(probe(secret))
        took_s = time.monotonic() - began_s
    assert took_s <= 1.0
    print(
        f"E2: a key refused 100 times works on every worker {1000 * took_s:.0f} ms after it is made"
    )


async def made(stores: Stores, secret: str, organization_id: str) -> None:
    """A key whose text was known before it was made."""
    label = KeyLabel(stores.digest(secret), secret[-4:])
    await api_keys.create(
        stores.pool,
        stores.cache,
        organization_id=UUID(organization_id),
        label=label,
        terms=KeyTerms(name="test"),
    )


async def test_many_calls_with_a_cold_key_look_it_up_once(fleet: Deployment) -> None:
    key = await fleet.new_key()
    async with fleet.stores() as stores:
        digest = stores.digest(key.secret)
        await stores.redis.delete(f"tg:key:{digest.hex()}")
        await stores.cache.announce(KeyChange(digest=digest))
    before = await page(fleet)
    async with lines_to(fleet, 500) as lines:
        for line in lines:
            await line.send(probe(key.secret))
        assert {(await line.answer()).status for line in lines} == {200}
    after = await page(fleet)
    sources = {
        source: after.sum("key_lookups_total", source=source)
        - before.sum("key_lookups_total", source=source)
        for source in ("process", "redis", "postgres", "unknown")
    }
    queries = after.sum("key_queries_total") - before.sum("key_queries_total")
    # Workers share what one of them has read by way of Redis; each asks for itself once.
    assert sources["postgres"] == queries
    assert 1 <= queries <= sources["redis"] + sources["postgres"] <= fleet.workers
    assert sources["unknown"] == 0
    print(f"E2: 500 calls at once with a cold key: {queries:.0f} lookups in Postgres by 4 workers")


HOSTILE_KEYS = {
    "quotes": b"' OR '1'='1",
    "sleep": b"'||pg_sleep(6)||'",
    "comment": b"x'; DROP TABLE api_key; --",
    "utf-8": "tg_live_ключ".encode(),
    "latin-1": b"tg_live_\xff\xfe",
    "long": b"tg_live_" + b"A" * 20_000,
    "65,536 bytes": b"A" * 65_536,
    "nul": b"tg_live_\x00abc",
    "line breaks": b"tg_live_a\r\n b",
    "header": b"tg_live_a\r\nX-Org-Id: 1",
    "format": b"%s%n{0}{{7*7}}${jndi:ldap://x}",
    "bad checksum": b"tg_live_" + b"A" * 43 + b"_000000",
    "empty": b"",
    "spaces": b"   ",
}
NOT_HTTP = {"nul": 400, "line breaks": 400, "65,536 bytes": 431}


async def test_what_is_no_key_is_refused_before_any_store_is_asked(fleet: Deployment) -> None:
    before, scans_before = await page(fleet), await key_scans(fleet)
    slowest_s = 0.0
    for name, text in HOSTILE_KEYS.items():
        for header in (b"Authorization: Bearer ", b"Authorization: ", b"x-api-key: "):
            took = [await refused_in(fleet, header + text, name) for _ in range(3)]
            slowest_s = max(slowest_s, min(took))
    after, scans_after = await page(fleet), await key_scans(fleet)
    assert after.sum("key_queries_total") == before.sum("key_queries_total")
    assert after.sum("key_lookups_total") == before.sum("key_lookups_total")
    assert scans_after == scans_before
    assert slowest_s < HANDLED_S_MAX
    print(
        f"F1: {len(HOSTILE_KEYS)} hostile keys in 3 headers: 401, or 400 and 431 for the"
        f" {len(NOT_HTTP)} that are no HTTP; slowest {1000 * slowest_s:.1f} ms, 0 SQL statements"
    )


async def refused_in(tollgate: Deployment, line: bytes, name: str) -> float:
    """How long it takes to be refused."""
    head = b"GET /v1/models HTTP/1.1\r\nHost: tollgate\r\n" + line + b"\r\n\r\n"
    async with caller(tollgate) as one:
        began_s = time.monotonic()
        await one.send(head)
        answer = await one.answer()
    assert answer.status == NOT_HTTP.get(name, 401), (name, line[:60], answer)
    return time.monotonic() - began_s


async def key_scans(tollgate: Deployment) -> int:
    """How often anybody has looked into the table of keys, by Postgres' own count."""
    connection = await tollgate.postgres()
    try:
        scans = await connection.fetchval(
            "SELECT seq_scan + idx_scan FROM pg_stat_user_tables WHERE relname = 'api_key'"
        )
    finally:
        await connection.close()
    return int(scans)
