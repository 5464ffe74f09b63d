"""The supervisor: a small process that owns the embedded servers and keeps the others running.

It does none of the work, so that nothing in the work can take it down. Its children are one
`control` process and the workers; each is started again when it dies, and all of them stop when it
does, even by kill -9, because each holds the read end of a pipe that only the supervisor writes.
"""

import asyncio
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from redis.exceptions import RedisError

from gateway.config import ConfigErrors, load, pepper
from gateway.document import Mistake
from gateway.embedded import Embedded
from gateway.preflight import unsafe_runtime
from gateway.settings import Config, Durability, Listener, Shutdown
from ledger.clients import open_redis
from ledger.replicas import contradictions

log = logging.getLogger(__name__)

RESTART_S_MIN, RESTART_S_MAX = 0.1, 5.0
STEADY_S = 10.0  # a child that ran this long starts again without a pause
# A Valkey of our own is as strict with the disk as the journals are.
_VALKEY = {Durability.JOURNAL_GROUP: {"appendfsync": "always"}}

# The C library learns to keep freed blocks as large as it has seen; a worker that has met a few
# bodies of 20 MiB would stay three times as large as they were.
_MALLOC_MMAP = ("MALLOC_MMAP_THRESHOLD_", str(1024 * 1024))


class PortTaken(Exception):
    """Another program listens where we would; the message says where, and what to do."""


class Ports(NamedTuple):
    """Where the listeners of a running deployment are."""

    data: int
    control: int
    metrics: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """One child: the module it runs and its arguments."""

    name: str
    arguments: tuple[str, ...]
    module: str = "gateway.process"


class Child:
    """A process that is to run until it is told to stop; `output` None: it writes where we do."""

    def __init__(
        self, role: Role, environ: Mapping[str, str], *, output: int | None = None
    ) -> None:
        self.role = role
        self._environ, self._output = dict(environ), output
        self._process: asyncio.subprocess.Process | None = None
        self._is_stopping = False
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        """Its process id; None while it does not run."""
        process = self._process
        return None if process is None or process.returncode is not None else process.pid

    async def run(self) -> None:
        """Start it, and again whenever it dies, until `stop` was called and it is gone."""
        pause_s = RESTART_S_MIN
        loop = asyncio.get_running_loop()
        while not self._is_stopping:
            started_s = loop.time()
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                self.role.module,
                *self.role.arguments,
                stdin=subprocess.PIPE,
                stdout=self._output,
                stderr=self._output,
                env=self._environ,
                start_new_session=True,  # a Ctrl-C at the terminal is ours to pass on
            )
            if self._is_stopping:  # `stop` came while it was made, and saw nothing to stop
                self._process.terminate()
            code = await self._process.wait()
            if self._is_stopping:
                return
            self.restarts += 1
            said = {"child": self.role.name, "exit_code": code, "cause": f"{self.role.name} died"}
            log.error("child died", extra=said)
            pause_s = RESTART_S_MIN if loop.time() - started_s > STEADY_S else pause_s * 2
            await asyncio.sleep(min(pause_s, RESTART_S_MAX))

    def signal(self, number: int) -> None:
        """Pass a signal on, if it runs."""
        if self.pid is not None and self._process is not None:
            self._process.send_signal(number)

    async def stop(self, within_s: float) -> None:
        """Ask it to stop, wait, and kill it when it takes too long."""
        self._is_stopping = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(within_s):
                await process.wait()
        except TimeoutError:
            log.warning("child did not stop in time", extra={"child": self.role.name})
            process.kill()
            await process.wait()


async def serve(
    config_path: Path,
    *,
    workers: int | None = None,
    environ: Mapping[str, str],
    on_ready: Callable[[Config, Ports], None] | None = None,
    stop: asyncio.Event | None = None,
    output: int | None = None,
    is_alone: bool = False,
) -> None:
    """Run everything until SIGTERM or SIGINT, or until `stop` is set; a second signal hurries.

    `output` is where the children write their logs; None: where we do. `is_alone`: no other
    deployment may share our ports, as the next one does while the last one drains. Raises
    `ConfigErrors`, `EmbeddedFailed` and `PortTaken`.
    """
    if unsafe := unsafe_runtime():
        raise ConfigErrors(unsafe)
    config = load(config_path, environ)
    if config.ledger.durability is Durability.REPLICA:
        await _see_replicas(config)
    stop = stop or asyncio.Event()
    async with AsyncExitStack() as stack:
        inherited = dict(environ)
        servers: Embedded | None = None
        if config.is_embedded:
            servers = await stack.enter_async_context(
                Embedded(config.data_dir, valkey_settings=_VALKEY.get(config.ledger.durability))
            )
            for name, url in (
                ("TOLLGATE_POSTGRES__URL", servers.urls.postgres),
                ("TOLLGATE_REDIS__URL", servers.urls.redis),
                ("TOLLGATE_REDIS__ADMIN_URL", servers.urls.redis_admin),
                ("TOLLGATE_AUTH__PEPPER", pepper(config, secrets.token_urlsafe(32)).reveal()),
            ):
                inherited.setdefault(name, url)
        ports = _reserve(config, stack, is_alone=is_alone)
        inherited["TOLLGATE_LISTENERS__DATA__PORT"] = str(ports.data)
        inherited["TOLLGATE_LISTENERS__CONTROL__PORT"] = str(ports.control)
        inherited["TOLLGATE_LISTENERS__METRICS__PORT"] = str(ports.metrics)
        inherited.setdefault(*_MALLOC_MMAP)
        config.run_dir.mkdir(parents=True, exist_ok=True)
        count = workers or config.listeners.workers
        children = [Child(role, inherited, output=output) for role in _roles(config_path, count)]
        _publish(config, ports)
        async with asyncio.TaskGroup() as group:
            background = [group.create_task(_obey(children, stop), name="signals")]
            if servers is not None:
                background.append(group.create_task(servers.watch(), name="embedded servers"))
            for child in children:
                group.create_task(child.run(), name=child.role.name)
            if on_ready is not None:
                on_ready(config, ports)
            await stop.wait()
            await _stop_all(children, config.shutdown)
            for task in background:
                task.cancel()


async def _see_replicas(config: Config) -> None:
    """That every end can be on two disks; `ConfigErrors`. If Redis is away, calls will tell."""
    url = config.redis.admin_url or config.redis.url
    assert url is not None, "without it, replica is no valid mode"
    try:
        async with open_redis(url.reveal()) as redis:
            wrong = await contradictions(redis, range(config.ledger.partitions))
    except (RedisError, OSError) as error:
        log.warning("replicas not looked at", extra={"reason": str(error)})
        return
    if wrong:
        raise ConfigErrors([Mistake(0, "ledger.durability", f"replica: {one}") for one in wrong])


def _roles(config_path: Path, workers: int) -> list[Role]:
    """The control process first: it is also the last to stop."""
    config = str(config_path)
    return [
        Role(name="control", arguments=("control", config, str(workers))),
        *(
            Role(name=f"worker-{number}", arguments=("worker", config, str(number), str(workers)))
            for number in range(workers)
        ),
    ]


def stop_s_max(limits: Shutdown) -> float:
    """The longest that the processes take to stop, seconds: who kills them must wait longer.

    Servers of our own stop after them, within `gateway.server_process.STOP_S_MAX`.
    """
    return limits.worker_s_max + limits.control_s_max


async def _stop_all(children: list[Child], limits: Shutdown) -> None:
    control, *workers = children
    # The workers first: their last ends are flushed by the control process.
    await asyncio.gather(*(worker.stop(limits.worker_s_max) for worker in workers))
    await control.stop(limits.control_s_max)


async def _obey(children: list[Child], stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    hurry = asyncio.Event()

    def ending() -> None:
        if stop.is_set():
            hurry.set()
        stop.set()

    loop.add_signal_handler(signal.SIGTERM, ending)
    loop.add_signal_handler(signal.SIGINT, ending)
    loop.add_signal_handler(signal.SIGHUP, _tell, children, signal.SIGHUP)
    try:
        await hurry.wait()
        # Holds and journals make a fast exit safe: what was open is ended by the next start.
        _tell(children, signal.SIGTERM)
        await asyncio.Event().wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)


def _tell(children: list[Child], number: int) -> None:
    for child in children:
        child.signal(number)


def _reserve(config: Config, stack: AsyncExitStack, *, is_alone: bool) -> Ports:
    """Fix the ports that were left open, and see that the others are free; `PortTaken`."""
    chosen = []
    for name in Ports._fields:
        listener: Listener = getattr(config.listeners, name)
        if listener.port == 0:
            chosen.append(reserve_port(listener.host, stack))
        else:
            _see_it_is_free(name, listener, is_alone=is_alone)
            chosen.append(listener.port)
    return Ports(*chosen)


def reserve_port(host: str, stack: ExitStack | AsyncExitStack) -> int:
    """A free port for children that reuse ports. It stays bound, so that nobody else gets it."""
    held = stack.enter_context(_socket(host))
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind((host, 0))
    port: int = held.getsockname()[1]
    return port


def _see_it_is_free(name: str, listener: Listener, *, is_alone: bool) -> None:
    with _socket(listener.host) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if not is_alone:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            probe.bind((listener.host, listener.port))
        except OSError as error:
            raise PortTaken(
                f"cannot listen on {listener.host}:{listener.port}: {error.strerror}. Stop what is"
                f" there, or choose another with TOLLGATE_LISTENERS__{name.upper()}__PORT=..."
            ) from error


def _socket(host: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.socket(family, socket.SOCK_STREAM)


def _publish(config: Config, ports: Ports) -> None:
    """Tell other commands on this machine where we are."""
    path = config.run_dir / "serve.json"
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps({"pid": os.getpid(), **ports._asdict()}))
    draft.replace(path)
