"""Keys that rest, come back and end, as gateways see it."""

import pytest

from gateway.auth import AuthLimits
from tests.gateway.management.office import Browser, Office
from tests.gateway.management.rooms import (
    accepted,
    authenticator_of,
    joined,
    made_organization,
    refused,
)


@pytest.fixture
async def acme(office: Office) -> Browser:
    return await made_organization(await office.signed_up("ada@example.com"), "Acme")


async def test_disabling_and_enabling_are_seen_within_a_second(
    office: Office, acme: Browser
) -> None:
    made = (await acme.post("/api-keys", {"name": "k"})).body
    path, secret = f"/api-keys/{made['key']['id']}", made["secret"]
    async with authenticator_of(office) as authenticator:
        await authenticator.principal(secret)
        for _ in range(2):
            disabled = (await acme.post(f"{path}/disable")).body
            assert (disabled["state"], disabled["disabled_by"]) == (
                "disabled",
                made["key"]["member_id"],
            )
            assert await refused(authenticator, secret) < 1.0
            enabled = (await acme.post(f"{path}/enable")).body
            assert (enabled["state"], enabled["disabled_at"]) == ("active", None)
            assert await accepted(authenticator, secret) < 1.0
    assert (await acme.get(path)).body["version"] == 5


async def test_a_key_comes_back_though_redis_never_heard_that_it_was_enabled(
    office: Office, acme: Browser
) -> None:
    made = (await acme.post("/api-keys", {"name": "k"})).body
    path, secret = f"/api-keys/{made['key']['id']}", made["secret"]
    limits = AuthLimits(refused_s=0.05, recheck_s=0.2)
    async with authenticator_of(office, limits=limits) as authenticator:
        await acme.post(f"{path}/disable")
        await refused(authenticator, secret)
        await office.pool.execute(
            "UPDATE api_key SET disabled_at = NULL, version = version + 1 WHERE id = $1",
            made["key"]["id"],
        )
        assert await accepted(authenticator, secret) < 2.0


async def test_disabling_twice_is_disabling_once(acme: Browser) -> None:
    key = (await acme.post("/api-keys", {"name": "k"})).body["key"]
    first = (await acme.post(f"/api-keys/{key['id']}/disable")).body
    assert (await acme.post(f"/api-keys/{key['id']}/disable")).body == first
    second = (await acme.post(f"/api-keys/{key['id']}/enable")).body
    assert (await acme.post(f"/api-keys/{key['id']}/enable")).body == second


async def test_what_an_admin_disabled_its_maker_does_not_enable(
    office: Office, acme: Browser
) -> None:
    bob = await joined(office, acme, "bob@example.com")
    key = (await bob.post("/api-keys", {"name": "his"})).body["key"]
    path = f"/api-keys/{key['id']}"
    await bob.post(f"{path}/disable")
    assert (await bob.post(f"{path}/enable")).body["state"] == "active"
    await acme.post(f"{path}/disable")
    got = await bob.post(f"{path}/enable")
    assert (got.status, got.code) == (403, "disabled_by_another")
    assert (await acme.post(f"{path}/enable")).body["state"] == "active"


async def test_a_revoked_key_is_refused_within_a_second_and_for_ever(
    office: Office, acme: Browser
) -> None:
    made = (await acme.post("/api-keys", {"name": "k"})).body
    path, secret = f"/api-keys/{made['key']['id']}", made["secret"]
    async with authenticator_of(office) as authenticator:
        await authenticator.principal(secret)
        assert (await acme.delete(path)).status == 204
        assert await refused(authenticator, secret) < 1.0
    assert (await acme.delete(path)).status == 204
    assert (await acme.get(path)).body["state"] == "revoked"
    for got in (
        await acme.post(f"{path}/enable"),
        await acme.post(f"{path}/disable"),
        await acme.patch(path, {"name": "again"}),
        await acme.post(f"{path}/rotation", {"grace_s": 5}),
    ):
        assert (got.status, got.code) == (409, "api_key_revoked")


async def test_a_shorter_expiry_is_seen_within_a_second(office: Office, acme: Browser) -> None:
    made = (await acme.post("/api-keys", {"name": "k"})).body
    async with authenticator_of(office) as authenticator:
        await authenticator.principal(made["secret"])
        await office.pool.execute(
            "UPDATE api_key SET expires_at = now() - interval '1 s' WHERE id = $1",
            made["key"]["id"],
        )
        # Any change brings it; this one is the smallest.
        await acme.patch(f"/api-keys/{made['key']['id']}", {"description": "over"})
        assert await refused(authenticator, made["secret"]) < 1.0
    assert (await acme.get(f"/api-keys/{made['key']['id']}")).body["state"] == "expired"
