"""What gateways learn of a key from Postgres, and when they learn nothing."""

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from gateway.auth import StoreAway
from gateway.management import known_keys
from gateway.management.api_keys import KeyTerms
from gateway.principal import Budget, Period
from ledger.money import Nanos, nanos
from tests.gateway.tenancy import Tenancy, digest_of, new_key, tenancy
from tests.ledger.by_hand import dying_postgres


@pytest.fixture
async def stage(postgres_url: str, redis_url: str) -> AsyncIterator[Tenancy]:
    async with tenancy(postgres_url, redis_url) as made:
        yield made


async def test_budgets_of_key_member_and_project_are_all_obeyed(stage: Tenancy) -> None:
    member_id, text = uuid4(), new_key()
    await stage.pool.execute(
        "INSERT INTO member (id, organization_id, email, budget_limit, budget_period)"
        " VALUES ($1, $2, 'a@example.com', 7, 'weekly')",
        *(member_id, stage.organization_id),
    )
    project_id = await stage.pool.fetchval(
        "UPDATE project SET budget_limit = 8, budget_period = 'once' RETURNING id"
    )
    terms = KeyTerms(
        name="k",
        member_id=member_id,
        budget=nanos(1),
        period=Period.DAILY,
        default_model="small",
        ip_ranges=("10.0.0.0/8",),
    )
    made = await stage.make_key(text, terms)
    await stage.pool.execute("UPDATE organization SET ip_ranges = $1", ["::/0"])

    who = (await known_keys.find(stage.pool, [digest_of(text)]))[digest_of(text)].principal

    assert who.budgets == (
        Budget(f"key:{made.id}", nanos(1), Period.DAILY),
        Budget(f"member:{member_id}", Nanos(7), Period.WEEKLY),
        Budget(f"project:{project_id}", Nanos(8), Period.ONCE),
    )
    assert (who.default_model, who.networks) == ("small", (("10.0.0.0/8",), ("::/0",)))


async def test_a_postgres_that_is_away_is_not_an_unknown_key() -> None:
    async with asyncpg.create_pool("postgresql://127.0.0.1:1/none", min_size=0) as pool:
        with pytest.raises(StoreAway):
            await known_keys.find(pool, [bytes(32)])


async def test_a_database_without_tables_is_not_an_unknown_key(postgres_empty_url: str) -> None:
    async with asyncpg.create_pool(postgres_empty_url, min_size=0) as pool:
        with pytest.raises(StoreAway):
            await known_keys.find(pool, [bytes(32)])


async def test_a_store_that_dies_at_work_is_away(tmp_path: Path) -> None:
    async with dying_postgres(tmp_path) as url, asyncpg.create_pool(url, min_size=0) as pool:
        with pytest.raises(StoreAway):
            await known_keys.find(pool, [b"digest"])
