"""Keys as they are managed; that they then work or not is in tests/gateway/test_auth.py."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import UUID

import pytest

from gateway.errors import BadRequest, NotFound
from gateway.key_cache import KeyCache
from gateway.management import api_keys, known_keys
from gateway.management.api_keys import KeyLabel, KeyTerms
from gateway.principal import Period
from ledger.clients import open_redis
from ledger.money import nanos
from tests.gateway.tenancy import Tenancy, clock, digest_of, new_key, tenancy


@pytest.fixture
async def stage(postgres_url: str, redis_url: str) -> AsyncIterator[Tenancy]:
    async with tenancy(postgres_url, redis_url) as made:
        yield made


async def test_a_key_is_listed_with_its_terms_and_never_with_its_text(stage: Tenancy) -> None:
    text = new_key()
    terms = KeyTerms(
        name="production",
        project="Search",
        budget=nanos("2.5"),
        period=Period.DAILY,
        rpm=5,
        tpm=600,
        concurrency=7,
        models=("a", "b"),
        expires_at=datetime(2100, 1, 1, tzinfo=UTC),
    )
    made = await stage.make_key(text, terms)
    assert await api_keys.listed(stage.pool, stage.organization_id) == [made]
    assert (made.name, made.project, made.last4) == ("production", "Search", text[47:51])
    assert (made.budget, made.period) == (2_500_000_000, Period.DAILY)
    assert (made.rpm, made.tpm, made.concurrency) == (5, 600, 7)
    assert made.models == ("a", "b")
    rows = await stage.pool.fetch("SELECT api_key::text FROM api_key")
    assert text not in str(rows)


async def test_a_key_is_of_the_default_project_unless_another_is_named(stage: Tenancy) -> None:
    names = [None, "Search", "Search", "Default"]
    made = [await stage.make_key(new_key(), KeyTerms(name="k", project=name)) for name in names]
    assert [key.project for key in made] == ["Default", "Search", "Search", "Default"]
    assert await stage.pool.fetchval("SELECT count(*) FROM project") == 2


async def test_a_key_is_found_by_id_name_and_last_four_within_its_organization(
    stage: Tenancy,
) -> None:
    made = await stage.make_key(new_key(), KeyTerms(name="production"))
    for text in (str(made.id), "production", made.last4):
        for organization_id in (None, stage.organization_id):
            found = await api_keys.resolve(stage.pool, text, organization_id=organization_id)
            assert found == made.id
        with pytest.raises(NotFound):
            await api_keys.resolve(stage.pool, text, organization_id=UUID(int=7))


async def test_a_name_that_several_keys_have_says_which_they_are(stage: Tenancy) -> None:
    made = [await stage.make_key(new_key(), KeyTerms(name="same")) for _ in range(2)]
    with pytest.raises(BadRequest, match=str(made[1].id)):
        await api_keys.resolve(stage.pool, "same", organization_id=None)


async def test_revoking_again_changes_nothing_but_the_version(stage: Tenancy) -> None:
    made = await stage.make_key(new_key())
    assert await api_keys.revoke(stage.pool, stage.cache, made.id)
    first = await api_keys.get(stage.pool, made.id)
    assert await api_keys.revoke(stage.pool, stage.cache, made.id)
    assert await api_keys.get(stage.pool, made.id) == first
    assert first.revoked_at is not None


async def test_what_is_no_key_cannot_be_revoked(stage: Tenancy) -> None:
    with pytest.raises(NotFound):
        await api_keys.revoke(stage.pool, stage.cache, UUID(int=7))


async def test_making_and_revoking_is_in_the_audit_log_without_the_text(stage: Tenancy) -> None:
    text = new_key()
    made = await stage.make_key(text, KeyTerms(name="k", actor="ada"))
    await api_keys.revoke(stage.pool, stage.cache, made.id, actor="bob")
    rows = await stage.pool.fetch("SELECT * FROM audit_log WHERE target = $1", str(made.id))
    assert [(row["actor"], row["action"]) for row in rows] == [
        ("ada", "key.create"),
        ("bob", "key.revoke"),
    ]
    assert text not in str(rows)


async def test_with_redis_away_the_change_holds_and_its_maker_is_told(stage: Tenancy) -> None:
    nowhere = open_redis("redis://127.0.0.1:1")
    away = KeyCache(nowhere, clock().unix_s)
    text = new_key()
    label = KeyLabel(digest_of(text), text[47:51])
    made = await api_keys.create(
        stage.pool,
        away,
        organization_id=stage.organization_id,
        label=label,
        terms=KeyTerms(name="k"),
    )
    assert not await api_keys.revoke(stage.pool, away, made.id)
    known = await known_keys.find(stage.pool, [label.digest])
    assert known[label.digest].is_revoked
    await nowhere.aclose()


async def test_each_change_of_key_or_organization_raises_the_version(stage: Tenancy) -> None:
    text = new_key()
    made = await stage.make_key(text)
    versions = []
    for change in (
        "UPDATE organization SET version = version + 1, suspended_at = now()",
        "UPDATE api_key SET version = version + 1, rpm = 5",
    ):
        await stage.pool.execute(change)
        found = await known_keys.find(stage.pool, [digest_of(text)])
        versions.append(found[digest_of(text)].principal.version)
        assert found[digest_of(text)].principal.is_suspended
    assert versions[0] < versions[1]
    await api_keys.revoke(stage.pool, stage.cache, made.id)
    found = await known_keys.find(stage.pool, [digest_of(text)])
    assert found[digest_of(text)].principal.version > versions[1]


@pytest.mark.parametrize(
    "terms",
    [
        KeyTerms(name=""),
        KeyTerms(name="a\0b"),
        KeyTerms(name="k", project=" "),
        KeyTerms(name="k", rpm=0),
        KeyTerms(name="k", tpm=2**31),
        KeyTerms(name="k", concurrency=-1),
        KeyTerms(name="k", budget=nanos(1)),
        KeyTerms(name="k", period=Period.ONCE),
        KeyTerms(name="k", budget=nanos(-1), period=Period.ONCE),
        KeyTerms(name="k", models=()),
        KeyTerms(name="k", models=("m",) * 201),
    ],
)
async def test_flawed_terms_are_refused(stage: Tenancy, terms: KeyTerms) -> None:
    with pytest.raises(BadRequest):
        await stage.make_key(new_key(), terms)
    assert await api_keys.listed(stage.pool, stage.organization_id) == []


async def test_a_key_needs_an_organization(stage: Tenancy) -> None:
    stage.organization_id = UUID(int=7)
    with pytest.raises(NotFound):
        await stage.make_key(new_key())
