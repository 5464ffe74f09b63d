"""An owner is one customer of the processor's, whoever asks for it first."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import orjson
import pytest

from gateway.management.customers import customer_of, known_customer
from gateway.management.payments import Owner, OwnerKind
from tests.gateway.management.office import Office
from tests.gateway.management.team import founded
from tests.gateway.management.till import open_till


@pytest.fixture
async def office(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Office]:
    async with open_till(postgres_url, redis_url, tmp_path) as opened:
        yield opened


async def told(office: Office, customer: str) -> tuple[str, str]:
    """What the processor was told of somebody."""
    row = await office.pool.fetchval("SELECT body FROM sandbox_object WHERE id = $1", customer)
    body = orjson.loads(row)
    return body["name"], body["email"]


async def test_ten_at_once_are_given_the_same(office: Office) -> None:
    await office.signed_up("ada@example.com")
    person_id = UUID(str(await office.pool.fetchval("SELECT id FROM person")))
    owner = Owner(OwnerKind.PERSON, person_id)
    assert await known_customer(office.desk, owner) is None
    made = await asyncio.gather(*(customer_of(office.desk, owner) for _ in range(10)))
    assert {*made} == {await known_customer(office.desk, owner)}
    assert await told(office, made[0]) == ("Ada", "ada@example.com")


async def test_an_organization_is_told_of_by_its_billing_address_else_its_first_owners(
    office: Office,
) -> None:
    team = await founded(office, email="ada@example.com")
    owner = Owner(OwnerKind.ORGANIZATION, UUID(team.id))
    assert await told(office, await customer_of(office.desk, owner)) == ("Acme", "ada@example.com")
    other = await founded(office, email="bob@example.com")
    await other.owner.patch("/organization", {"billing_email": "bills@example.com"})
    owner = Owner(OwnerKind.ORGANIZATION, UUID(other.id))
    assert (await told(office, await customer_of(office.desk, owner)))[1] == "bills@example.com"
