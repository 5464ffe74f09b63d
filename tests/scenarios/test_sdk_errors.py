"""Each way a call can fail is raised by the official client as the class its users catch."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import openai
import pytest
from openai import APIStatusError

from tests.scenarios.deployment import Deployment, Key
from tests.scenarios.invariants import assert_books, assert_nothing_recorded
from tests.scenarios.sdk import KINDS, Kind, sdk, sdk_at
from tests.vendor import Vendor

pytestmark = [pytest.mark.scenario, pytest.mark.parametrize("kind", KINDS)]
ASK: list[Any] = [{"role": "user", "content": "hello"}]
MIB = 1024**2


class Case(NamedTuple):
    """A call, and what it is to raise. `script`: what the vendor does, if it is reached at all."""

    raises: type[APIStatusError]
    status: int
    code: str
    model: str = "gpt-4o-mini"
    script: Mapping[str, Any] = MappingProxyType({})
    fields: Mapping[str, Any] = MappingProxyType({})


def chat(model: str, **fields: Any) -> Callable[[Any], Any]:
    """What asks a client for a chat completion."""
    return lambda c: c.chat.completions.create(**{"model": model, "messages": ASK, **fields})


OURS = [
    Case(openai.BadRequestError, 400, "invalid_type", fields={"messages": "hello"}),
    Case(openai.BadRequestError, 400, "invalid_value", fields={"max_tokens": -1}),
    Case(
        openai.BadRequestError,
        400,
        "unsupported_parameter",
        fields={"extra_body": {"api_base": "http://x"}},
    ),
    Case(openai.NotFoundError, 404, "model_not_found", "embed-only"),
    Case(openai.NotFoundError, 404, "model_not_found", "keyless/gpt"),
    Case(openai.NotFoundError, 404, "model_not_priced", "unpriced/gpt"),
    Case(
        APIStatusError,
        415,
        "unsupported_media_type",
        fields={"extra_headers": {"content-type": "text/plain"}},
    ),
    Case(
        APIStatusError,
        413,
        "request_too_large",
        fields={"messages": [{"role": "user", "content": "x" * 33 * MIB}]},
    ),
]

VENDORS = [
    Case(openai.BadRequestError, 400, "invalid_value", script={"status": 400}),
    Case(openai.NotFoundError, 404, "model_not_found", script={"status": 404}),
    Case(openai.PermissionDeniedError, 403, "upstream_refused", script={"status": 403}),
    Case(openai.RateLimitError, 429, "rate_limit_exceeded", script={"status": 429}),
    Case(openai.InternalServerError, 502, "upstream_error", script={"status": 500}),
    Case(openai.InternalServerError, 502, "provider_credentials_refused", script={"status": 401}),
    Case(openai.InternalServerError, 503, "upstream_overloaded", script={"status": 503}),
    Case(openai.InternalServerError, 502, "upstream_unreachable", "dead/gpt"),
    Case(openai.InternalServerError, 502, "upstream_unreachable", "nowhere/gpt"),
    Case(openai.InternalServerError, 502, "upstream_unreachable", script={"garbage": True}),
    Case(openai.InternalServerError, 504, "upstream_timeout", "hasty/{}", {"head_s": 5}),
]


async def raised(
    tollgate: Deployment, key: Key, kind: Kind, ask: Callable[[Any], Any]
) -> APIStatusError:
    """The error that this call raises."""
    async with sdk(tollgate, key, kind) as client:
        with pytest.raises(APIStatusError) as caught:
            await client.call(ask)
    return caught.value


def assert_is(error: APIStatusError, case: Case) -> None:
    """The error is what the case says, with an id to ask about."""
    __tracebackhide__ = True
    assert type(error) is case.raises
    assert (error.status_code, error.code) == (case.status, case.code)
    assert error.request_id


@pytest.mark.parametrize("case", OURS, ids=lambda case: case.code)
async def test_a_call_that_cannot_be_admitted_raises_and_leaves_nothing(
    tollgate: Deployment, key: Key, vendor_apart: Vendor, kind: Kind, case: Case
) -> None:
    error = await raised(tollgate, key, kind, chat(case.model, **case.fields))

    assert_is(error, case)
    assert await vendor_apart.log() == []
    await assert_nothing_recorded(tollgate, key)


@pytest.mark.parametrize("case", VENDORS, ids=lambda case: f"{case.status}-{case.code}")
async def test_a_call_that_the_vendor_fails_raises_and_costs_nothing(
    tollgate: Deployment, key: Key, vendor_apart: Vendor, kind: Kind, case: Case
) -> None:
    name = await vendor_apart.script("failing", **case.script)
    model = case.model.format(name) if case.model != "gpt-4o-mini" else name

    assert_is(await raised(tollgate, key, kind, chat(model)), case)
    (record,) = await assert_books(tollgate, key, records=1, charge=0)
    assert record["kind"] == "released"


async def test_a_wrong_key_raises_authentication_error(
    tollgate: Deployment, vendor_apart: Vendor, kind: Kind
) -> None:
    async with sdk_at(tollgate.base_url, "tg-live-wrong", kind) as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.call(chat("gpt-4o-mini"))

    assert caught.value.code == "invalid_api_key"
    assert await vendor_apart.log() == []


async def test_a_model_the_key_may_not_use_raises_permission_denied(
    tollgate: Deployment, kind: Kind
) -> None:
    key = await tollgate.new_key(models=("embed-only",))
    error = await raised(tollgate, key, kind, chat("gpt-4o-mini"))
    assert_is(error, Case(openai.PermissionDeniedError, 403, "model_not_allowed"))


async def test_a_wallet_that_cannot_pay_raises_402_with_the_figures(
    tollgate: Deployment, kind: Kind
) -> None:
    key = await tollgate.new_key(credit_usd="0.001")
    error = await raised(tollgate, key, kind, chat("gpt-4o-mini", max_tokens=1000))

    assert_is(error, Case(APIStatusError, 402, "insufficient_credit"))
    assert isinstance(error.body, dict)
    assert error.body["affordable_nanos"] == 1_000_000
    assert error.body["needed_nanos"] > 1000 * 15000
    assert error.response.headers["x-should-retry"] == "false"
    await assert_nothing_recorded(tollgate, key)


async def test_a_spent_rate_raises_rate_limit_error_and_says_when_to_retry(
    tollgate: Deployment, kind: Kind
) -> None:
    key = await tollgate.new_key(rpm=1)
    async with sdk(tollgate, key, kind) as client:
        first = await client.call(
            lambda c: c.chat.completions.with_raw_response.create(model="gpt-4o-mini", messages=ASK)
        )
        with pytest.raises(openai.RateLimitError) as caught:
            await client.call(chat("gpt-4o-mini"))

    assert first.headers["x-ratelimit-remaining-requests"] == "0"
    assert caught.value.code == "rate_limit_exceeded"
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
    await assert_books(tollgate, key, records=1)


async def test_the_vendors_retry_after_reaches_the_client(
    tollgate: Deployment, key: Key, vendor_apart: Vendor, kind: Kind
) -> None:
    model = await vendor_apart.script("later", status=429, headers={"retry-after": "17"})
    error = await raised(tollgate, key, kind, chat(model))

    assert error.response.headers["retry-after"] == "17"
    assert len(await vendor_apart.log()) == 1


async def test_a_path_that_is_not_there_raises_not_found(
    tollgate: Deployment, key: Key, kind: Kind
) -> None:
    error = await raised(tollgate, key, kind, lambda c: c.files.list())
    assert type(error) is openai.NotFoundError
