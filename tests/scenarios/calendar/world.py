"""A deployment and its servers at a time of one's own: Postgres, Valkey and every process of ours.

Whatever reads the wall clock reads it through `clock.c`, which a C compiler makes for this machine.
Nothing of the product is changed or replaced, and seconds last as long as they do.
"""

import mmap
import shutil
import signal
import struct
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.embedded import Embedded, Urls, account_of, ask_postgres, urls
from gateway.server_binaries import placed
from gateway.server_process import Health, ServerProcess
from tests.scenarios.deployment import Deployment, configured, shared
from tests.scenarios.management.installation import Installation
from tests.vendor import Vendor

_SOURCE = Path(__file__).with_name("clock.c")
_POSTGRES = {"listen_addresses": "", "unix_socket_directories": ".", "timezone": "UTC"}
_VALKEY = b'port 0\nunixsocket valkey.sock\nunixsocketperm 700\nappendonly yes\nsave ""\n'


class Clock:
    """The wall clock of a world."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("there is no C compiler (cc) here to make the clock with")
        self._library, self._path = folder / "clock.so", folder / "ahead"
        flags = ("-O2", "-shared", "-fPIC", "-o", str(self._library))
        subprocess.run([compiler, *flags, str(_SOURCE)], check=True)
        self._path.write_bytes(bytes(8))
        for path in (self._library, self._path):
            path.chmod(0o755)  # the servers run as somebody else
        with self._path.open("r+b") as file:
            self._ahead = mmap.mmap(file.fileno(), 8)

    @property
    def environ(self) -> dict[str, str]:
        """What a process has this clock by."""
        return {"LD_PRELOAD": str(self._library), "CLOCK_FILE": str(self._path)}

    def now(self) -> datetime:
        """What it says."""
        (ahead_ns,) = struct.unpack("=q", self._ahead[:])
        return _real() + timedelta(microseconds=ahead_ns / 1000)

    def set(self, moment: datetime) -> None:
        """Put it there, for every process at once; it goes on from there."""
        ahead_s = (moment - _real()).total_seconds()
        self._ahead[:] = struct.pack("=q", int(ahead_s * 1e9))


def _real() -> datetime:
    return datetime.fromtimestamp(time.time(), UTC)  # noqa: TID251 - a test is its own root


class _There(Deployment):
    """A deployment in which it is another time."""

    clock: Clock

    def environ(self) -> dict[str, str]:
        return {**super().environ(), **self.clock.environ}


@asynccontextmanager
async def world_at(
    moment: datetime, folder: Path, vendor: Vendor
) -> AsyncIterator[tuple[Installation, Clock]]:
    """One machine with one worker, where it is `moment` at first."""
    await vendor.forget()
    async with AsyncExitStack() as stack:
        # Every user can look into it, unlike into the test's own.
        open_to_all = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tg-clock-")))
        open_to_all.chmod(0o755)
        clock = Clock(open_to_all)
        clock.set(moment)
        stores = await stack.enter_async_context(_servers(folder / "stores", clock.environ))
        machine = _There(folder, configured(folder, vendor.port, stores), workers=1)
        machine.clock = clock
        machine.write_config()
        stack.push_async_callback(machine.stop)
        await machine.start()
        async with AsyncExitStack() as visitors:
            yield Installation([machine], visitors), clock


@asynccontextmanager
async def _servers(folder: Path, environ: Mapping[str, str]) -> AsyncIterator[dict[str, object]]:
    """Both servers with this environment; the settings that lead to them."""
    async with Embedded(folder):
        pass  # their folders are made, and their passwords
    at, account = urls(folder), account_of(folder)
    redis = f"unix://{at.redis.partition('@')[2]}"
    preload = ["/usr/bin/env", *(f"{name}={value}" for name, value in environ.items())]
    with placed(folder, account) as binaries:
        servers = [
            ServerProcess(
                folder / "postgres",
                [*preload, str(binaries.postgres), "-D", "/proc/self/cwd", *_options()],
                probe=lambda: ask_postgres(at.postgres_admin),
                account=account,
                stop_signal=signal.SIGINT,
            ),
            ServerProcess(
                folder / "valkey",
                [*preload, str(binaries.valkey), "-"],
                config=_VALKEY,
                probe=lambda: _ask(redis),
                account=account,
                stop_signal=signal.SIGTERM,
            ),
        ]
        try:
            for server in servers:
                await server.start()
            yield _settings(at, redis)
        finally:
            for server in servers:
                await server.stop()


def _options() -> list[str]:
    return [word for name, value in _POSTGRES.items() for word in ("-c", f"{name}={value}")]


def _settings(at: Urls, redis: str) -> dict[str, object]:
    return shared(at, redis={"url": redis, "admin_url": redis})


async def _ask(url: str) -> Health:
    client = Redis.from_url(url)
    try:
        await client.ping()
    except RedisError as error:
        raise OSError(str(error)) from error
    finally:
        await client.aclose()
    return Health.READY
