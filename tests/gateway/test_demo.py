"""The demo: whoever starts it again goes on with what is there, and its figures are the books'."""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import asyncpg
import pytest

from gateway import demo
from gateway.commands.stores import Stores, opened
from gateway.config import load
from gateway.demo import CallFailed
from gateway.key_cache import KeyCache
from gateway.management import api_keys, organizations
from gateway.settings import Auth, Config
from ledger.clients import open_redis
from tests.gateway.tenancy import PEPPER, clock
from tests.scenarios.deployment import Deployment
from tests.vendor import Vendor

FIVE_DOLLARS = 5_000_000_000


@pytest.fixture
async def stores(postgres_url: str, redis_url: str) -> AsyncIterator[Stores]:
    redis = open_redis(redis_url)
    async with redis, asyncpg.create_pool(postgres_url, min_size=0, max_size=2) as pool:
        cache = KeyCache(redis, clock().unix_s)
        yield Stores(Config(auth=Auth(pepper=PEPPER)), pool, redis, cache)


async def test_a_second_start_finds_the_organization_its_credit_and_its_key(
    stores: Stores, tmp_path: Path
) -> None:
    first = await demo.tenant(stores, tmp_path)
    second = await demo.tenant(stores, tmp_path)

    assert second == first
    assert first.organization.balance == FIVE_DOLLARS
    assert len(await organizations.listed(stores.pool)) == 1
    assert len(await api_keys.listed(stores.pool, first.organization.id)) == 1


async def test_only_we_can_read_the_key(stores: Stores, tmp_path: Path) -> None:
    await demo.tenant(stores, tmp_path)
    assert (tmp_path / demo.KEY_FILE).stat().st_mode & 0o777 == 0o600


async def test_a_key_that_no_longer_works_is_replaced(stores: Stores, tmp_path: Path) -> None:
    first = await demo.tenant(stores, tmp_path)
    (key,) = await api_keys.listed(stores.pool, first.organization.id)
    await api_keys.revoke(stores.pool, stores.cache, key.id)

    second = await demo.tenant(stores, tmp_path)

    assert second.key != first.key
    assert await demo.tenant(stores, tmp_path) == second


async def test_a_file_that_holds_no_key_is_replaced(stores: Stores, tmp_path: Path) -> None:
    (tmp_path / demo.KEY_FILE).write_text("not a key\n")
    assert (await demo.tenant(stores, tmp_path)).key.startswith("tg_live_")


async def test_the_call_is_shown_as_it_streams_and_its_figures_are_those_of_the_books(
    tmp_path: Path, vendor_apart: Vendor
) -> None:
    await vendor_apart.forget()
    model = await vendor_apart.script(
        "demo", input_tokens=100, output_tokens=4, deltas=4, text=" word"
    )
    async with (
        Deployment.started(tmp_path, vendor_port=vendor_apart.port) as tollgate,
        opened(load(tollgate.config_path)) as stores,
        aiohttp.ClientSession() as session,
    ):
        metrics_url = f"http://127.0.0.1:{tollgate.ports['metrics']}/metrics"
        tenant = await demo.tenant(stores, tollgate.data)
        before = await demo.overhead(session, metrics_url)
        shown: list[str] = []
        asked = await demo.ask(tollgate.base_url, tenant.key, model=model, write=shown.append)
        bill = await demo.bill(stores, tenant.organization.id, asked.call_id)
        while (after := await demo.overhead(session, metrics_url)).calls == before.calls:
            pass
        with pytest.raises(CallFailed, match="Incorrect API key"):
            await demo.ask(tollgate.base_url, "tg_live_wrong", model=model, write=shown.append)

    assert shown == [" word"] * 4
    assert bill.call.charge == 100 * 3000 + 4 * 15000
    assert bill.balance == FIVE_DOLLARS - bill.call.charge
    assert 0 < asked.first_token_s <= asked.total_s
    assert after.calls == before.calls + 1
    assert 0 < after.seconds - before.seconds < asked.total_s
