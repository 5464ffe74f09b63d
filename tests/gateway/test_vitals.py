"""What a worker says of itself once a second."""

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.readiness import Readiness
from gateway.snapshots import Publisher
from gateway.vitals import Vitals
from ledger.lane import Lane
from ledger.step import Phase
from tests.gateway.proxy.gatehouse import Gatehouse, request
from tests.vendor import Vendor


@pytest.fixture
async def gate(redis_url: str, vendor: Vendor, tmp_path: Path) -> AsyncIterator[Gatehouse]:
    async with Gatehouse.opened(redis_url, vendor, tmp_path) as opened:
        yield opened


def vitals(gate: Gatehouse, folder: Path) -> Vitals:
    readiness = Readiness(time.monotonic)
    for check in ("serving", "redis", "journal", "backlog"):
        readiness.expect(check)
    readiness.good("serving")
    return Vitals(
        calls=gate.calls,
        parts=gate.parts,
        dropped=lambda: 0,
        publisher=Publisher(folder, process="test", metrics=gate.metrics, readiness=readiness),
    )


STATES = ("busy", "idle", "waiting")


@pytest.mark.parametrize("served", [0, 15])
async def test_a_recovery_makes_a_worker_unready_only_if_it_lasts_and_nobody_is_served(
    gate: Gatehouse, tmp_path: Path, served: int
) -> None:
    assert (await gate.post({"model": "m", "messages": []}))[0] == 200
    now_s, conveyor = [100.0], gate.parts.conveyor
    gate.parts = replace(gate.parts, monotonic_s=lambda: now_s[0])
    one = vitals(gate, tmp_path)
    # There is no await from here on, so no lane learns the truth.
    conveyor._lanes += tuple(Lane(number, conveyor._lanes[0]._tell) for number in range(1, 16))

    def looked_at(phase: Phase, *, after_s: float) -> bool:
        for lane in conveyor._lanes:
            lane.phase = Phase.ACTIVE if lane.number < served else phase
        now_s[0] += after_s
        one.look()
        return one.publisher.readiness.state().ready

    assert looked_at(Phase.UNKNOWN, after_s=0) is (served > 0), "it has never seen it whole"
    assert looked_at(Phase.ACTIVE, after_s=1)
    assert looked_at(Phase.RECOVERING, after_s=2.0)
    assert looked_at(Phase.RECOVERING, after_s=0.1) is (served > 0)
    assert looked_at(Phase.ACTIVE, after_s=1)


async def test_open_calls_and_connections_are_shown(
    gate: Gatehouse, vendor: Vendor, tmp_path: Path
) -> None:
    model = await vendor.script("h", hold_at=-1)
    line = await gate.line()
    line.writer.write(request({"model": model, "messages": []}))
    await vendor.held(1)
    one = vitals(gate, tmp_path)

    one.look()

    assert gate.metrics.calls_open.series == {(): 1}
    states = {
        state: gate.metrics.upstream_connections.series[("vendor", state)] for state in STATES
    }
    assert states == {"busy": 1, "idle": 0, "waiting": 0}
    assert one.publisher.readiness.state().ready
    await vendor.release()


async def test_a_worker_all_of_whose_partitions_are_closed_is_not_ready(
    gate: Gatehouse, tmp_path: Path
) -> None:
    one = vitals(gate, tmp_path)
    for closed, is_good in (({0}, True), (set(range(100)), False), (set(), True)):
        gate.parts.closed.partitions = frozenset(closed)
        one.look()
        assert (one.publisher.readiness.state().checks["backlog"] == "ok") is is_good
