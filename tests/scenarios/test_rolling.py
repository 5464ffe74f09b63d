"""Gateways are restarted one by one under load: no call fails, and no record is lost."""

import asyncio
import signal
from pathlib import Path

import pytest

from gateway.embedded import Embedded
from gateway.settings import Shutdown
from tests.scenarios.caller import CHAT, asks, post
from tests.scenarios.deployment import Deployment, Key, shared
from tests.scenarios.fleet import DRAIN_DELAY_S, STREAMS_S_MAX, Fleet, Traffic, status, traffic
from tests.scenarios.invariants import assert_books, open_holds, owed
from tests.scenarios.outages import silenced
from tests.scenarios.scale import LONG
from tests.vendor import Vendor

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(900)]
ROUNDS = 10 if LONG else 1
STREAMS = 20
CREDIT = 1_000_000_000_000
STREAM_S = 15.0 if LONG else 3.0
LONG_STREAMS = 100 if LONG else 4  # a third of the callers; the others are answered at once
OPEN_MIN = LONG_STREAMS // 2  # when a gateway is told to stop; some are between two calls
# Promised are 0.1 s; the short form runs beside other tests, and proves the order of things.
UNREADY_S_MAX = 0.1 if LONG else 1.0
_LATE_S = 5.0  # the limit of each step is promised; a busy machine takes its time between them


async def models(vendor: Vendor) -> list[str]:
    """One that answers at once, and one whose streams outlast the drain delay."""
    await vendor.forget()
    slow = {"deltas": 40, "output_tokens": 40, "interval_s": STREAM_S / 40}
    return [await vendor.script("swift"), await vendor.script("long", **slow)]


async def stopped(gateway: Deployment) -> tuple[float, float]:
    """SIGTERM: seconds until it says that it is not ready, and until it has gone, with code 0."""
    loop, port = asyncio.get_running_loop(), gateway.ports["data"]
    began_s = loop.time()
    gateway.tell(signal.SIGTERM)
    while (said := await status(port, "/readyz")) == 200:
        await asyncio.sleep(0.005)
    unready_s = loop.time() - began_s
    assert said == 503, "it went without a word"
    assert unready_s <= UNREADY_S_MAX
    # It takes calls all the same, because balancers look away later than it says so.
    assert await status(port, "/healthz") == 200
    assert await gateway.gone() == 0
    gone_s = loop.time() - began_s
    assert gone_s <= DRAIN_DELAY_S + STREAMS_S_MAX + _LATE_S
    return unready_s, gone_s


async def assert_exact(fleet: Fleet, vendor: Vendor, key: Key, calls: Traffic) -> int:
    """Each call that reached the vendor has one record and was charged as the vendor says.

    What ended while a partition recovered was taken from the wallet's base, not through `spent`.
    """
    seen, bank = await vendor.quiet(), fleet.bank
    rows = await bank.records(key.organization_id, count=len(seen), within_s=60)
    ids = [str(row["call_id"]) for row in rows]
    assert len(ids) == len({*ids}) == len(seen)
    assert {*calls.answered} <= {*ids}
    assert sum(row["charge"] for row in rows) == owed(seen)
    assert await bank.wallet(key.organization_id) == CREDIT - owed(seen)
    async with asyncio.timeout(60):
        while await open_holds(bank, key):
            await asyncio.sleep(0.05)
    assert "No difference." in bank.run("verify")
    return len(rows)


async def test_gateways_restarted_one_by_one_fail_no_call_and_lose_no_record(
    folder: Path, vendor_apart: Vendor
) -> None:
    swift, long = await models(vendor_apart)
    callers, streams = 2 * LONG_STREAMS, {long: LONG_STREAMS}
    fewest_open = LONG_STREAMS
    took: list[tuple[float, float]] = []
    async with Fleet.started(folder, vendor_port=vendor_apart.port, count=2) as fleet:
        key = await fleet.bank.new_key(credit_usd="1000")
        async with traffic(fleet.port, key, [swift], callers=callers, streams=streams) as calls:
            for _ in range(ROUNDS):
                for gateway in fleet.gateways:
                    await calls.until(50)
                    state = await vendor_apart.until(lambda state: state.open >= OPEN_MIN)
                    fewest_open = min(fewest_open, state.open)
                    took.append(await stopped(gateway))
                    await gateway.start()
                    await fleet.until_balanced()
            await calls.until(50)
        assert not calls.failed, f"{len(calls.failed)} calls failed: {calls.failed[:5]}"
        count = await assert_exact(fleet, vendor_apart, key, calls)
    unready, gone = (max(times) for times in zip(*took, strict=True))
    print(
        f"G1: {len(took)} of 2 gateways restarted behind HAProxy, {callers} callers and"
        f" {LONG_STREAMS} with streams of {STREAM_S:.0f} s, {fewest_open} or more of them open at"
        f" each SIGTERM: {count} calls, 0 failed, 0 lost; readiness 503 after"
        f" {unready * 1000:.0f} ms at most (limit {UNREADY_S_MAX * 1000:.0f}),"
        f" gone with code 0 after {gone:.1f} s at most"
    )


async def test_a_second_sigterm_leaves_at_once_and_nothing_is_lost_by_it(
    folder: Path, vendor_apart: Vendor
) -> None:
    await vendor_apart.forget()
    model = await vendor_apart.script("slow", deltas=400, output_tokens=400, interval_s=0.1)
    changes = {"ledger": {"hold_lease_s": 10, "hold_renew_s": 4}}
    started = Deployment.started(folder, vendor_port=vendor_apart.port, changes=changes)
    async with started as gateway:
        key, loop = await gateway.new_key(), asyncio.get_running_loop()
        async with traffic(gateway.ports["data"], key, [model], callers=2 * STREAMS) as calls:
            await vendor_apart.until(lambda state: state.open >= STREAMS)
            calls.stop()
            gateway.tell(signal.SIGTERM)
            while await status(gateway.ports["data"], "/readyz") == 200:
                await asyncio.sleep(0.005)
            began_s = loop.time()
            gateway.tell(signal.SIGTERM)
            await gateway.gone()
            gone_s = loop.time() - began_s
        assert len(calls.failed) == STREAMS  # every other caller streams
        await gateway.start()
        seen = len(await vendor_apart.quiet())
        await assert_books(gateway, key, records=seen)
        assert "No difference." in gateway.run("verify")
    assert gone_s < _LATE_S
    print(
        f"G1: a second SIGTERM with {STREAMS} streams open: {seen} calls,"
        f" gone after {gone_s:.1f} s, exact"
    )


async def test_sigterm_while_postgres_is_silent_ends_in_time_and_loses_nothing(
    folder: Path, vendor_apart: Vendor
) -> None:
    await vendor_apart.forget()
    loop = asyncio.get_running_loop()
    async with Embedded(folder / "servers") as servers:
        drain = {"drain_delay_s": DRAIN_DELAY_S, "streams_s_max": 60}
        changes = {**shared(servers.urls), "shutdown": drain}
        started = Deployment.started(folder, vendor_port=vendor_apart.port, changes=changes)
        async with started as gateway:
            gateway.servers = folder / "servers"
            key = await gateway.new_key()
            with silenced(servers.pids["postgres"]):
                calls = [post(gateway, key, CHAT, asks(CHAT, "m")) for _ in range(STREAMS)]
                assert {one.status for one in await asyncio.gather(*calls)} == {200}
                began_s = loop.time()
                assert await gateway.stop() == 0
                gone_s = loop.time() - began_s
            assert "child did not stop in time" not in gateway.log_path.read_text()
            await gateway.start()
            await assert_books(gateway, key, records=STREAMS)
            assert "No difference." in gateway.run("verify")
    assert gone_s < DRAIN_DELAY_S + Shutdown().control_s_max + _LATE_S
    print(f"G1: SIGTERM while Postgres is silent: gone with code 0 after {gone_s:.1f} s, exact")
