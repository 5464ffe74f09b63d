"""A worker that stops: what it has begun to read is answered; what is left at last is cut."""

import asyncio

from gateway.proxy.leaving import let_end
from ledger.record import Outcome
from tests.gateway.principals import PRINCIPAL
from tests.gateway.proxy.gatehouse import Gatehouse, OpenGate, knows, request
from tests.vendor import Vendor

ASK = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 600}
LOOKUP_S = 0.5


async def stopped(gate: Gatehouse, *, within_s: float) -> None:
    """What a worker does when it is told to stop and no more connections come."""
    server = gate.door.server
    server.leave()
    await let_end(server, gate.calls.under_way, within_s=within_s)
    await server.shutdown(0.1)


async def begun(gate: Gatehouse, count: int = 1) -> None:
    """Return once so many calls are served."""
    async with asyncio.timeout(10):
        while len(gate.calls.under_way) != count:
            await asyncio.sleep(0.01)


async def test_a_body_whose_second_half_comes_after_the_stop_is_answered(gate: Gatehouse) -> None:
    uploads, idle = await gate.line(), await gate.line()
    call = request({**ASK, "model": "m", "user": "x" * 200_000})
    uploads.writer.write(call[:-150_000])
    await begun(gate)

    stopping = asyncio.ensure_future(stopped(gate, within_s=10))
    await asyncio.sleep(0)
    status, headers, _ = await uploads.ask(call[-150_000:])

    assert (status, headers["connection"]) == (200, "close")
    async with asyncio.timeout(5):
        await stopping
        assert await idle.rest() == b""


async def test_a_call_that_is_admitted_after_the_stop_is_answered_however_slow_its_vendor(
    open_gate: OpenGate, vendor: Vendor
) -> None:
    model = await vendor.script("h", hold_at=-1)
    async with open_gate(find=knows(PRINCIPAL, after_s=LOOKUP_S)) as gate:
        line = await gate.line()
        line.writer.write(request({**ASK, "model": model}))
        await begun(gate)
        assert not gate.calls.live, "its key is still looked up"

        stopping = asyncio.ensure_future(stopped(gate, within_s=10))
        await vendor.held(1)
        assert not stopping.done()
        await vendor.release()

        assert (await line.ask(b""))[0] == 200
        await stopping
        (record,) = await gate.records()
        assert record.outcome == Outcome.SUCCESS


async def test_calls_that_are_not_admitted_when_time_is_up_are_ended(open_gate: OpenGate) -> None:
    async with open_gate(find=knows(PRINCIPAL, after_s=60)) as gate:
        looked_up, uploads = await gate.line(), await gate.line()
        call = request({**ASK, "model": "m"})
        looked_up.writer.write(call)
        uploads.writer.write(call[:-1])
        await begun(gate, 2)

        async with asyncio.timeout(5):
            await let_end(gate.door.server, gate.calls.under_way, within_s=0.1)
            assert len(gate.calls.under_way) == 0
            assert [await line.rest() for line in (looked_up, uploads)] == [b"", b""]
        assert (await gate.settled())["held"] == 0


async def test_a_request_that_nobody_serves_yet_is_waited_for(gate: Gatehouse) -> None:
    line = await gate.line()
    async with asyncio.timeout(10):
        while not gate.door.server.connections:
            await asyncio.sleep(0.01)
    (guard,) = gate.door.server.connections
    await line.ask(request({**ASK, "model": "m"}))

    guard.data_received(request({**ASK, "model": "m"}))
    assert len(gate.calls.under_way) == 0
    await stopped(gate, within_s=10)

    assert (await line.ask(b""))[0] == 200
