"""The release before this one and this one side by side, there and back: no call fails, exact."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.embedded import urls
from tests.previous import unpacked
from tests.scenarios.deployment import Deployment, Key
from tests.scenarios.fleet import Fleet, Traffic, traffic
from tests.scenarios.locks import Waits
from tests.scenarios.scale import LONG
from tests.scenarios.test_rolling import assert_exact, models
from tests.vendor import Vendor

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(900)]
ROUNDS = 5 if LONG else 1
LOCK_WAIT_S_MAX = 2.0  # a migration gives up after 1 s and tries again; slack for busy machines
NOW = Path.cwd()
_WAITING = """
    SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'dead_letter'::regclass AND NOT granted)
"""


async def moved(fleet: Fleet, gateway: Deployment, source: Path, calls: Traffic) -> None:
    """The gateway runs from another tree, on the disk it had."""
    await calls.until(40)
    assert await gateway.stop() == 0
    gateway.source = source
    await gateway.start()
    await fleet.until_balanced()
    await calls.until(40)


async def test_an_upgrade_and_the_way_back_fail_no_call_and_stay_exact(
    folder: Path, vendor_apart: Vendor
) -> None:
    asked, before = await models(vendor_apart), unpacked(folder / "before")
    port = vendor_apart.port
    async with Fleet.started(folder, vendor_port=port, count=2, source=before) as fleet:
        one, other = fleet.gateways
        key = await asyncio.to_thread(bought, one)
        async with (
            traffic(fleet.port, key, asked) as calls,
            Waits.seen(urls(fleet.bank.servers).postgres) as waits,
        ):
            await calls.until(40)
            await killed_in_mid_migration(one)
            await calls.until(40)
            migrated = await asyncio.to_thread(migrate, one)
            for _ in range(ROUNDS):
                for gateway in (one, other):
                    await moved(fleet, gateway, NOW, calls)
                for gateway in (other, one):
                    await moved(fleet, gateway, before, calls)
        assert not calls.failed, f"{len(calls.failed)} calls failed: {calls.failed[:5]}"
        one.source = NOW  # whose `verify` knows the new tables
        count = await assert_exact(fleet, vendor_apart, key, calls)
    assert waits.longest_s < LOCK_WAIT_S_MAX
    print(
        f"T22, G4: {migrated.rstrip('.')} under load after a kill -9 in the middle, then 2 gateways"
        f" to this release and back x{ROUNDS}: {count} calls, 0 failed, exact;"
        f" slowest short call {calls.slowest_s[asked[0]]:.1f} s,"
        f" longest wait for a lock {waits.longest_s * 1000:.0f} ms"
    )


def bought(gateway: Deployment) -> Key:
    """A key with credit and a budget, made by the release that the gateway is of."""
    owner = gateway.run("org", "create", "before").strip()
    (key,) = json.loads(gateway.run("key", "create", owner, "k", "--budget", "900", "--json"))
    gateway.run("credit", "grant", owner, "1000", "--reason", "test")
    return Key(secret=key["key"], id=key["id"], organization_id=owner)


async def killed_in_mid_migration(gateway: Deployment) -> None:
    """kill -9 of this release's `tollgate migrate` while it waits for a table that is in use."""
    user = await gateway.postgres()
    try:
        async with user.transaction():
            await user.execute("LOCK TABLE dead_letter IN ROW EXCLUSIVE MODE")
            process = subprocess.Popen(
                [sys.executable, "-m", "gateway.cli", "--config", gateway.config_path, "migrate"],
                cwd=NOW,
            )
            async with asyncio.timeout(30):
                while not await user.fetchval(_WAITING):
                    await asyncio.sleep(0.01)
            process.kill()
            process.wait()
    finally:
        await user.close()


def migrate(gateway: Deployment) -> str:
    """This release's `tollgate migrate` on the servers of a gateway of the release before."""
    gateway.source, before = NOW, gateway.source
    try:
        return gateway.run("migrate").strip()
    finally:
        gateway.source = before
