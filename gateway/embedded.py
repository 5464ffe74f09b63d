"""Real Postgres and Valkey out of PyPI wheels, run by us: for `up`, for tests and benchmarks.

Everything lives in one data folder, which one process at a time holds. The servers listen on unix
sockets only, in folders that nobody else can enter, and start from whatever a crash left. As root
they run as an unprivileged user: each gets its folder as its working directory before privileges
are dropped and uses no absolute path, so the folder may lie where that user could never go, and
no permission outside it is touched.
"""

import asyncio
import fcntl
import json
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple, Never, Self
from urllib.parse import quote, unquote, urlsplit

import asyncpg

from gateway.server_binaries import placed, short_path
from gateway.server_process import Account, Health, ServerFailed, ServerProcess, as_account

USE_YOUR_OWN = "or set TOLLGATE_POSTGRES__URL and TOLLGATE_REDIS__URL to servers of your own"

_POSTGRES_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_directories": ".",
    "synchronous_commit": "on",
    "idle_in_transaction_session_timeout": "60s",  # a stuck transaction holds a partition's row
    "transaction_timeout": "15min",
    "client_connection_check_interval": "1s",  # a query of a dead client ends
    "jit": "off",  # compiling costs more than our short statements take
    "timezone": "UTC",
    "log_timezone": "UTC",
}
_INITDB_ARGUMENTS = [
    "--username=postgres",
    "--auth=scram-sha-256",
    "--pwfile=/dev/stdin",
    "--encoding=UTF8",
    "--locale=C",
    "--locale-provider=builtin",  # sorts the same everywhere
    "--builtin-locale=C.UTF-8",
    "--data-checksums",
    "--pgdata",
]
_POSTGRES_SETUP = """\
CREATE ROLE tollgate LOGIN PASSWORD '{postgres}';
CREATE DATABASE tollgate OWNER tollgate;
"""
_VALKEY_SETTINGS = {
    "port": "0",
    "unixsocket": "valkey.sock",
    "unixsocketperm": "700",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": '""',  # the append-only file is the only persistent form
    "maxmemory": "3gb",  # the largest backlog, what is kept of flushed ends, the wallets
    "maxmemory-policy": "noeviction",  # evicting a wallet would lose money
    "daemonize": "no",
}
_VALKEY_USERS = """\
user default off
user app on >{app} ~tg:* &tg:* +@all -@admin -@dangerous -@scripting +fcall +fcall_ro +info
user admin on >{admin} ~* &* +@all
"""


class EmbeddedFailed(Exception):
    """The servers cannot be run here; the message says why and what to do."""


class Urls(NamedTuple):
    """How to reach the servers of one data folder."""

    postgres: str  # owns its database, nothing else
    postgres_admin: str  # superuser
    redis: str  # the data plane: no administration, no scripts, keys and channels `tg:*` only
    redis_admin: str

    def __repr__(self) -> str:
        return "Urls(...)"  # each has a password in it


class _Passwords(NamedTuple):
    postgres: str
    postgres_admin: str
    app: str
    admin: str

    def __repr__(self) -> str:
        return "_Passwords(...)"


def urls(folder: Path) -> Urls:
    """How to reach the servers of `folder`, from any process of the user that started them.

    `EmbeddedFailed` if none was ever started there.
    """
    try:
        passwords = _Passwords(**json.loads((folder / "passwords.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise EmbeddedFailed(f"no servers were ever started in {folder}: {error}") from error
    at = short_path(folder.absolute())
    postgres = f"/tollgate?host={quote(str(at / 'postgres'), safe='')}"
    valkey = quote(str(at / "valkey" / _VALKEY_SETTINGS["unixsocket"]))
    return Urls(
        postgres=f"postgresql://tollgate:{passwords.postgres}@{postgres}",
        postgres_admin=f"postgresql://postgres:{passwords.postgres_admin}@{postgres}",
        redis=f"unix://app:{passwords.app}@{valkey}",
        redis_admin=f"unix://admin:{passwords.admin}@{valkey}",
    )


class Embedded:
    """Both servers of one data folder: `async with Embedded(folder) as servers`.

    `postgres_settings` and `valkey_settings` are laid over ours.
    """

    def __init__(
        self,
        folder: Path,
        *,
        postgres_settings: Mapping[str, str] | None = None,
        valkey_settings: Mapping[str, str] | None = None,
    ) -> None:
        self._folder = folder.absolute()
        self._postgres_settings = {**_POSTGRES_SETTINGS, **(postgres_settings or {})}
        self._valkey_settings = {**_VALKEY_SETTINGS, **(valkey_settings or {})}
        self._servers: list[ServerProcess] = []
        self._exit = AsyncExitStack()
        self._urls: Urls | None = None

    @property
    def urls(self) -> Urls:
        """The same after every restart, and after every start on the same folder."""
        assert self._urls is not None, "not started"
        return self._urls

    @property
    def pids(self) -> dict[str, int]:
        """The process ids of the servers that run, by name: postgres, valkey."""
        return {server.name: server.pid for server in self._servers if server.pid}

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            try:
                await self._start(stack)
            except (ServerFailed, OSError) as error:
                raise EmbeddedFailed(f"{error}; {USE_YOUR_OWN}") from error
            self._exit = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._exit.aclose()

    async def watch(self) -> Never:
        """Restart a server whenever it is dead or hangs. Runs until cancelled."""
        async with asyncio.TaskGroup() as group:
            for server in self._servers:
                group.create_task(server.keep_alive(), name=f"keep {server.name} alive")
        raise AssertionError("the watch ends by cancellation only")

    async def _start(self, stack: AsyncExitStack) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        stack.enter_context(held(self._folder))
        account = account_of(self._folder)
        passwords = _passwords(self._folder)
        binaries = stack.enter_context(placed(self._folder, account))
        self._urls = urls(self._folder)
        cluster, valkey = self._folder / "postgres", self._folder / "valkey"
        if not cluster.exists():
            _refuse_half_restored(self._folder)
            _create_cluster(cluster, binaries.initdb, account=account, passwords=passwords)
        if not valkey.exists():
            _make_home(valkey, account)
        self._servers = [
            ServerProcess(
                cluster,
                [str(binaries.postgres), *_postgres_arguments(cluster, self._postgres_settings)],
                probe=lambda: ask_postgres(self.urls.postgres_admin),
                account=account,
                stop_signal=signal.SIGINT,
            ),
            ServerProcess(
                valkey,
                [str(binaries.valkey), "-"],
                config=_valkey_config(self._valkey_settings, passwords),
                probe=lambda: _ask_valkey(self.urls.redis_admin),
                account=account,
                stop_signal=signal.SIGTERM,
            ),
        ]
        stack.push_async_callback(self._stop)
        starts = (server.start() for server in self._servers)
        for outcome in await asyncio.gather(*starts, return_exceptions=True):
            if outcome is not None:
                raise outcome

    async def _stop(self) -> None:
        await asyncio.gather(*(server.stop() for server in self._servers))


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep every other process out of `folder`. The kernel lets go when we die."""
    with (folder / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise EmbeddedFailed(
                f"{folder} is in use by process {lock.read().strip() or '?'}: "
                "stop that one first, or choose another data folder"
            ) from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def account_of(folder: Path) -> Account | None:
    """The user that the servers run as; `None`: ourselves."""
    cluster = folder / "postgres"
    me, owner = os.geteuid(), cluster.stat().st_uid if cluster.exists() else None
    try:
        if me == 0:
            entry = pwd.getpwuid(owner or folder.stat().st_uid or pwd.getpwnam("nobody").pw_uid)
            return Account(entry.pw_uid, entry.pw_gid)
        pwd.getpwuid(me)
    except KeyError as error:
        raise EmbeddedFailed(
            f"PostgreSQL runs only as a user with a name, and {error}; "
            f"start as a named user, {USE_YOUR_OWN}"
        ) from error
    if owner not in (None, me):
        raise EmbeddedFailed(
            f"{cluster} belongs to user {owner}, who started it before: "
            "start as that user or as root, or choose another data folder"
        )
    return None


def _passwords(folder: Path) -> _Passwords:
    """Made once, kept with the data, readable by us alone."""
    file = folder / "passwords.json"
    if not file.exists():
        if (folder / "postgres").exists():
            raise EmbeddedFailed(f"{file} is missing, and only it opens {folder / 'postgres'}")
        fresh = _Passwords(*(secrets.token_hex(24) for _ in _Passwords._fields))
        new = file.with_suffix(".new")
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as output:  # noqa: PTH123 - the mode must be right from the start
            output.write(json.dumps(fresh._asdict()))
            output.flush()
            os.fsync(output.fileno())
        new.rename(file)
    return _Passwords(**json.loads(file.read_text()))


def _make_home(home: Path, account: Account | None) -> None:
    home.mkdir(mode=0o700)
    if account:
        os.chown(home, account.uid, account.gid)


def _refuse_half_restored(folder: Path) -> None:
    """A restore that was killed between its two steps left no cluster: ours must not be empty."""
    if any(folder.glob("postgres.restored")) or any(folder.glob("postgres.before-*")):
        raise EmbeddedFailed(
            f"{folder} has no postgres folder, only what `tollgate restore` was about to replace:"
            " run `tollgate restore` again"
        )


def _create_cluster(
    cluster: Path, initdb: Path, *, account: Account | None, passwords: _Passwords
) -> None:
    """Make the database cluster whole or not at all: it gets its name when it is ready."""
    new = cluster.with_suffix(".new")
    if new.exists():
        shutil.rmtree(new)
    _make_home(new, account)
    with tempfile.TemporaryFile() as password:
        # Opened anew by its name in /dev, so the account must own it.
        password.write(passwords.postgres_admin.encode())
        password.flush()
        if account:
            os.fchown(password.fileno(), account.uid, account.gid)
        _run([str(initdb), *_INITDB_ARGUMENTS, _here(new)], new, account=account, stdin=password)
    with tempfile.TemporaryFile() as statements:
        statements.write(_POSTGRES_SETUP.format(**passwords._asdict()).encode())
        statements.seek(0)
        single = [str(initdb.with_name("postgres")), "--single", "-D", _here(new), "postgres"]
        _run(single, new, account=account, stdin=statements)
    new.rename(cluster)


def _run(command: list[str], home: Path, *, account: Account | None, stdin: IO[bytes]) -> None:
    done = subprocess.run(
        command, cwd=home, stdin=stdin, capture_output=True, check=False, **as_account(account)
    )
    # A single-user server goes on after an error and ends well.
    said = (done.stderr + done.stdout).decode(errors="replace")
    if done.returncode or "ERROR:" in said:
        raise EmbeddedFailed(f"{Path(command[0]).name} failed: {said.strip()}; {USE_YOUR_OWN}")


def _here(folder: Path) -> str:
    """A name for a process's working directory that needs no right to the folders above it."""
    name = Path("/proc/self/cwd")
    return str(name if name.exists() else folder)


def _postgres_arguments(cluster: Path, settings: Mapping[str, str]) -> list[str]:
    arguments = ["-D", _here(cluster)]
    for name, value in settings.items():
        arguments += ["-c", f"{name}={value}"]
    return arguments


def _valkey_config(settings: Mapping[str, str], passwords: _Passwords) -> bytes:
    lines = "".join(f"{name} {value}\n" for name, value in settings.items())
    return (lines + _VALKEY_USERS.format(**passwords._asdict())).encode()


async def ask_postgres(url: str) -> Health:
    """Whether it answers a query. Raises `OSError` when nobody is there."""
    try:
        connection = await asyncpg.connect(url)
        try:
            await connection.fetchval("SELECT 1")
        finally:
            connection.terminate()
    except asyncpg.PostgresError:  # starting up, shutting down, all connections taken
        return Health.BUSY
    except (asyncpg.InterfaceError, asyncpg.InternalClientError):  # it died while it answered
        return Health.SILENT
    return Health.READY


async def _ask_valkey(url: str) -> Health:
    """By hand: redis-py leaks its connection, or the cancellation, when it is cancelled."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_unix_connection(unquote(parts.path))
    try:
        writer.write(f"AUTH {parts.username} {parts.password}\r\nPING\r\n".encode())
        await reader.readline()
        answer = await reader.readline()
    finally:
        writer.close()
    if not answer:
        return Health.SILENT
    return Health.READY if answer == b"+PONG\r\n" else Health.BUSY  # it loads, its disk is full
