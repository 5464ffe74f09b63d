"""Organizations: made with a wallet, found by id or name."""

from collections.abc import AsyncIterator
from functools import partial
from uuid import UUID

import pytest

from gateway.errors import BadRequest, NotFound
from gateway.management import known_keys, organizations
from gateway.management.organizations import OrganizationKind, OrganizationTerms
from ledger.functions import Partition
from ledger.money import NANOS_MAX, Nanos
from tests.gateway.tenancy import Tenancy, activate, authenticating, new_key, tenancy, until


@pytest.fixture
async def stage(postgres_url: str, redis_url: str) -> AsyncIterator[Tenancy]:
    async with tenancy(postgres_url, redis_url) as made:
        yield made


async def test_an_organization_is_what_it_was_made_as(stage: Tenancy) -> None:
    terms = OrganizationTerms(
        name="Ada",
        kind=OrganizationKind.PERSONAL,
        time_zone="Europe/Berlin",
        allows_unpriced=True,
    )
    made = await organizations.create(stage.pool, stage.redis, terms)
    assert (made.name, made.kind, made.time_zone) == ("Ada", "personal", "Europe/Berlin")
    assert made.allows_unpriced
    assert (made.granted, made.spent, made.balance) == (0, 0, 0)
    assert [one.name for one in await organizations.listed(stage.pool)] == ["Acme", "Ada"]


async def test_organizations_are_handed_round_the_partitions(stage: Tenancy) -> None:
    terms = OrganizationTerms(name="One of many")
    made = [await organizations.create(stage.pool, stage.redis, terms) for _ in range(15)]
    assert len({one.partition for one in made}) == 15


async def test_the_wallet_is_in_redis_before_the_first_call(stage: Tenancy) -> None:
    await activate(stage, *range(16))
    made = await organizations.create(stage.pool, stage.redis, OrganizationTerms(name="Ada"))
    image = await Partition(stage.redis, made.partition).snap(1, [str(made.id)])
    assert [wallet.wallet for wallet in image.wallets] == [str(made.id)]


async def test_an_organization_is_found_by_its_id_and_by_its_name(stage: Tenancy) -> None:
    for text in ("Acme", str(stage.organization_id), str(stage.organization_id).upper()):
        found = await organizations.resolve(stage.pool, text)
        assert found.id == stage.organization_id


async def test_a_name_that_several_have_says_which_they_are(stage: Tenancy) -> None:
    again = await organizations.create(stage.pool, stage.redis, OrganizationTerms(name="Acme"))
    with pytest.raises(BadRequest, match=str(again.id)):
        await organizations.resolve(stage.pool, "Acme")


async def test_what_is_no_organization_is_not_found(stage: Tenancy) -> None:
    for text in ("nobody", "", str(UUID(int=7)), "' OR '1'='1"):
        with pytest.raises(NotFound):
            await organizations.resolve(stage.pool, text)


@pytest.mark.parametrize(
    "terms",
    [
        OrganizationTerms(name=""),
        OrganizationTerms(name="  "),
        OrganizationTerms(name="two\nlines"),
        OrganizationTerms(name="n" * 201),
        OrganizationTerms(name="Ada", time_zone="Middle/Earth"),
        OrganizationTerms(name="Ada", time_zone="../../etc/passwd"),
    ],
)
async def test_flawed_terms_are_refused(stage: Tenancy, terms: OrganizationTerms) -> None:
    with pytest.raises(BadRequest):
        await organizations.create(stage.pool, stage.redis, terms)
    assert len(await organizations.listed(stage.pool)) == 1


async def test_a_grace_reaches_every_key_at_once_and_the_audit_log(stage: Tenancy) -> None:
    key = new_key()
    await stage.make_key(key)
    async with authenticating(stage, partial(known_keys.find, stage.pool)) as authenticator:
        assert (await authenticator.lookup(key)).grace == 0
        is_told = await organizations.set_grace(
            stage.pool, stage.cache, stage.organization_id, Nanos(7), actor="a test"
        )
        assert is_told

        async def is_known() -> bool:
            return (await authenticator.lookup(key)).grace == 7

        assert await until(is_known) < 1.0
    line = await stage.pool.fetchrow("SELECT * FROM audit_log ORDER BY number DESC LIMIT 1")
    assert line is not None
    assert (line["action"], line["before"], line["after"]) == (
        "organization.grace",
        '{"grace_nanos": 0}',
        '{"grace_nanos": 7}',
    )


@pytest.mark.parametrize("amount", [-1, NANOS_MAX + 1])
async def test_a_grace_that_no_wallet_could_have_is_refused(stage: Tenancy, amount: int) -> None:
    with pytest.raises(BadRequest):
        await organizations.set_grace(
            stage.pool, stage.cache, stage.organization_id, Nanos(amount), actor="a test"
        )
