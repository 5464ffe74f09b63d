"""What is counted and logged of a call: enough to answer for it, nothing that is private."""

from tests.gateway.proxy.gatehouse import KEY, Gatehouse
from tests.vendor import Vendor


async def test_an_ended_call_is_one_line_and_its_figures(gate: Gatehouse, vendor: Vendor) -> None:
    model = await vendor.script("t", input_tokens=10, output_tokens=2)
    body = {"model": model, "messages": [{"role": "user", "content": "private words"}]}

    _, headers, _ = await gate.post(body)

    (line,) = gate.lines
    assert (line["event"], line["call"]) == ("call ended", headers["x-request-id"])
    assert (line["outcome"], line["charge_nanos"]) == ("success", 60_000)
    assert "private" not in str(line)
    assert KEY not in str(line)
    metrics = gate.metrics
    assert metrics.calls.series == {("vendor", "*", "success", "2xx"): 1}
    assert metrics.charge.series == {("vendor", "*"): 60_000}
    assert metrics.usage.series[("vendor", "*", "input")] == 10
    (cells,) = metrics.overhead_seconds.series.values()
    assert sum(cells[:-1]) == 1


async def test_a_refused_call_is_one_line_and_one_count(gate: Gatehouse) -> None:
    await gate.post({"model": "unpriced", "messages": []})

    (line,) = gate.lines
    assert (line["event"], line["status"], line["code"]) == (
        "call refused",
        404,
        "model_not_priced",
    )
    assert gate.metrics.refusals.series == {("model_not_priced",): 1}
    assert gate.metrics.calls.series == {}


async def test_a_call_that_its_vendor_refused_is_one_line_with_the_error(
    gate: Gatehouse, vendor: Vendor
) -> None:
    model = await vendor.script("t", status=400, error={"message": "no", "code": "wrong"})

    await gate.post({"model": model, "messages": []})

    (line,) = gate.lines
    assert (line["event"], line["status"], line["code"]) == ("call ended", 400, "wrong")
    assert gate.metrics.refusals.series == {}
    assert gate.metrics.calls.series == {("vendor", "*", "upstream_error", "4xx"): 1}
    assert gate.metrics.upstream_errors.series == {("vendor", "status"): 1}


async def test_a_hold_that_is_refused_says_what_was_short(gate: Gatehouse) -> None:
    body = {"model": "m", "messages": [], "max_tokens": 10**9}

    status, _, _ = await gate.post(body)

    assert status == 402
    assert gate.metrics.holds_refused.series == {("wallet",): 1}
