"""Postgres away, silent, read-only or slow: calls go on up to a limit, and nothing is lost."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from gateway.embedded import urls
from ledger.postgres import AWAY
from tests.scenarios.deployment import Deployment
from tests.scenarios.outages import (
    Pulse,
    Server,
    assert_exact,
    checks,
    data_plane_is_ready,
    now_s,
    said,
    slowest_s,
    told,
    until,
)
from tests.scenarios.scale import LONG
from tests.vendor import Vendor

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(2_400 if LONG else 180)]
INPUT, OUTPUT = 100, 10
CHARGE = INPUT * 3_000 + OUTPUT * 15_000
WORKERS = 2
BUDGET = 7 + 2 * WORKERS + 1  # control, workers, and the supervisor's probe of a server of its own
PER_S = 170.0 if LONG else 60.0
OUTAGES_S = {"paused": 60.0, "away": 60.0, "read-only": 60.0, "locked": 60.0}
SHORT_S = {"paused": 6.0, "away": 2.0, "read-only": 1.5, "locked": 2.2}
RECOVERED_S_MAX = 5.0

_BACKENDS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


@asynccontextmanager
async def administered(tollgate: Deployment) -> AsyncIterator[asyncpg.Connection]:
    """A connection with every right."""
    connection = await asyncpg.connect(urls(tollgate.data).postgres_admin)
    try:
        yield connection
    finally:
        connection.terminate()


@asynccontextmanager
async def read_only(tollgate: Deployment) -> AsyncIterator[None]:
    """It answers, and writes nothing."""
    async with administered(tollgate) as admin:
        for value, waits in (("on", True), ("off", False)):
            await admin.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
            await admin.execute("SELECT pg_reload_conf()")
            if waits:
                yield


@asynccontextmanager
async def locked(tollgate: Deployment) -> AsyncIterator[None]:
    """Whoever writes a record waits."""
    async with administered(tollgate) as admin, admin.transaction():
        # An embedded server ends a transaction in which nothing happens.
        await admin.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        await admin.execute("LOCK TABLE usage_record IN ACCESS EXCLUSIVE MODE")
        yield


OUTAGES: dict[str, Callable[[Deployment], AbstractAsyncContextManager[None]]] = {
    "paused": lambda tollgate: Server(tollgate, "postgres").paused(),
    "away": lambda tollgate: Server(tollgate, "postgres").away(),
    "read-only": read_only,
    "locked": locked,
}


async def accepts(tollgate: Deployment) -> bool:
    """Whether Postgres lets anybody in: an embedded one that was killed starts for a while."""
    try:
        connection = await tollgate.postgres()
    except AWAY:
        return False
    connection.terminate()
    return True


class Watch:
    """Looks at Postgres' connections and at /readyz many times a second, whatever they answer."""

    def __init__(self, tollgate: Deployment) -> None:
        self._tollgate, self._over = tollgate, asyncio.Event()
        self.backends: list[int] = []
        self.probes = 0

    @asynccontextmanager
    async def kept(self) -> AsyncIterator["Watch"]:
        """Look meanwhile."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._count()), group.create_task(self._probe())]
            try:
                yield self
            finally:
                for task in tasks:
                    task.cancel()

    async def _count(self) -> None:
        while True:
            try:
                connection = await self._tollgate.postgres()
                try:
                    while True:
                        self.backends.append(await connection.fetchval(_BACKENDS))
                        await asyncio.sleep(0.02)
                finally:
                    connection.terminate()
            except AWAY:
                await asyncio.sleep(0.02)

    async def _probe(self) -> None:
        while True:
            await checks(self._tollgate, "control")
            assert await data_plane_is_ready(self._tollgate), "one outage of Postgres empties us"
            self.probes += 1
            await asyncio.sleep(0.1)


async def test_calls_go_on_and_connections_stay_within_their_budget(
    folder: Path, vendor_apart: Vendor
) -> None:
    loop, figures = asyncio.get_running_loop(), []
    started = Deployment.started(folder, vendor_port=vendor_apart.port, workers=WORKERS)
    async with started as tollgate:
        keys = [await tollgate.new_key(credit_usd="1000") for _ in range(2)]
        model = await vendor_apart.script("g3", input_tokens=INPUT, output_tokens=OUTPUT)
        pulse, strangers = Pulse(tollgate, keys, model), Pulse(tollgate, [], model)
        watch = Watch(tollgate)
        async with pulse.running(per_s=PER_S), watch.kept():
            await pulse.until_answered(loop.time(), within_s=10)
            async with strangers.running(per_s=20):
                for name, outage in OUTAGES.items():
                    figures.append(await _endured(tollgate, name, outage(tollgate)))
        assert {one.status for one in pulse.seen} == {200}, told(pulse.seen)
        assert {one.status for one in strangers.seen} <= {401, 503}, told(strangers.seen)
        books_s = await assert_exact(tollgate, answered=pulse.answered, charge=CHARGE)
    assert max(watch.backends) <= BUDGET
    print(
        f"G3: {'; '.join(figures)}; all {pulse.answered:,} calls answered, p99"
        f" {slowest_s(pulse.seen) * 1000:.0f} ms; {watch.probes} probes, always ready\n"
        f"C7: at most {max(watch.backends)} of {BUDGET} connections in {len(watch.backends):,}"
        f" looks, {Counter(watch.backends).most_common(1)[0][0]} as a rule; strangers' keys"
        f" {told(strangers.seen)}, p99 {slowest_s(strangers.seen) * 1000:.0f} ms\n"
        f"C1: {pulse.answered:,} calls through {', '.join(OUTAGES)}: {pulse.answered:,} records,"
        f" {pulse.answered * CHARGE:,} nano-USD, exact {books_s:.1f} s later"
    )


async def _endured(
    tollgate: Deployment, name: str, outage: AbstractAsyncContextManager[None]
) -> str:
    """One outage, seen by /readyz and told in the log; its figure."""
    async with outage:
        logged_s = now_s()
        await asyncio.sleep((OUTAGES_S if LONG else SHORT_S)[name])
        lines = said(tollgate.log_path, since_s=logged_s, until_s=now_s())
        seen = await checks(tollgate, "control")
        if name != "locked":  # which is not yet told from a flush that takes its time
            assert seen["flusher"] != "ok", f"{name}: {seen}"
        if name in ("paused", "away"):
            assert seen["postgres"] != "ok", f"{name}: {seen}"
    assert lines.most <= 1, f"{name}: {lines}"
    await until(lambda: accepts(tollgate), within_s=30)

    async def is_well() -> bool:
        now = await checks(tollgate, "control")
        return now["flusher"] == now["postgres"] == "ok"

    return f"{name} well again in {await until(is_well, within_s=RECOVERED_S_MAX):.1f} s"
