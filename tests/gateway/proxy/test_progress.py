"""A dead gateway's calls are charged by what they are known to have consumed."""

import asyncio

import pytest

from gateway.journals import lost_end
from gateway.proxy.live import LiveCall
from gateway.proxy.progress import renewal
from ledger.functions import Partition
from ledger.record import EndKind, Outcome, decode
from tests.gateway.proxy.gatehouse import WALLET, Gatehouse, OpenGate, request
from tests.gateway.proxy.small_holds import ASK as GROWING
from tests.gateway.proxy.small_holds import INPUT_NANOS, OUTPUT_NANOS, changed
from tests.vendor import Vendor

ASK = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 600}
SOON = {"ledger": {"hold_renew_s": 1, "hold_lease_s": 10}}


async def asked(gate: Gatehouse, vendor: Vendor, *, stream: bool = True) -> LiveCall:
    """A call of which four of eight output tokens have come."""
    model = await vendor.script("s", input_tokens=100, deltas=8, output_tokens=8, hold_at=4)
    line = await gate.line()
    line.writer.write(request({**ASK, "model": model, "stream": stream}))
    await vendor.held(1)
    if stream:
        for _ in range(4):
            await line.reader.readuntil(b"data: ")
    return next(iter(gate.calls.live.values()))


async def test_a_stream_tells_what_has_come_of_it(gate: Gatehouse, vendor: Vendor) -> None:
    live = await asked(gate, vendor)

    told = renewal(gate.calls.live, live.hold)

    record = decode(told.record)
    assert live.meter is not None
    assert record.usage == dict(live.meter.usage().counts)
    assert record.usage["output"] > 0
    assert record.usage["input"] > 0
    assert told.charge == record.usage["input"] * 3_000 + record.usage["output"] * 15_000
    assert (record.charge, record.kind, record.outcome) == (
        told.charge,
        EndKind.LOST,
        Outcome.UNKNOWN,
    )
    assert record.usage_source == "estimated"
    assert live.record.charge == 0, "the call's own record is untouched"
    await vendor.release()


async def test_it_never_tells_more_than_is_held(gate: Gatehouse, vendor: Vendor) -> None:
    live = await asked(gate, vendor)
    small = live.hold._replace(amount=type(live.hold.amount)(5))
    assert renewal(gate.calls.live, small).charge == 5
    await vendor.release()


async def test_a_call_without_an_answer_yet_tells_its_input(
    gate: Gatehouse, vendor: Vendor
) -> None:
    live = await asked(gate, vendor, stream=False)
    told = renewal(gate.calls.live, live.hold)
    assert told.charge == live.record.usage["input"] * 3_000 > 0
    await vendor.release()


async def test_a_call_that_no_vendor_has_tells_nothing(gate: Gatehouse, vendor: Vendor) -> None:
    live = await asked(gate, vendor)
    assert renewal({}, live.hold).charge == -1
    await vendor.release()
    await gate.settled()
    assert renewal({live.call_id: live}, live.hold).charge == -1, "it has ended"


async def test_a_meter_that_fails_costs_no_lease(
    gate: Gatehouse, vendor: Vendor, caplog: pytest.LogCaptureFixture
) -> None:
    live = await asked(gate, vendor)
    meter, live.meter = live.meter, object()  # type: ignore[assignment] # one with a bug
    assert renewal(gate.calls.live, live.hold) == (live.call_id, live.hold.lease_ms, -1, b"")
    assert "progress" in caplog.text
    live.meter = meter
    await vendor.release()


async def test_a_stream_whose_hold_has_grown_is_charged_by_it_if_its_worker_dies(
    open_gate: OpenGate, vendor: Vendor
) -> None:
    """By the worker's journal alone: Redis is flushed as well."""
    soon = {**changed(), **SOON}
    model = await vendor.script("s", output_tokens=900, text=" t", hold_at=600)
    async with open_gate(changes=soon) as gate:
        line = await gate.line()
        line.writer.write(request({**GROWING, "model": model}))
        await vendor.held(1)
        live = next(iter(gate.calls.live.values()))
        async with asyncio.timeout(10):
            known = next(gate.journal.open_calls())
            while known.held < 600 * OUTPUT_NANOS or known.ticket == live.hold.ticket:
                await asyncio.sleep(0.02)
                known = next(gate.journal.open_calls())
        end = lost_end(known, gate.calls.terms.prices)
        await vendor.release()

    usage = decode(end.record).usage
    assert end.charge == usage["input"] * INPUT_NANOS + usage["output"] * OUTPUT_NANOS
    assert usage["output"] >= 590, "all that has come, though only 100 were held at first"
    assert end.kind is EndKind.LOST


async def test_the_sweeper_charges_a_silent_gateways_stream_by_it(
    open_gate: OpenGate, vendor: Vendor
) -> None:
    async with open_gate(changes=SOON) as gate:
        live = await asked(gate, vendor)
        partition = Partition(gate.redis, 0)
        async with asyncio.timeout(10):
            while (await partition.open_holds(1))[0].ticket == live.hold.ticket:
                await asyncio.sleep(0.02)
        told = renewal(gate.calls.live, live.hold)
        await gate.redis.zadd("tg:{p00}:due", {live.call_id: 1})  # as if nobody had renewed it

        assert await partition.sweep(1, 10) == 1

        (entry,) = await partition.peek(1, "0-0", 10)
        assert (entry.fields[b"k"], entry.fields[b"c"]) == (b"lost", str(told.charge).encode())
        assert decode(entry.fields[b"r"]).usage == decode(told.record).usage
        image = await partition.snap(1, [WALLET])
        assert (image.wallets[0].held, image.wallets[0].spent) == (0, told.charge)
        await vendor.release()
