"""A store of keys that is away never makes a good key wrong, nor a wrong one good."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from uuid import UUID

import pytest

from gateway.keys import issue
from gateway.management import api_keys
from tests.scenarios.caller import CHAT, asks, post
from tests.scenarios.deployment import Deployment, Key
from tests.scenarios.outages import Server, until
from tests.scenarios.scale import LONG
from tests.vendor import Vendor

pytestmark = pytest.mark.scenario
RECOVERED_S_MAX = 5.0
# What is away, whether the worker has seen the keys, and what a good one is answered.
ROUNDS: tuple[tuple[tuple[str, ...], str, int], ...] = (
    (("postgres",), "cold", 200),
    (("valkey",), "warm", 503),
    (("valkey", "postgres"), "cold", 503),
)
if LONG:
    ROUNDS = tuple(
        (servers, state, expected) for servers, _, expected in ROUNDS for state in ("warm", "cold")
    )


@asynccontextmanager
async def paused(tollgate: Deployment, servers: tuple[str, ...]) -> AsyncIterator[None]:
    """All of them are silent."""
    async with AsyncExitStack() as stack:
        for name in servers:
            await stack.enter_async_context(Server(tollgate, name).paused())
        yield


async def answers(tollgate: Deployment, keys: dict[str, Key], body: object) -> dict[str, int]:
    """What each key is answered, all asked at once."""
    async with asyncio.TaskGroup() as group:
        asked = {
            name: group.create_task(post(tollgate, key, CHAT, body))  # type: ignore[arg-type]  # a mapping
            for name, key in keys.items()
        }
    return {name: task.result().status for name, task in asked.items()}


async def test_no_outage_turns_a_good_key_away_or_lets_a_wrong_one_in(
    folder: Path, vendor_apart: Vendor
) -> None:
    figures = []
    async with Deployment.started(folder, vendor_port=vendor_apart.port) as tollgate:
        model = await vendor_apart.script("e3", output_tokens=1)
        body = asks(CHAT, model, max_tokens=5)
        good, revoked = await tollgate.new_key(), await tollgate.new_key()
        made_up = Key(secret=issue(os.urandom(32)).secret.reveal(), id="", organization_id="")
        async with tollgate.stores() as stores:
            await api_keys.revoke(stores.pool, stores.cache, UUID(revoked.id))
        keys = {"good": good, "revoked": revoked, "made up": made_up}

        async def is_well() -> bool:
            return await answers(tollgate, keys, body) == {
                "good": 200,
                "revoked": 401,
                "made up": 401,
            }

        await until(is_well, within_s=RECOVERED_S_MAX)
        for servers, state, expected in ROUNDS:
            if state == "cold":
                (before,) = tollgate.pids("worker")
                await tollgate.kill_process(before)
                await tollgate.until_ready()
                assert tollgate.pids("worker") != [before]
            async with paused(tollgate, servers):
                found = [await answers(tollgate, keys, body) for _ in range(3)]
            back_s = await until(is_well, within_s=RECOVERED_S_MAX)
            for each in found:
                assert each["good"] == expected, f"{servers}, {state}: {found}"
                assert {each["revoked"], each["made up"]} <= {401, 503}
            figures.append(f"{'+'.join(servers)} {state} {expected}, well in {back_s:.1f} s")
    print(f"E3: a good key: {'; '.join(figures)}; never 401; revoked and made-up ones never 200")
