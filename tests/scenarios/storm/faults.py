"""The faults of a storm. Each says if it counts: a call was in flight, the victim dead or still.

A server's copy, taken while it ran, is what a replica far behind would be promoted with.
"""

import asyncio
import os
import random
import shutil
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisError

from ledger.fcall import key_names
from ledger.functions import Partition
from tests.scenarios.deployment import Deployment
from tests.scenarios.outages import children
from tests.scenarios.storm.load import Load
from tests.scenarios.workers import peers

_CONFIRMED_S = 10.0
_A_LINE = b"XADD"  # what an end of a call is in the server's log of commands
_STOPPED_S = (0.2, 2.5)
_ADOPTED_S = 10.0  # until others have told what a dead worker's journal has, whatever is hit next
_TOLD_S = 3.0  # until a worker that was stopped has held again what it serves
_AWAY = (RedisError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError)
_POISONS: tuple[dict[Any, Any], ...] = (
    {b"x": b"garbage"},
    {b"k": b"settled", b"m": b"1", b"w": b"\xff\xfe", b"c": b"1"},
    {b"k": b"settled", b"m": b"0", b"w": b"nobody", b"c": b"99999999999999999999"},
    {b"k": b"base", b"w": b"", b"b": b"ten", b"v": b"-1", b"a": b""},
)


class Faults:
    """What can be done to one deployment. A fault returns True if it counts."""

    def __init__(self, tollgate: Deployment, load: Load, chance: random.Random) -> None:
        self._tollgate, self._load, self._chance = tollgate, load, chance
        self._copy = tollgate.folder / "older"
        self._supervisor = tollgate.pid
        self.kinds: dict[str, Callable[[], Awaitable[bool]]] = {
            "kill worker": lambda: self._kill_child("worker"),
            "kill control": lambda: self._kill_child("control"),
            "kill valkey": lambda: self._kill_server("valkey"),
            "kill postgres": lambda: self._kill_server("postgres"),
            "flushall": self._flush_all,
            "stale failover": self._fail_over,
            "stop worker": lambda: self._stop_child("worker"),
            "stop control": lambda: self._stop_child("control"),
            "stop valkey": lambda: self._stop_server("valkey"),
            "stop postgres": lambda: self._stop_server("postgres"),
            "poison": self._poison,
        }

    async def strike(self, kind: str) -> bool:
        """Do it. False: it does not count, because nothing was in flight or nobody was hit."""
        try:
            return await self.kinds[kind]()
        except _AWAY:  # what an earlier fault has hit was not back yet
            return False

    def keep_copy(self) -> None:
        """Remember Valkey's data as they are now, for a later failover."""
        source = self._tollgate.data / "valkey" / "appendonlydir"
        fresh = self._copy.with_name("older.new")
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            shutil.copytree(source, fresh)
        except (OSError, shutil.Error):  # it is being rewritten, or not there yet
            return
        shutil.rmtree(self._copy, ignore_errors=True)
        fresh.rename(self._copy)

    # Processes of ours

    async def _kill_child(self, role: str) -> bool:
        pid = self._child(role)
        if pid is None or not self._is_hit(role, pid):
            return False
        with self._astray(role, pid, known_after_s=_ADOPTED_S):
            os.kill(pid, signal.SIGKILL)
            return await _until(lambda: _state(pid) in ("Z", "X", ""))

    async def _stop_child(self, role: str) -> bool:
        pid = self._child(role)
        if pid is None or not self._is_hit(role, pid):
            return False
        with self._astray(role, pid, known_after_s=_TOLD_S):
            return await self._still([pid])

    @contextmanager
    def _astray(self, role: str, pid: int, *, known_after_s: float) -> Iterator[None]:
        """The calls of this worker are known to it alone meanwhile, and for so long afterwards."""
        ports = peers(pid, self._tollgate.ports["data"]) if role == "worker" else set()
        since_s = time.monotonic()
        try:
            yield
        finally:
            until_s = time.monotonic() + known_after_s
            self._load.go_astray(ports, since_s=since_s, until_s=until_s)

    def _child(self, role: str) -> int | None:
        pids = self._tollgate.pids(role)
        return self._chance.choice(pids) if pids else None

    def _is_hit(self, role: str, pid: int) -> bool:
        """Whether a call is in flight; for a worker: one of those that it serves."""
        if role != "worker":
            return bool(self._load.in_flight)
        return bool(peers(pid, self._tollgate.ports["data"]) & self._load.in_flight)

    # The servers

    async def _kill_server(self, name: str) -> bool:
        pid = self._server(name)
        if not self._load.in_flight or not self._is_server(pid, name):
            return False
        os.kill(pid, signal.SIGKILL)
        return await _until(lambda: _state(pid) in ("Z", "X", ""))

    async def _stop_server(self, name: str) -> bool:
        pid = self._server(name)
        if not self._load.in_flight or not self._is_server(pid, name):
            return False
        return await self._still([pid, *children(pid)])

    async def _still(self, pids: list[int]) -> bool:
        """Stop processes for a while."""
        try:
            for pid in pids:
                _signal(pid, signal.SIGSTOP)
            is_still = await _until(lambda: _state(pids[0]) == "T")
            is_still = is_still and bool(self._load.in_flight)
            await asyncio.sleep(self._chance.uniform(*_STOPPED_S))
        finally:
            for pid in pids:
                _signal(pid, signal.SIGCONT)
        return is_still

    def _server(self, name: str) -> int:
        return int((self._tollgate.data / f"{name}.lock").read_text() or 0)

    def _is_server(self, pid: int, name: str) -> bool:
        """Whether this process is the server, or has ended and given its number away."""
        try:
            return (self._tollgate.data / name).samefile(f"/proc/{pid}/cwd")
        except OSError:
            return False

    async def _flush_all(self) -> bool:
        async with self._redis() as redis:
            had = bool(self._load.in_flight)
            return bool(await redis.flushall()) and had

    async def _fail_over(self) -> bool:
        """Kill Valkey and put older data in its place before it can start again.

        It counts only if an end of a call is among what the older data lack.
        """
        pid = self._server("valkey")
        there = self._tollgate.data / "valkey" / "appendonlydir"
        if (
            not self._copy.exists()
            or not self._load.in_flight
            or not self._is_server(pid, "valkey")
        ):
            return False
        owner = there.stat()
        try:
            _signal(self._supervisor, signal.SIGSTOP)  # or it would start the next one at once
            await _until(lambda: _state(self._supervisor) == "T")
            os.kill(pid, signal.SIGKILL)
            is_dead = await _until(lambda: _state(pid) in ("Z", "X", ""))
            lacks = _lacking(self._copy, there)
            shutil.rmtree(there)
            shutil.copytree(self._copy, there)
            for path in (there, *there.rglob("*")):
                os.chown(path, owner.st_uid, owner.st_gid)
        finally:
            _signal(self._supervisor, signal.SIGCONT)
        return is_dead and _A_LINE in lacks

    async def _poison(self) -> bool:
        count = self._tollgate.config["ledger"]["partitions"]
        async with self._redis() as redis:
            for number in self._chance.sample(range(count), count):
                state = await Partition(redis, number).state()
                if self._load.in_flight and state.is_active():
                    log = key_names(number, state.generation)[-1]
                    await redis.xadd(log, self._chance.choice(_POISONS))
                    return True
        return False

    @asynccontextmanager
    async def _redis(self) -> AsyncIterator[Redis]:
        client = self._tollgate.redis()
        try:
            async with asyncio.timeout(2.0):
                yield client
        finally:
            await client.aclose()


async def _until(is_so: Callable[[], bool]) -> bool:
    async with asyncio.timeout(_CONFIRMED_S):
        while not is_so():
            await asyncio.sleep(0.002)
    return True


def _lacking(older: Path, newer: Path) -> bytes:
    """What was appended to the newer log of commands since the older was copied from it."""
    found = b""
    for path in newer.glob("*.incr.aof"):
        before = older / path.name
        with path.open("rb") as file:
            file.seek(before.stat().st_size if before.exists() else 0)
            found += file.read()
    return found


def _state(pid: int) -> str:
    """The letter that the kernel gives it; "" when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return ""


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
