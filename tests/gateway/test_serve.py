"""The supervisor: what it starts lives as long as it should, and no longer."""

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import orjson
import pytest

from gateway.serve import Child, Role
from tests.gateway.proxy.door import post
from tests.scenarios.deployment import Deployment
from tests.vendor import Vendor


@pytest.fixture
async def tollgate(tmp_path: Path, vendor_apart: Vendor) -> AsyncIterator[Deployment]:
    async with Deployment.started(tmp_path, vendor_port=vendor_apart.port) as deployment:
        yield deployment


async def until(happens: Callable[[], bool], within_s: float = 20) -> None:
    async with asyncio.timeout(within_s):
        while not happens():
            await asyncio.sleep(0.02)


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_a_child_that_dies_is_started_again_and_serves(tollgate: Deployment) -> None:
    (before,) = tollgate.pids("worker")
    os.kill(before, signal.SIGKILL)

    await until(lambda: tollgate.pids("worker") not in ([], [before]))
    await tollgate.until_ready()

    key = await tollgate.new_key()
    async with tollgate.openai(key) as client:
        assert [model async for model in client.models.list()] == []


async def test_a_child_that_is_stopped_while_it_is_started_ends() -> None:
    role = Role(name="idle", arguments=("--bind", "127.0.0.1", "0"), module="http.server")
    child = Child(role, os.environ, output=asyncio.subprocess.DEVNULL)  # noqa: TID251 - a root
    async with asyncio.TaskGroup() as group:
        running = group.create_task(child.run())
        await asyncio.sleep(0)
        await child.stop(10)
        done, _ = await asyncio.wait({running}, timeout=20)
        child.signal(signal.SIGKILL)  # or a failure would leave it
    assert done, "it was never told"


async def test_sigterm_ends_everything_in_good_order(tollgate: Deployment) -> None:
    children = tollgate.pids("worker") + tollgate.pids("control")

    assert await tollgate.stop() == 0

    assert not any(map(is_alive, children))
    assert not list((tollgate.data / "journal").glob("worker-*")), "nothing was left to prove"


async def test_a_call_whose_body_still_comes_at_sigterm_is_answered(
    tollgate: Deployment,
) -> None:
    key = await tollgate.new_key()
    port = tollgate.ports["data"]
    body = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 100_000}]})
    head = f"Authorization: Bearer {key.secret}"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(post(b"", head, "Expect: 100-continue").replace(b": 0\r", b": %d\r" % len(body)))
    await reader.readuntil(b"100 Continue\r\n\r\n")
    writer.write(body[:10])

    tollgate.tell(signal.SIGTERM)
    await until(lambda: not is_open(port))
    writer.write(body[10:])

    assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
    await reader.read()
    writer.close()
    assert await tollgate.gone() == 0


def is_open(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def test_limits_of_connections_hold_for_new_ones_once_they_are_applied(
    tollgate: Deployment,
) -> None:
    tollgate.config["limits"] = {**tollgate.config.get("limits", {}), "connections_max": 1}
    tollgate.write_config()
    tollgate.tell(signal.SIGHUP)

    async with asyncio.timeout(20), AsyncExitStack() as stack:
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", tollgate.ports["data"])
            stack.callback(writer.close)
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
            if b" 503 " in await reader.readline():
                break
            await asyncio.sleep(0.05)


async def test_children_do_not_outlive_a_killed_supervisor_and_the_next_start_recovers(
    tollgate: Deployment,
) -> None:
    key = await tollgate.new_key()
    children = tollgate.pids("worker") + tollgate.pids("control")
    tollgate.kill()

    await until(lambda: not any(map(is_alive, children)))
    await tollgate.start()

    async with tollgate.openai(key) as client:
        answer = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "still here?"}]
        )
    assert answer.usage is not None
    assert "No difference." in tollgate.run("verify")


async def test_a_deployment_that_does_not_stop_is_killed_with_all_that_it_started(
    tollgate: Deployment,
) -> None:
    pids = [tollgate.pid, *tollgate.pids("worker"), *tollgate.pids("control")]
    tollgate.tell(signal.SIGSTOP)

    with pytest.raises(subprocess.TimeoutExpired):
        await tollgate.gone(within_s=0.1)

    await until(lambda: not any(map(is_alive, pids)))


async def test_a_second_start_on_the_same_folder_is_refused_in_one_line(
    tollgate: Deployment,
) -> None:
    said = tollgate.run_failing("serve")

    assert len(said.strip().splitlines()) == 1
    assert "in use by process" in said


async def test_a_port_that_another_program_has_is_refused_in_one_line(
    tmp_path: Path, vendor_apart: Vendor
) -> None:
    listeners = {"data": {"port": vendor_apart.port}}
    with pytest.raises(AssertionError, match=f"cannot listen on 127.0.0.1:{vendor_apart.port}"):
        async with Deployment.started(
            tmp_path, vendor_port=vendor_apart.port, changes={"listeners": listeners}
        ):
            pass


async def test_a_valkey_of_our_own_syncs_as_strictly_as_the_journals(
    tmp_path: Path, vendor_apart: Vendor
) -> None:
    changes = {"ledger": {"durability": "journal-group"}}
    async with (
        Deployment.started(tmp_path, vendor_port=vendor_apart.port, changes=changes) as tollgate,
        tollgate.redis() as redis,
    ):
        assert await redis.config_get("appendfsync") == {"appendfsync": "always"}


async def test_mode_replica_does_not_start_on_servers_that_cannot_keep_it(
    tmp_path: Path, vendor_apart: Vendor, redis_url: str, postgres_url: str
) -> None:
    changes = {
        "ledger": {"durability": "replica"},
        "redis": {"url": redis_url},
        "postgres": {"url": postgres_url},
        "auth": {"pepper": "a pepper of the test's, long enough"},
    }
    with pytest.raises(AssertionError, match="replica: the server has appendfsync everysec"):
        async with Deployment.started(tmp_path, vendor_port=vendor_apart.port, changes=changes):
            pass
