"""Several secrets of one key: rotated with a grace, and each member's own."""

import asyncio

import pytest

from gateway.management import api_keys
from gateway.management.key_secrets import end_members
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
    """It shows secrets to its members."""
    return await made_organization(await office.signed_up("ada@example.com"), "Acme", "studio")


async def test_after_a_rotation_both_secrets_are_the_same_key_until_the_grace_ends(
    office: Office, acme: Browser
) -> None:
    made = (await acme.post("/api-keys", {"name": "k"})).body
    path = f"/api-keys/{made['key']['id']}"
    async with authenticator_of(office) as authenticator:
        await authenticator.principal(made["secret"])
        got = await acme.post(f"{path}/rotation", {"grace_s": 1})
        assert (got.status, got.body["key"]["version"]) == (201, 2)
        assert got.body["key"]["former_until"] is not None
        new = await authenticator.principal(got.body["secret"])
        old = await authenticator.principal(made["secret"])
        assert (old.key_id, old.member_id) == (new.key_id, new.member_id)
        assert await refused(authenticator, made["secret"]) < 2.5
        assert (await authenticator.principal(got.body["secret"])).key_id == made["key"]["id"]
    assert (await acme.get(path)).body["former_until"] is None


async def test_without_a_grace_the_old_secret_is_refused_within_a_second(
    office: Office, acme: Browser
) -> None:
    made = (await acme.post("/api-keys", {"name": "k"})).body
    path = f"/api-keys/{made['key']['id']}"
    async with authenticator_of(office) as authenticator:
        await authenticator.principal(made["secret"])
        first = (await acme.post(f"{path}/rotation", {"grace_s": 3600})).body
        await authenticator.principal(made["secret"])
        second = (await acme.post(f"{path}/rotation", {"grace_s": 0})).body
        # The grace of the rotation before ends as well: this is what one does with a leak.
        for secret in (made["secret"], first["secret"]):
            assert await refused(authenticator, secret) < 1.0
        assert await accepted(authenticator, second["secret"]) < 1.0


async def test_a_disabled_or_revoked_key_is_refused_whichever_secret_is_shown(
    office: Office, acme: Browser
) -> None:
    made = (await acme.post("/api-keys", {"name": "k"})).body
    path = f"/api-keys/{made['key']['id']}"
    rotated = (await acme.post(f"{path}/rotation", {"grace_s": 3600})).body
    own = (await acme.post(f"{path}/secret")).body
    secrets = [made["secret"], rotated["secret"], own["secret"]]
    async with authenticator_of(office) as authenticator:
        for secret in secrets:
            await authenticator.principal(secret)
        for change, becomes in (("disable", refused), ("enable", accepted)):
            await acme.post(f"{path}/{change}")
            for secret in secrets:
                assert await becomes(authenticator, secret) < 1.0
        await acme.delete(path)
        for secret in secrets:
            assert await refused(authenticator, secret) < 1.0


async def test_of_two_rotations_at_once_one_secret_is_the_newest(
    office: Office, acme: Browser
) -> None:
    made = (await acme.post("/api-keys", {"name": "k"})).body
    path = f"/api-keys/{made['key']['id']}/rotation"
    both = await asyncio.gather(*(acme.post(path, {"grace_s": 60}) for _ in range(2)))
    assert max(one.body["key"]["version"] for one in both) == 3
    async with authenticator_of(office) as authenticator:
        for one in both:
            assert await accepted(authenticator, one.body["secret"]) < 1.0


@pytest.mark.parametrize("body", [{}, {"grace_s": -1}, {"grace_s": 604_801}, {"grace": 5}])
async def test_a_flawed_rotation_is_refused(acme: Browser, body: dict[str, int]) -> None:
    key = (await acme.post("/api-keys", {"name": "k"})).body["key"]
    assert (await acme.post(f"/api-keys/{key['id']}/rotation", body)).status == 400
    assert (await acme.get(f"/api-keys/{key['id']}")).body == key


async def test_calls_with_a_members_own_secret_are_theirs(office: Office, acme: Browser) -> None:
    bob = await joined(office, acme, "bob@example.com")
    made = (await acme.post("/api-keys", {"name": "shared", "rpm": 9})).body
    path = f"/api-keys/{made['key']['id']}/secret"
    own = (await bob.post(path)).body
    assert (await bob.post(path)).body == own
    assert own["secret"] not in {made["secret"], (await acme.post(path)).body["secret"]}
    async with authenticator_of(office) as authenticator:
        his = await authenticator.principal(own["secret"])
        hers = await authenticator.principal(made["secret"])
    assert (his.key_id, his.rpm, his.budgets) == (hers.key_id, 9, hers.budgets)
    assert (his.member_id, hers.member_id) == (own["member_id"], made["key"]["member_id"])
    stored = await office.pool.fetch("SELECT s::text, a::text FROM key_secret s, audit_log a")
    assert own["secret"][8:51] not in str(stored)


async def test_every_member_uses_every_key_and_the_organization_pays(
    office: Office, acme: Browser
) -> None:
    bob = await joined(office, acme, "bob@example.com")
    keys = [(await acme.post("/api-keys", {"name": name})).body["key"] for name in ("a", "b")]
    async with authenticator_of(office) as authenticator:
        for key in keys:
            for who in (acme, bob):
                own = (await who.post(f"/api-keys/{key['id']}/secret")).body
                found = await authenticator.principal(own["secret"])
                assert found.wallet == acme.headers["X-Organization-Id"]
                assert (found.key_id, found.member_id) == (key["id"], own["member_id"])


async def test_a_member_who_asks_twice_at_once_has_one_secret(acme: Browser) -> None:
    key = (await acme.post("/api-keys", {"name": "shared"})).body["key"]
    got = await asyncio.gather(*(acme.post(f"/api-keys/{key['id']}/secret") for _ in range(6)))
    assert len({one.body["secret"] for one in got}) == 1


async def test_a_rotation_ends_members_secrets_too(office: Office, acme: Browser) -> None:
    key = (await acme.post("/api-keys", {"name": "shared"})).body["key"]
    path = f"/api-keys/{key['id']}"
    before = (await acme.post(f"{path}/secret")).body["secret"]
    await acme.post(f"{path}/rotation", {"grace_s": 0})
    after = (await acme.post(f"{path}/secret")).body["secret"]
    async with authenticator_of(office) as authenticator:
        assert await refused(authenticator, before) < 1.0
        assert await accepted(authenticator, after) < 1.0


async def test_a_member_who_is_put_out_takes_no_secret_along(office: Office, acme: Browser) -> None:
    made = (await acme.post("/api-keys", {"name": "k"})).body
    path = f"/api-keys/{made['key']['id']}/secret"
    bob, eve = [await joined(office, acme, f"{name}@example.com") for name in ("bob", "eve")]
    his, hers = [(await one.post(path)).body["secret"] for one in (bob, eve)]
    (member,) = [
        one
        for one in (await acme.get("/members")).body["data"]
        if one["email"] == "bob@example.com"
    ]
    async with authenticator_of(office) as authenticator:
        for secret in (made["secret"], his, hers):
            await authenticator.principal(secret)
        assert (await acme.delete(f"/members/{member['id']}")).status == 204
        assert await refused(authenticator, his) < 1.0
        for secret in (made["secret"], hers):
            assert (await authenticator.principal(secret)).key_id == made["key"]["id"]


async def test_where_secrets_are_shown_once_nobody_reveals_one(office: Office) -> None:
    once = await made_organization(await office.signed_up("ada@example.com"), "Once")
    key = (await once.post("/api-keys", {"name": "k"})).body["key"]
    got = await once.post(f"/api-keys/{key['id']}/secret")
    assert (got.status, got.code) == (403, "secrets_shown_once")


async def test_who_goes_has_no_secret_any_more_even_after_a_return(
    office: Office, acme: Browser
) -> None:
    bob = await joined(office, acme, "bob@example.com")
    key = (await acme.post("/api-keys", {"name": "shared"})).body["key"]
    own = (await bob.post(f"/api-keys/{key['id']}/secret")).body
    async with authenticator_of(office) as authenticator:
        await authenticator.principal(own["secret"])
        async with office.pool.acquire() as connection, connection.transaction():
            await connection.execute(
                "UPDATE member SET removed_at = now() WHERE id = $1", own["member_id"]
            )
            keys = await end_members(connection, own["member_id"])
        assert [str(key_id) for key_id in keys] == [key["id"]]
        await api_keys.publish_keys(office.pool, office.desk.cache, keys)
        assert await refused(authenticator, own["secret"]) < 1.0
        await office.pool.execute("UPDATE member SET removed_at = NULL")
        again = (await bob.post(f"/api-keys/{key['id']}/secret")).body
        assert again["secret"] != own["secret"]
        assert await accepted(authenticator, again["secret"]) < 1.0
        assert await refused(authenticator, own["secret"]) < 1.0
