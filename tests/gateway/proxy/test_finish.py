"""From usage to charge and record."""

import pytest

from ledger.record import EndKind
from tests.gateway.proxy.gatehouse import Gatehouse, OpenGate
from tests.vendor import Vendor

ASK = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 50}


async def test_an_explicit_zero_is_a_zero(gate: Gatehouse, vendor: Vendor) -> None:
    zero = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    model = await vendor.script("z", usage_fields=zero)

    await gate.post({**ASK, "model": model})

    (record,) = await gate.records()
    assert (record.charge, record.kind, record.usage_source) == (0, EndKind.SETTLED, "reported")


async def test_usage_that_nobody_reports_is_estimated_and_flagged(
    gate: Gatehouse, vendor: Vendor
) -> None:
    model = await vendor.script("n", usage="never", output_tokens=40, deltas=40, text=" t")

    await gate.post({**ASK, "model": model, "stream": True})

    (record,) = await gate.records()
    assert (record.usage_source, record.usage["output"]) == ("estimated", 40)
    assert record.charge >= 40 * 15_000
    assert gate.metrics.usage_missing.series == {("vendor",): 1}


@pytest.mark.parametrize("charge_by", ["price", "reported"])
async def test_a_vendors_own_cost_is_charged_where_that_is_the_policy(
    open_gate: OpenGate, vendor: Vendor, charge_by: str
) -> None:
    model = await vendor.script("c", input_tokens=100, usage_fields={"cost": 0.000123456789})
    provider = {
        "kind": "custom",
        "quirks": "openrouter",
        "base_url": vendor.url,
        "allow_http": True,
        "charge_by": charge_by,
        "input_overhead_tokens": 0,
    }
    changes = {"providers": {"vendor": provider, "spare": provider}}
    async with open_gate(changes=changes) as gate:
        await gate.post({**ASK, "model": model})
        (record,) = await gate.records()

    listed = 100 * 3_000 + 5 * 15_000
    assert (record.list_price, record.reported_cost) == (listed, 123_457)
    assert record.charge == (123_457 if charge_by == "reported" else listed)


async def test_a_charge_above_the_hold_is_taken_in_full_and_counted(
    gate: Gatehouse, vendor: Vendor
) -> None:
    many = {"prompt_tokens": 10_000, "completion_tokens": 1, "total_tokens": 10_001}
    model = await vendor.script("o", usage_fields=many)

    await gate.post({**ASK, "model": model})

    (record,) = await gate.records()
    assert record.charge == 10_000 * 3_000 + 15_000 > record.held
    assert gate.metrics.over_hold_nanousd.series == {("vendor",): record.charge - record.held}


async def test_the_record_says_who_asked_for_what_and_who_served(
    gate: Gatehouse, vendor: Vendor
) -> None:
    model = await vendor.script("r", model="gpt-served", service_tier="flex")

    await gate.post({**ASK, "model": model, "user": "ada"})
    await gate.post({**ASK, "model": model, "user": "ada"})
    await gate.post({**ASK, "model": model, "user": "bob"})

    one, two, three = await gate.records()
    assert (one.model_requested, one.model_served, one.tier) == (model, "gpt-served", "flex")
    assert one.client == two.client != three.client
    assert "ada" not in one.client
    assert one.first_byte_us > 0
    assert one.finished_us > one.admitted_us
