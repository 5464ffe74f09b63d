"""What `tollgate doctor` can see of this machine: secrets, files, disks and journals."""

import asyncio
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import asyncpg

from gateway.settings import Config
from ledger.adoption import adopt
from ledger.doctor import Finding, Grade, good, judged

_ASKED_MAX = 5_000  # calls in one query
_ANY_KEY = "SELECT EXISTS (SELECT FROM api_key WHERE revoked_at IS NULL)"
_BOOKED = "SELECT call_id FROM usage_record WHERE call_id = ANY ($1::uuid[])"


def disk_free(folder: Path) -> int:
    """Bytes that may still be written there."""
    return shutil.disk_usage(folder).free


def providers(config: Config) -> Finding:
    """Whether every vendor has its key. Other `${...}` that do not open stop the start."""
    inactive = [
        f"{name} waits for ${{{provider.missing}}}"
        for name, provider in config.providers.items()
        if not provider.is_active
    ]
    count = len(config.providers)
    said = f"{count - len(inactive)} of {count} providers have their key"
    if len(inactive) < count:  # one file serves whoever has some of the keys
        return good("secrets", "; ".join([said, *inactive]))
    todo = "set the variable where `tollgate serve` runs, and here: models are answered with 404"
    return judged("secrets", [], inactive, todo=todo, otherwise=said)


def permissions(config: Config) -> Finding:
    """Whether anybody else could read what is secret, or change what is money."""
    private = [
        *(config.data_dir / name for name in ("pepper", "passwords.json")),
        config.journal_dir,
        *(path for path in _below(config.journal_dir)),
    ]
    open_to_all = []
    for path in private:
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            continue
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            open_to_all.append(f"{path} has mode {stat.S_IMODE(mode):o}")
    todo = f"`chmod -R go= {config.journal_dir}`, and of the files named"
    said = "pepper, passwords and journals are their owner's alone"
    return judged("files", open_to_all, [], todo=todo, otherwise=said)


def _below(directory: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(directory):
        yield from (Path(folder) / name for name in names)


def disk(config: Config, free_in: Callable[[Path], int] = disk_free) -> Finding:
    """Whether the journal may grow to the size it is allowed."""
    place = next(
        path for path in (config.journal_dir, *config.journal_dir.parents) if path.is_dir()
    )
    free, wanted = free_in(place), config.ledger.journal.bytes_max * config.listeners.workers
    if free < wanted:
        said = f"{free >> 20} MiB are free for journals that may take {wanted >> 20}"
        todo = "make room, or lower ledger.journal.bytes_max; a full disk admits no call"
        return Finding(Grade.WARNING, "disk", said, todo)
    return good("disk", f"{free >> 20} MiB free for journals")


async def pepper(config: Config, connection: asyncpg.Connection) -> Finding:
    """Whether the secret is there without which no API key works."""
    if config.auth.pepper is not None:
        return good("pepper", "auth.pepper is set")
    if (config.data_dir / "pepper").is_file():
        return good("pepper", f"kept in {config.data_dir / 'pepper'}; it belongs into every backup")
    if await connection.fetchval(_ANY_KEY):
        said = f"{config.data_dir / 'pepper'} is missing, and API keys were made with it"
        todo = "put it back from the backup before `serve` makes another; else make all keys anew"
        return Finding(Grade.PROBLEM, "pepper", said, todo)
    return good("pepper", "made at the first start")


async def journals(config: Config, connection: asyncpg.Connection) -> Finding:
    """Whether journals that no process holds have calls which Postgres lacks."""
    kept = await asyncio.to_thread(lambda: _left_behind(config.journal_dir))
    problems, warnings = [], []
    for name, (calls, damaged) in kept.items():
        missing = len(calls) - await _booked(connection, calls)
        if missing:
            problems.append(f"{name} has {missing} calls that are not in Postgres")
        if damaged:
            warnings.append(f"{name} has {damaged} stretches that cannot be read")
    todo = "start `tollgate serve` here with this data_dir: it adopts them; delete nothing"
    said = "none is left behind by a dead worker with calls that Postgres lacks"
    return judged("journals", problems, warnings, todo=todo, otherwise=said)


def _left_behind(directory: Path) -> dict[str, tuple[list[UUID], int]]:
    """Of each journal that nobody holds: its calls that are not proven, and what is damaged."""
    found = {}
    for journal in adopt(directory):
        ids = [end.call_id for end in journal.ends()]
        ids += [call.call_id for call in journal.open_calls()]
        found[journal.name] = [UUID(bytes=call_id) for call_id in ids], journal.damaged
        journal.release()
    return found


async def _booked(connection: asyncpg.Connection, calls: list[UUID]) -> int:
    count = 0
    for start in range(0, len(calls), _ASKED_MAX):
        count += len(await connection.fetch(_BOOKED, calls[start : start + _ASKED_MAX]))
    return count
