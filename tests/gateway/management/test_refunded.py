"""Refunds over HTTP, by the operator."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.gateway.management.office import Browser, Got, Office
from tests.gateway.management.till import TEN_USD, buys, method_of, open_till
from tests.gateway.tenancy import Tenancy, activate


@pytest.fixture
async def office(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Office]:
    async with open_till(postgres_url, redis_url, tmp_path) as opened:
        await activate(Tenancy(opened.pool, opened.redis))
        yield opened


async def gives_back(operator: Browser, purchase: str, key: str = "", **body: Any) -> Got:
    path = f"/operator/purchases/{purchase}/refunds"
    headers = {"Idempotency-Key": key or str(uuid4())}
    return await operator.post(path, {"reason": "sorry", **body}, headers=headers)


async def test_the_operator_gives_a_part_and_then_the_rest_back(office: Office) -> None:
    root = await office.operator("root@example.com")
    ada = await office.signed_up("ada@example.com")
    purchase = (await buys(ada, await method_of(ada))).body["id"]
    for _ in range(2):  # the same key, once
        got = await gives_back(root, purchase, "one", amount_nanos=TEN_USD // 5)
        assert (got.status, got.body["state"], got.body["charged"]) == (201, "refunded", 200)
    rest = await gives_back(root, purchase)
    assert (rest.body["amount_nanos"], rest.body["charged"]) == (TEN_USD // 5 * 4, 800)
    assert (await ada.get(f"/purchases/{purchase}")).body["refunded_nanos"] == TEN_USD
    assert (await ada.get("/wallet")).body["balance_nanos"] == 0
    assert (await gives_back(root, purchase)).status == 400, "nothing is left"
    more = await gives_back(root, purchase, amount_nanos=TEN_USD)
    assert (more.status, more.code, more.body["refundable_nanos"]) == (409, "not_refundable", 0)


async def test_what_was_not_paid_is_not_given_back(office: Office) -> None:
    root = await office.operator("root@example.com")
    ada = await office.signed_up("ada@example.com")
    purchase = (await buys(ada, None)).body["id"]
    assert (await gives_back(root, purchase)).code == "not_refundable"
    assert (await gives_back(root, str(uuid4()))).code == "purchase_not_found"


async def test_a_refund_needs_a_key_and_whole_cents(office: Office) -> None:
    root = await office.operator("root@example.com")
    ada = await office.signed_up("ada@example.com")
    purchase = (await buys(ada, await method_of(ada))).body["id"]
    got = await root.post(f"/operator/purchases/{purchase}/refunds", {"reason": "sorry"})
    assert (got.status, got.code) == (400, "idempotency_key_required")
    assert (await gives_back(root, purchase, amount_nanos=10_000_001)).status == 400
    assert (await gives_back(ada, purchase)).code == "not_operator"
