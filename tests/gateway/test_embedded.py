"""Tests of gateway/embedded.py, on real servers, real processes and real kills."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import asyncpg
import pytest
import redis.asyncio
import redis.exceptions

from gateway import embedded
from gateway.embedded import Embedded, EmbeddedFailed, Urls, ask_postgres, urls
from gateway.server_process import Health
from tests.ledger.by_hand import dying_postgres

QUICK = {"fsync": "off"}
ROOT = Path(__file__).parents[2]

# What a gateway does with its servers, as a process that can be killed: it says "up" and stays.
GATEWAY = """
import asyncio, sys
from pathlib import Path
from gateway import embedded
from gateway.embedded import Embedded

async def main() -> None:
    async with Embedded(Path(sys.argv[1]), postgres_settings={"fsync": "off"}) as servers:
        print("up", *servers.pids.values(), flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


@contextmanager
def gateway(folder: Path, **environment: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A process that holds the servers of `folder`, and the pids of those."""
    process = subprocess.Popen(
        [sys.executable, "-c", GATEWAY, str(folder)],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout
        first = process.stdout.readline().split()
        assert first[:1] == ["up"]
        yield process, [int(pid) for pid in first[1:]]
        if process.poll() is None:
            process.communicate()


@asynccontextmanager
async def watched(servers: Embedded) -> AsyncIterator[None]:
    task = asyncio.ensure_future(servers.watch())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # Dead, but not yet collected by whoever adopted it.
        return ") Z " not in Path("/proc", str(pid), "stat").read_text()
    except ProcessLookupError:
        return False


async def write(at: Urls, value: str) -> None:
    """Leave a mark in both servers."""
    connection = await asyncpg.connect(at.postgres)
    await connection.execute("CREATE TABLE IF NOT EXISTS mark (value text)")
    await connection.execute("INSERT INTO mark VALUES ($1)", value)
    await connection.close()
    async with redis.asyncio.Redis.from_url(at.redis) as client:
        await client.sadd("tg:marks", value)
        # The append-only file is written at the end of the event loop's round, before the reply.


async def marks(at: Urls) -> set[tuple[str, ...]]:
    """What `write` left: the same in both servers, if nothing was lost."""
    connection = await asyncpg.connect(at.postgres)
    rows = await connection.fetch("SELECT value FROM mark")
    await connection.close()
    async with redis.asyncio.Redis.from_url(at.redis, decode_responses=True) as client:
        members = await client.smembers("tg:marks")
    return {tuple(sorted(row["value"] for row in rows)), tuple(sorted(members))}


async def until_replaced(servers: Embedded, pids: dict[str, int]) -> None:
    async with asyncio.timeout(10):
        while servers.pids.keys() != pids.keys() or set(servers.pids.values()) & {*pids.values()}:
            await asyncio.sleep(0.01)


async def until_served(at: Urls) -> None:
    """Wait for servers that were just restarted."""
    async with asyncio.timeout(10):
        while True:
            try:
                await marks(at)
            except (OSError, asyncpg.PostgresError, redis.exceptions.ConnectionError):
                await asyncio.sleep(0.01)
            else:
                return


async def test_data_and_addresses_survive_a_stop_and_a_start(tmp_path: Path) -> None:
    async with Embedded(tmp_path, postgres_settings=QUICK) as servers:
        first = servers.urls
        await write(first, "kept")
        pids = servers.pids
    assert not any(is_alive(pid) for pid in pids.values())
    async with Embedded(tmp_path, postgres_settings=QUICK) as servers:
        assert servers.urls == first == urls(tmp_path)
        assert await marks(first) == {("kept",)}


async def test_a_second_start_on_the_same_folder_is_refused_and_says_by_whom(
    tmp_path: Path,
) -> None:
    with gateway(tmp_path) as (process, _), pytest.raises(EmbeddedFailed) as refusal:
        await Embedded(tmp_path).__aenter__()
    assert f"in use by process {process.pid}: stop that one first" in str(refusal.value)


async def test_a_killed_server_is_restarted_with_its_data(tmp_path: Path) -> None:
    async with Embedded(tmp_path, postgres_settings=QUICK) as servers, watched(servers):
        await write(servers.urls, "kept")
        pids = servers.pids
        for pid in pids.values():
            os.kill(pid, signal.SIGKILL)
        await until_replaced(servers, pids)
        await until_served(servers.urls)
        assert await marks(servers.urls) == {("kept",)}


async def test_a_watch_ends_when_it_is_cancelled_wherever_its_probe_is(servers: Urls) -> None:
    async def look() -> None:
        while True:
            await embedded._ask_valkey(servers.redis_admin)

    for step in range(80):
        task = asyncio.ensure_future(look())
        for _ in range(step):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=5)
        assert done, f"still looking; cancelled at step {step}"


async def test_the_next_start_recovers_from_a_kill_of_the_whole_gateway(tmp_path: Path) -> None:
    with gateway(tmp_path) as (process, pids):
        await write(urls(tmp_path), "kept")
        process.kill()
        process.wait()
    async with Embedded(tmp_path, postgres_settings=QUICK) as servers:
        assert await marks(servers.urls) == {("kept",)}
        assert not set(pids) & set(servers.pids.values())
        assert not any(is_alive(pid) for pid in pids)


async def test_a_cluster_that_was_half_made_is_made_anew(tmp_path: Path) -> None:
    half = tmp_path / "postgres.new"
    half.mkdir()
    (half / "PG_VERSION").write_text("18")
    async with Embedded(tmp_path, postgres_settings=QUICK) as servers:
        await write(servers.urls, "works")
    assert not half.exists()


async def test_a_path_too_long_for_a_socket_is_shortened_and_the_help_removed(
    tmp_path: Path,
) -> None:
    folder = tmp_path / ("long" * 20) / ("longer" * 10)
    async with Embedded(folder, postgres_settings=QUICK) as servers:
        await write(servers.urls, "works")
        assert urls(folder) == servers.urls
        help_at = (folder / "scratch").readlink()
    assert not help_at.exists()
    assert not (folder / "scratch").is_symlink()


async def test_a_start_leaves_nothing_outside_its_folder(tmp_path: Path) -> None:
    home, temporary, data = tmp_path / "home", tmp_path / "tmp", tmp_path / "x" / "data"
    for folder in (home, temporary, data.parent):
        folder.mkdir(mode=0o700)
    users = Path("/etc/passwd").read_bytes()
    with gateway(data, HOME=str(home), TMPDIR=str(temporary)):
        await write(urls(data), "works")
    assert not [*home.iterdir(), *temporary.iterdir()]
    assert [path.name for path in data.parent.iterdir()] == ["data"]
    assert data.parent.stat().st_mode & 0o777 == 0o700
    assert data.stat().st_mode & 0o777 == 0o700
    assert Path("/etc/passwd").read_bytes() == users


async def test_only_the_right_password_opens_the_servers(tmp_path: Path) -> None:
    async with Embedded(tmp_path, postgres_settings=QUICK) as servers:
        password = servers.urls.postgres.split(":")[2].split("@")[0]
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(servers.urls.postgres.replace(password, "wrong"))
        socket = servers.urls.redis.split("@")[1]
        async with redis.asyncio.Redis.from_url(f"unix://{socket}") as client:
            with pytest.raises(redis.exceptions.RedisError, match="authenticated"):
                await client.get("tg:x")
    assert (tmp_path / "passwords.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "command",
    [
        "CONFIG GET dir",
        "FLUSHALL",
        "FLUSHDB",
        "FUNCTION LOAD x",
        "FUNCTION FLUSH",
        "FUNCTION DELETE tollgate",
        "EVAL 'return1' 0",
        "SCRIPT FLUSH",
        "SHUTDOWN",
        "ACL LIST",
        "KEYS *",
        "MODULE LIST",
        "REPLICAOF NO ONE",
        "BGREWRITEAOF",
        "CLIENT KILL TYPE normal",
        "SET other 1",
    ],
)
async def test_the_data_plane_may_not(servers: Urls, command: str) -> None:
    async with redis.asyncio.Redis.from_url(servers.redis) as client:
        with pytest.raises(redis.exceptions.NoPermissionError):
            await client.execute_command(*command.split())  # type: ignore[no-untyped-call] # redis types no commands


async def test_nobody_may_debug(servers: Urls) -> None:
    for url in (servers.redis, servers.redis_admin):
        async with redis.asyncio.Redis.from_url(url) as client:
            with pytest.raises(redis.exceptions.ResponseError, match=r"not allowed|no permissions"):
                await client.execute_command("DEBUG", "SLEEP", "0")  # type: ignore[no-untyped-call] # redis types no commands


async def test_the_data_plane_may_call_functions_and_read_its_keys(
    servers: Urls, redis_url: str
) -> None:
    library = (
        "#!lua name=probe\n"
        "redis.register_function('probe', function(keys) return redis.call('INCR', keys[1]) end)"
    )
    async with redis.asyncio.Redis.from_url(redis_url) as admin:
        await admin.function_load(library)
    async with redis.asyncio.Redis.from_url(servers.redis) as client:
        assert await client.fcall("probe", 1, "tg:{p00}:x") == 1
        assert await client.get("tg:{p00}:x") == b"1"
        assert await client.publish("tg:keys", "x") == 0


async def test_money_is_safe_by_the_settings_of_the_servers(tmp_path: Path) -> None:
    async with Embedded(tmp_path) as servers:
        connection = await asyncpg.connect(servers.urls.postgres)
        for name in ("fsync", "full_page_writes", "synchronous_commit", "data_checksums"):
            assert await connection.fetchval("SELECT current_setting($1)", name) == "on"
        assert not await connection.fetchval(
            "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"
        )
        await connection.close()
        async with redis.asyncio.Redis.from_url(
            servers.urls.redis_admin, decode_responses=True
        ) as client:
            settings = await client.config_get("append*", "maxmemory-policy", "port")
    assert settings["appendonly"] == "yes"
    assert settings["appendfsync"] == "everysec"
    assert settings["maxmemory-policy"] == "noeviction"
    assert settings["port"] == "0"


async def test_a_server_that_dies_while_it_is_probed_is_silent(tmp_path: Path) -> None:
    async with dying_postgres(tmp_path) as url:
        assert await ask_postgres(url) is Health.SILENT


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to drop")
async def test_the_servers_of_root_are_not_root(tmp_path: Path) -> None:
    async with Embedded(tmp_path, postgres_settings=QUICK) as servers:
        owners = {Path("/proc", str(pid)).stat().st_uid for pid in servers.pids.values()}
    assert 0 not in owners


async def test_data_without_its_passwords_is_refused(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    with pytest.raises(EmbeddedFailed, match=r"passwords.json is missing"):
        await Embedded(tmp_path).__aenter__()


def test_a_folder_without_servers_has_no_addresses(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedFailed, match="no servers were ever started"):
        urls(tmp_path)
