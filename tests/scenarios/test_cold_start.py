"""A gateway that starts while its servers are away: it waits for them, and says so to who asks."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from gateway.embedded import Embedded, Urls
from gateway.keys import issue
from gateway.sheets import sheet_path
from tests.scenarios.caller import CHAT, Answer, Caller, asks, post
from tests.scenarios.deployment import Deployment, configured, shared
from tests.scenarios.fleet import HOST, status
from tests.scenarios.invariants import assert_books
from tests.scenarios.outages import checks, data_plane_is_ready, silenced, until
from tests.vendor import Vendor

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(180)]
WORKERS = 2
LISTENS_S_MAX = 20.0  # a busy machine starts three processes meanwhile
READY_S_MAX = 5.0
STOPS_S_MAX = 5.0

Back = Callable[[], AbstractAsyncContextManager[None]]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short one: where a socket's path would be too long, it is another at each start."""
    with tempfile.TemporaryDirectory(prefix="tg-") as made:
        yield Path(made)


@asynccontextmanager
async def refusing(folder: Path) -> AsyncIterator[tuple[Urls, Back]]:
    """Servers where nothing listens, until they are back."""
    async with Embedded(folder) as servers:
        urls = servers.urls

    @asynccontextmanager
    async def back() -> AsyncIterator[None]:
        async with Embedded(folder):
            yield

    yield urls, back


@asynccontextmanager
async def silent(folder: Path) -> AsyncIterator[tuple[Urls, Back]]:
    """Servers that let anybody in and answer nobody, until they are back."""
    async with Embedded(folder) as servers:
        with ExitStack() as stack:
            stack.enter_context(silenced(*servers.pids.values()))

            @asynccontextmanager
            async def back() -> AsyncIterator[None]:
                stack.close()
                yield

            yield servers.urls, back


@asynccontextmanager
async def without_a_database(folder: Path) -> AsyncIterator[tuple[Urls, Back]]:
    """A Postgres that refuses everybody, until the database that they want is made."""
    async with Embedded(folder) as servers:

        @asynccontextmanager
        async def back() -> AsyncIterator[None]:
            administrator = await asyncpg.connect(servers.urls.postgres_admin)
            await administrator.execute("CREATE DATABASE elsewhere OWNER tollgate")
            await administrator.close()
            yield

        elsewhere = servers.urls.postgres.replace("/tollgate?", "/elsewhere?")
        yield servers.urls._replace(postgres=elsewhere), back


@asynccontextmanager
async def launched(folder: Path, vendor: Vendor, urls: Urls) -> AsyncIterator[Deployment]:
    """A gateway that has just been started, with nothing of an earlier run."""
    settings = configured(folder, vendor.port, shared(urls))
    gateway = Deployment(folder, settings, workers=WORKERS)
    gateway.servers = folder / "servers"
    gateway.write_config()
    gateway.launch()
    try:
        yield gateway
    finally:
        await gateway.stop()


async def until_it_listens(gateway: Deployment) -> float:
    """Wait for every process to answer a probe; how long it took, seconds."""

    async def listens() -> bool:
        ports = gateway.ports
        if len(gateway.pids("worker")) < WORKERS or not ports:
            return False
        answers = [await status(ports["data"], "/healthz") for _ in range(8)]
        return [*answers, await status(ports["metrics"], "/healthz")] == [200] * 9

    return await until(listens, within_s=LISTENS_S_MAX)


async def called(line: Caller) -> Answer:
    """A call with a key that nobody knows."""
    return await line.post(CHAT, issue(os.urandom(32)).secret.reveal(), asks(CHAT, "m"))


@pytest.mark.parametrize("away", [refusing, silent, without_a_database])
async def test_it_lives_unready_and_serves_once_its_servers_are_there(
    folder: Path,
    vendor_apart: Vendor,
    away: Callable[[Path], AbstractAsyncContextManager[tuple[Urls, Back]]],
) -> None:
    await vendor_apart.forget()
    loop = asyncio.get_running_loop()
    async with away(folder / "servers") as (urls, back), launched(folder, vendor_apart, urls) as it:
        listens_s = await until_it_listens(it)
        data, metrics, pids = it.ports["data"], it.ports["metrics"], it.pids("worker")
        async with Caller.at(HOST, data) as early, Caller.at(HOST, data) as line:
            refused = await called(line)
            assert await line.is_closed(), "the next connection is one that is served"
            assert (refused.status, refused.error["code"]) == (503, "ledger_unavailable")
            assert refused.headers["retry-after"]
            assert refused.error["type"] == "server_error"
            for port in (data, metrics):
                assert await status(port, "/healthz") == 200
                assert await status(port, "/readyz") == 503
            async with back():
                began_s = loop.time()
                await it.until_ready(READY_S_MAX)
                ready_s = loop.time() - began_s
                assert await status(metrics, "/readyz") == 200

                async def is_ready() -> bool:
                    return await status(data, "/readyz") == 200

                # A worker that begins to serve may cut who is connecting at that moment.
                await until(is_ready, within_s=1.0)
                key = await it.new_key()
                served = await early.post(CHAT, key.secret, asks(CHAT, "m"))
                assert served.status == 200, "a connection from before is served, too"
                assert (await post(it, key, CHAT, asks(CHAT, "m"))).status == 200
                await assert_books(it, key, records=2)
                assert it.pids("worker") == pids, "nothing was started again"
                assert await it.stop() == 0
    print(
        f"G3, E3: a cold start with servers {away.__name__}: listens after {listens_s:.1f} s,"
        f" ready {ready_s:.1f} s after they are there"
    )


async def test_a_disk_that_takes_no_prices_stops_nobody_but_who_wants_them(
    folder: Path, vendor_apart: Vendor
) -> None:
    await vendor_apart.forget()
    sheet = sheet_path(folder / "data" / "run")
    in_the_way = sheet.with_suffix(".new")
    async with (
        Embedded(folder / "servers") as servers,
        launched(folder, vendor_apart, servers.urls) as it,
    ):
        await it.until_ready()
        assert await it.stop() == 0
        sheet.unlink()
        in_the_way.mkdir()
        it.launch()
        await until_it_listens(it)
        (control,) = it.pids("control")

        async def flushes() -> bool:
            said = await checks(it, "control")
            return said["flusher"] == "ok" and "Is a directory" in said["prices"]

        await until(flushes, within_s=LISTENS_S_MAX)
        in_the_way.rmdir()
        await it.until_ready(READY_S_MAX)
        assert it.pids("control") == [control]


async def test_one_that_ran_before_serves_without_postgres(
    folder: Path, vendor_apart: Vendor
) -> None:
    await vendor_apart.forget()
    async with (
        Embedded(folder / "servers") as servers,
        launched(folder, vendor_apart, servers.urls) as it,
    ):
        await it.until_ready()
        key = await it.new_key()
        assert (await post(it, key, CHAT, asks(CHAT, "m"))).status == 200
        assert await it.stop() == 0
        with silenced(servers.pids["postgres"]):
            it.launch()
            await until_it_listens(it)
            await until(lambda: data_plane_is_ready(it), within_s=READY_S_MAX)
            assert await status(it.ports["metrics"], "/readyz") == 503, "nobody flushes"
            assert (await post(it, key, CHAT, asks(CHAT, "m"))).status == 200
        await it.until_ready(READY_S_MAX)
        await assert_books(it, key, records=2)


@pytest.mark.parametrize("away", [refusing, silent])
async def test_it_stops_in_time_though_its_servers_never_came(
    folder: Path,
    vendor_apart: Vendor,
    away: Callable[[Path], AbstractAsyncContextManager[tuple[Urls, Back]]],
) -> None:
    loop = asyncio.get_running_loop()
    async with away(folder / "servers") as (urls, _), launched(folder, vendor_apart, urls) as it:
        await until_it_listens(it)
        began_s = loop.time()
        assert await it.stop() == 0
        gone_s = loop.time() - began_s
    assert gone_s < STOPS_S_MAX
    assert "child did not stop in time" not in it.log_path.read_text()
    print(f"G1: SIGTERM before servers {away.__name__} came: gone after {gone_s:.1f} s")
