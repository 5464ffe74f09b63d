"""The default model of a key, over HTTP."""

import pytest

from tests.gateway.management.office import Browser, Office
from tests.gateway.management.rooms import authenticator_of, made_organization
from tests.gateway.tenancy import until


@pytest.fixture
async def acme(office: Office) -> Browser:
    return await made_organization(await office.signed_up("ada@example.com"), "Acme")


async def test_a_key_carries_a_default_model(office: Office, acme: Browser) -> None:
    made = (await acme.post("/api-keys", {"name": "k", "default_model": "small"})).body
    path, secret = f"/api-keys/{made['key']['id']}", made["secret"]
    assert made["key"]["default_model"] == "small"

    async with authenticator_of(office) as authenticator:
        assert (await authenticator.principal(secret)).default_model == "small"
        for model in ("large", None):
            got = await acme.patch(path, {"default_model": model})
            assert got.body["default_model"] == model

            async def is_known(model: str | None = model) -> bool:
                return (await authenticator.principal(secret)).default_model == model

            assert await until(is_known) < 1.0


async def test_a_default_is_one_of_the_keys_models(acme: Browser) -> None:
    flawed = {"name": "k", "default_model": "small", "models": ["large"]}
    got = await acme.post("/api-keys", flawed)
    assert (got.status, got.code) == (400, "invalid_default_model")
    made = await acme.post("/api-keys", {**flawed, "models": ["large", "small"]})
    path = f"/api-keys/{made.body['key']['id']}"
    got = await acme.patch(path, {"models": ["large"]})
    assert (got.status, got.code) == (400, "invalid_default_model")
    assert (await acme.patch(path, {"models": None})).status == 200


@pytest.mark.parametrize("model", ["", "a\nb", "x" * 201, 7])
async def test_a_flawed_default_is_refused(acme: Browser, model: object) -> None:
    assert (await acme.post("/api-keys", {"name": "k", "default_model": model})).status == 400
