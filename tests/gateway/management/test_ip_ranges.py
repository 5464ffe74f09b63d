"""IP ranges over HTTP, of one key and of all of an organization's."""

import pytest

from tests.gateway.management.office import Browser, Office
from tests.gateway.management.rooms import authenticator_of, made_organization
from tests.gateway.tenancy import until


@pytest.fixture
async def acme(office: Office) -> Browser:
    return await made_organization(await office.signed_up("ada@example.com"), "Acme")


async def test_ranges_of_key_and_organization_reach_gateways_within_a_second(
    office: Office, acme: Browser
) -> None:
    wanted = {"name": "k", "ip_ranges": ["10.1.0.0/16", "2001:DB8::/32", "10.1.0.0/16"]}
    made = (await acme.post("/api-keys", wanted)).body
    path, secret = f"/api-keys/{made['key']['id']}", made["secret"]
    assert made["key"]["ip_ranges"] == ["10.1.0.0/16", "2001:db8::/32"]

    async with authenticator_of(office) as authenticator:

        async def networks() -> tuple[tuple[str, ...], ...]:
            return (await authenticator.principal(secret)).networks

        async def become(*expected: tuple[str, ...]) -> float:
            async def do() -> bool:
                return await networks() == expected

            return await until(do)

        own = ("10.1.0.0/16", "2001:db8::/32")
        assert await networks() == (own,)
        everywhere = await acme.patch("/organization", {"ip_ranges": ["10.0.0.0/8"]})
        assert everywhere.body["ip_ranges"] == ["10.0.0.0/8"]
        assert await become(own, ("10.0.0.0/8",)) < 1.0
        got = await acme.patch(path, {"ip_ranges": ["192.0.2.7"]})
        assert got.body["ip_ranges"] == ["192.0.2.7/32"]
        assert await become(("192.0.2.7/32",), ("10.0.0.0/8",)) < 1.0
        await acme.patch(path, {"ip_ranges": None})
        await acme.patch("/organization", {"ip_ranges": None})
        assert await become() < 1.0


@pytest.mark.parametrize(
    "ranges", [[], ["10.0.0.1/8"], ["everywhere"], ["10.0.0.0/8", "x.y"], ["::1"] * 101, "::1", [7]]
)
async def test_flawed_ranges_are_refused(acme: Browser, ranges: object) -> None:
    for got in (
        await acme.post("/api-keys", {"name": "k", "ip_ranges": ranges}),
        await acme.patch("/organization", {"ip_ranges": ranges}),
    ):
        assert got.status == 400
    assert (await acme.get("/api-keys")).body["data"] == []
    assert (await acme.get("/organization")).body["ip_ranges"] is None


async def test_a_change_of_ranges_is_in_the_audit_log(office: Office, acme: Browser) -> None:
    await acme.patch("/organization", {"ip_ranges": ["10.0.0.0/8"]})
    row = await office.pool.fetchrow(
        "SELECT before, after FROM audit_log WHERE action = 'organization.update'"
    )
    assert row is not None
    assert tuple(row) == ('{"ip_ranges": null}', '{"ip_ranges": ["10.0.0.0/8"]}')
