"""A master behind Sentinels is killed under load, or replaced while it lives, and all is exact."""

import time
from pathlib import Path

import pytest

from ledger.fcall import execute
from tests.ledger.cluster import NODE_TIMEOUT_MS, Node, Watched, until
from tests.scenarios.machines import Machines
from tests.scenarios.scale import LONG
from tests.vendor import Vendor

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(900 if LONG else 120)]

FAILOVERS = 10 if LONG else 1
BACK_S_MAX = 15.0


async def test_calls_are_answered_again_within_seconds_of_the_death_of_a_watched_master(
    folder: Path, vendor_apart: Vendor
) -> None:
    back_s: list[float] = []
    async with (
        Watched.started() as watched,
        Machines.started(folder, vendor_apart, redis_url=watched.url) as machines,
    ):
        async with machines.loaded():
            master = await watched.master()
            for number in range(FAILOVERS):
                if number:
                    await master.start()
                    await until(watched.is_whole)
                master = await watched.master()
                await machines.use_up()
                began_s = time.monotonic()
                master.kill()
                await machines.everybody_answers(within_s=BACK_S_MAX)
                back_s.append(time.monotonic() - began_s)
                assert await watched.master() is not master
        told = await machines.assert_exact()
    print(
        f"\nT4 sentinel: {FAILOVERS} masters killed, everybody answered again after"
        f" {max(back_s):.1f} s at most, of which {NODE_TIMEOUT_MS / 1_000:.0f} s until they are"
        f" missed; {told}"
    )


async def test_a_master_that_was_replaced_and_lives_admits_nobody_for_long(
    folder: Path, vendor_apart: Vendor
) -> None:
    async with (
        Watched.started() as watched,
        Machines.started(folder, vendor_apart, redis_url=watched.url) as machines,
    ):
        async with machines.loaded():
            await machines.use_up()
            began_s = time.monotonic()
            before = await _clients(await watched.master())
            old, new = await watched.split()

            async def is_left() -> bool:
                return not before & await _clients(old)

            await until(is_left)
            assert await old.role() == "master", "it does not know"
            await machines.everybody_answers(within_s=BACK_S_MAX)
            back_s = time.monotonic() - began_s
            assert await watched.master() is new
        told = await machines.assert_exact()
    print(f"\nT4 split: everybody answered at the new master after {back_s:.1f} s; {told}")


async def _clients(node: Node) -> set[str]:
    """The ids of its connections, but for ours and those of replicas and Sentinels."""
    clients = await execute(node.client, "CLIENT LIST")
    return {
        one["id"]
        for one in clients
        if one["flags"] != "S"
        and not one["name"].startswith("sentinel")
        and one["cmd"] != "client|list"
    }
