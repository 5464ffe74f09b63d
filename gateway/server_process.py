"""One server process of ours: one at a time per folder, dying with us, restarted when it dies.

The server inherits a lock on a file beside its folder. So whoever starts the next one knows for
certain whether the last one, or a child of it, is still there, even if we were killed meanwhile.
"""

import asyncio
import ctypes
import fcntl
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, suppress
from enum import Enum
from pathlib import Path
from typing import IO, NamedTuple, Never, TypedDict

log = logging.getLogger(__name__)

START_S_MAX = 120.0  # a long crash recovery counts as starting
STOP_S_MAX = 15.0  # a fast shutdown writes a checkpoint
PROBE_EVERY_S = 2.0
PROBE_S_MAX = 3.0
SILENCES_MAX = 4  # this many probes unanswered in a row: the server hangs and is killed
POLL_S = 0.02
RESTART_DELAY_S_MAX = 5.0
LOG_BYTES_MAX = 4 * 1024 * 1024  # a longer log is set aside at the next start, one generation deep

_PR_SET_PDEATHSIG = 1


class ServerFailed(Exception):
    """A server cannot be run here; the message says why and what to do."""


class Account(NamedTuple):
    """The unprivileged user that root runs the servers as."""

    uid: int
    gid: int


class Identity(TypedDict):
    """What every process of a server is started with."""

    user: int | None
    group: int | None
    extra_groups: list[int] | None
    umask: int
    env: dict[str, str]


def as_account(account: Account | None) -> Identity:
    """The arguments of `subprocess` that start a process as `account`; `None`: as ourselves."""
    return Identity(
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
        umask=0o077,
        env={"LC_ALL": "C", "TZ": "UTC", "PATH": "/usr/bin:/bin"},  # ours holds secrets
    )


class Health(Enum):
    """What a probe found."""

    READY = "ready"
    BUSY = "busy"  # it answers, but does not serve yet, or not now
    SILENT = "silent"


class ServerProcess:
    """A server with `home` as its working directory. `probe` may raise `OSError`: silent.

    `config` is what it reads from its standard input.
    """

    def __init__(
        self,
        home: Path,
        command: Sequence[str],
        *,
        probe: Callable[[], Awaitable[Health]],
        account: Account | None,
        stop_signal: signal.Signals,
        config: bytes = b"",
        probe_every_s: float = PROBE_EVERY_S,
    ) -> None:
        self.name = home.name
        self._home, self._command, self._probe, self._config = home, list(command), probe, config
        self._account, self._stop_signal = account, stop_signal
        self._probe_every_s = probe_every_s
        self._lock_file = home.with_suffix(".lock")
        self._log_file = home.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None
        self._silence = ""  # why the last probe found nobody

    @property
    def pid(self) -> int | None:
        """The process id while the server runs."""
        running = self._process is not None and self._process.poll() is None
        return self._process.pid if self._process is not None and running else None

    async def start(self) -> None:
        """Start the server and wait until it serves; first end what an earlier run left."""
        with await self._own_lock() as lock:
            self._process = self._spawn(lock)
        try:
            async with asyncio.timeout(START_S_MAX):
                while await self._health() is not Health.READY:
                    if self._process.poll() is not None:
                        raise ServerFailed(f"{self.name} ended at once: {self._last_words()}")
                    await asyncio.sleep(POLL_S)
        except TimeoutError as error:
            self._process.kill()
            raise ServerFailed(
                f"{self.name} did not serve within {START_S_MAX:.0f} s"
                f" ({self._silence}): {self._last_words()}"
            ) from error

    async def stop(self) -> None:
        """Shut the server down in order; kill it if that takes too long."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(self._stop_signal)
        try:
            async with asyncio.timeout(STOP_S_MAX):
                while self._process.poll() is None:  # noqa: ASYNC110 - nothing tells of its end
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            log.warning("server killed: it did not stop", extra={"server": self.name})
        finally:
            self._process.kill()
            self._process.wait()

    async def keep_alive(self) -> Never:
        """Restart the server whenever it is dead or hangs, for ever."""
        while True:
            await self._until_lost()
            known = {"server": self.name, "cause": self.name}
            log.error("server lost, restarting", extra=known)
            delay_s = POLL_S
            while True:
                try:
                    await self.start()
                    break
                except ServerFailed as error:
                    log.error("server restart failed", extra={**known, "why": error})  # noqa: TRY400 - the message says all
                    await asyncio.sleep(delay_s)
                    delay_s = min(delay_s * 2, RESTART_DELAY_S_MAX)
            log.warning("server restarted", extra={"server": self.name, "pid": self.pid})

    async def _until_lost(self) -> None:
        assert self._process is not None
        loop = asyncio.get_running_loop()
        silences, probe_at = 0, loop.time()
        while self._process.poll() is None:
            if loop.time() < probe_at:
                await asyncio.sleep(POLL_S)
                continue
            silences = silences + 1 if await self._health() is Health.SILENT else 0
            if silences >= SILENCES_MAX:
                self._process.kill()
                self._process.wait()
            probe_at = loop.time() + self._probe_every_s

    async def _health(self) -> Health:
        try:
            async with asyncio.timeout(PROBE_S_MAX):
                return await self._probe()
        except OSError as error:  # a timeout is one too
            self._silence = repr(error)
            return Health.SILENT

    async def _own_lock(self) -> IO[str]:
        """The lock that the server will inherit, after ending whatever still holds it."""
        with ExitStack() as stack:
            lock = stack.enter_context(self._lock_file.open("a+"))
            for number in (None, self._stop_signal, signal.SIGKILL):
                if number is not None:
                    self._signal_leftover(number)
                if await _locked(lock, within_s=0 if number is None else STOP_S_MAX):
                    stack.pop_all()
                    return lock
        raise ServerFailed(
            f"a process of an earlier run still uses {self._home}: it cannot be ended"
        )

    def _signal_leftover(self, number: signal.Signals) -> None:
        """Signal the server that the lock file names, if that process is indeed it."""
        pid = int(self._lock_file.read_text() or 0)
        proc = Path("/proc")
        with suppress(OSError):  # it is gone, or is not ours
            is_it = not (proc / "self").exists() or self._home.samefile(proc / str(pid) / "cwd")
            if pid and is_it:
                os.kill(pid, number)

    def _spawn(self, lock: IO[str]) -> subprocess.Popen[bytes]:
        if self._log_file.exists() and self._log_file.stat().st_size > LOG_BYTES_MAX:
            self._log_file.replace(self._log_file.with_suffix(".log.old"))
        with self._log_file.open("ab") as output, tempfile.TemporaryFile() as config:
            config.write(self._config)
            config.seek(0)
            process = subprocess.Popen(
                self._command,
                cwd=self._home,
                stdin=config,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for us; we then stop the servers in order
                pass_fds=[lock.fileno()],
                preexec_fn=_die_with_parent(self._stop_signal),  # noqa: PLW1509 - only prctl runs
                **as_account(self._account),
            )
        lock.truncate(0)
        lock.write(str(process.pid))
        lock.flush()
        return process

    def _last_words(self) -> str:
        lines = self._log_file.read_text(errors="replace").splitlines()
        return " | ".join(lines[-4:]) or "it said nothing"


async def _locked(file: IO[str], *, within_s: float) -> bool:
    deadline = asyncio.get_running_loop().time() + within_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if asyncio.get_running_loop().time() >= deadline:
                return False
            await asyncio.sleep(POLL_S)
        else:
            return True


def _die_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """For the child, before it becomes the server: the kernel is to signal it when we die.

    Elsewhere than on Linux the next start ends what we left.
    """
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def arm() -> None:
        prctl(_PR_SET_PDEATHSIG, int(number))
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return arm
