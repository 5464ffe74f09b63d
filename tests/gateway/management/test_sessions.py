"""Signing up, in and out, over HTTP."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.gateway.management.office import Office, open_office


@pytest.fixture
async def office(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Office]:
    async with open_office(postgres_url, redis_url, tmp_path) as opened:
        yield opened


async def test_somebody_signs_up_proves_their_address_and_has_an_account(office: Office) -> None:
    ada = await office.signed_up("Ada@Example.com")
    me = (await ada.get("/me")).body
    assert (me["email"], me["name"]) == ("ada@example.com", "Ada")
    assert me["account_id"] is not None


async def test_x(office: Office) -> None:
    ada = await office.signed_up("Ada@Example.com")
    got = await ada.post("/organizations", {"name": "Acme", "preset": "studio"})
    assert got.status == 201, got
    acme = ada.at(got.body["id"])
    print((await acme.get("/policy")).body)
    print(await acme.patch("/organization", {"name": "Acme 2"}))
    print(await acme.patch("/policy", {"switches": {"permissions": {"key.create": "members"}}}))
    print(await acme.post("/organization/deletion", {"confirmation": "Acme 2"}))
    print(await acme.get("/organization"))
    print((await acme.get("/organizations")).body)
