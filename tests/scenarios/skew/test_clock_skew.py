"""Gateways whose clocks are ten minutes wrong: holds, leases and resets follow the servers' clock.

Two deployments share one Postgres and one Valkey; one is ten minutes ahead, the other behind.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from gateway.embedded import urls
from gateway.principal import Period
from tests.scenarios.caller import CHAT, asks, caller, post, request
from tests.scenarios.deployment import PEPPER, Deployment, shared
from tests.scenarios.invariants import assert_books, open_holds, owed
from tests.vendor import Vendor

pytestmark = pytest.mark.scenario

SKEW_S = 600
LEASE_S = 4
LEDGER = {"partitions": 2, "hold_lease_s": LEASE_S, "hold_renew_s": 1}
CHARGE = 10 * 3_000 + 5 * 15_000


class Skewed(Deployment):
    """A deployment in whose processes it is another time."""

    skew_s = 0

    def environ(self) -> dict[str, str]:
        found = super().environ()
        path = os.pathsep.join([str(Path(__file__).parent / "site"), found["PYTHONPATH"]])
        return {**found, "PYTHONPATH": path, "CLOCK_SKEW_S": str(self.skew_s)}


class Ahead(Skewed):
    skew_s = SKEW_S


class Behind(Skewed):
    skew_s = -SKEW_S


@pytest.fixture
async def gateways(folder: Path, vendor_apart: Vendor) -> AsyncIterator[list[Deployment]]:
    """The one ahead, which has the servers, and the one behind."""
    await vendor_apart.forget()
    for name in ("ahead", "behind"):
        (folder / name).mkdir()
    port = vendor_apart.port
    async with AsyncExitStack() as stack:
        changes: dict[str, Any] = {"auth": {"pepper": PEPPER}, "ledger": LEDGER}
        ahead = await stack.enter_async_context(
            Ahead.started(folder / "ahead", vendor_port=port, changes=changes)
        )
        behind = await stack.enter_async_context(
            Behind.started(
                folder / "behind", vendor_port=port, changes={**changes, **shared(urls(ahead.data))}
            )
        )
        yield [ahead, behind]


async def one_window(gateways: list[Deployment]) -> None:
    """A budget's window is one, and resets at one time, for gateways of any clock."""
    key = await gateways[0].new_key(budget=12 * CHARGE, period=Period.DAILY)
    ask = asks(CHAT, "gpt-4o-mini", max_tokens=5)
    admitted, resets = [0, 0], []
    for turn in range(40):
        answer = await post(gateways[turn % 2], key, CHAT, ask)
        if answer.status == 200:
            admitted[turn % 2] += 1
        else:
            assert answer.status == 402
            resets.append(answer.error["resets_in_s"])
        if len(resets) == 2:
            break
    records = await assert_books(gateways[0], key, records=sum(admitted))
    assert min(admitted) >= 4
    assert sum(record["charge"] for record in records) <= 12 * CHARGE
    assert abs(resets[0] - resets[1]) <= 5
    assert 0 < min(resets) <= 86_400
    connection = await gateways[0].postgres()
    try:
        windows = await connection.fetchval("SELECT count(*) FROM cap_window")
        off_s = await connection.fetchval(
            "SELECT max(abs(extract(epoch FROM admitted_at - now())))::float8 FROM usage_record"
        )
    finally:
        await connection.close()
    assert windows == 1
    assert off_s > SKEW_S - 60, "the clocks are right"
    print(
        f"G7: clocks {SKEW_S} s ahead and behind: one window, {admitted} calls admitted, resets in"
        f" {resets} s"
    )


async def leases(gateways: list[Deployment], vendor_apart: Vendor) -> None:
    """A hold lives as long as its call, and no longer than its gateway."""
    ahead, behind = gateways
    key = await ahead.new_key()
    held = await vendor_apart.script("held", hold_at=-1)
    body = asks(CHAT, held, max_tokens=5)
    async with AsyncExitStack() as stack:
        for gateway in (ahead, behind, behind):
            line = await stack.enter_async_context(caller(gateway))
            await line.send(request(CHAT, key.secret, body))
        await vendor_apart.held(3)
        for _ in range(2 * LEASE_S):
            assert len(await open_holds(ahead, key)) == 3, "a hold was swept under its call"
            await asyncio.sleep(1)
        (worker,) = behind.pids("worker")
        os.kill(worker, signal.SIGKILL)
        async with asyncio.timeout(4 * LEASE_S):
            while len(await open_holds(ahead, key)) > 1:
                await asyncio.sleep(0.1)
        await vendor_apart.release()
    entries = await vendor_apart.quiet()
    records = await assert_books(ahead, key, records=3)
    settled = [record["charge"] for record in records if record["kind"] == "settled"]
    assert settled == [CHARGE]
    assert owed(entries) == CHARGE
    assert sorted(record["kind"] for record in records) == ["lost", "lost", "settled"]
    print(
        f"G7: holds of {LEASE_S} s live {2 * LEASE_S} s with their calls; a killed one's are lost"
    )


async def test_holds_leases_and_resets_follow_the_servers_clock_and_no_gateways(
    gateways: list[Deployment], vendor_apart: Vendor
) -> None:
    await one_window(gateways)
    await vendor_apart.forget()
    await leases(gateways, vendor_apart)
