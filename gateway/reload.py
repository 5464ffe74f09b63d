"""Applies a changed config.yaml to a running process: as a whole, or not at all.

What only a restart can change keeps its old value, and the log says so. Whoever needs the
configuration of the moment subscribes; calls in flight keep the one they started with.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from gateway.config import ConfigErrors, load
from gateway.metrics import Metrics
from gateway.settings import Config
from providers.adapter import Secret

log = logging.getLogger(__name__)

_POLL_S = 0.5
_MISTAKES_SHOWN = 20

# Sockets, servers, partitions and caches are set up once, what was hashed stays hashed, and who
# waits for a process to stop waits as long as it was told when that began.
FIXED = (
    *("listeners", "data_dir", "redis", "postgres", "ledger", "shutdown", "auth"),
    *("management", "plans", "mail", "credits", "payments"),
)


class Result(StrEnum):
    UNCHANGED = "unchanged"  # the file says what is in use already
    APPLIED = "applied"
    REJECTED = "rejected"


class ConfigFile:
    """The configuration in use, and the file it came from."""

    def __init__(
        self,
        path: Path,
        environ: Mapping[str, str] | None,
        *,
        config: Config,
        metrics: Metrics,
    ) -> None:
        self._path, self._environ = path, environ  # None: the process's own
        self._metrics = metrics
        self.config = config
        self._subscribers: list[Callable[[Config], None]] = []
        self._asked = asyncio.Event()
        # Not the file's state now: it may have been changed since `config` was read from it.
        self._seen: tuple[int, int, int] | None = None
        self._pending: tuple[int, int, int] | None = None

    def subscribe(self, apply: Callable[[Config], None]) -> None:
        """Has `apply` called with every new configuration; it must not wait and should not fail."""
        self._subscribers.append(apply)

    def ask(self) -> None:
        """Read the file again soon, changed or not: for SIGHUP."""
        self._asked.set()

    async def heed(self, signalled: asyncio.Event) -> None:
        """`ask` whenever the event is set, for as long as it runs."""
        while True:
            await signalled.wait()
            signalled.clear()
            self.ask()

    async def watch(self) -> None:
        """Applies changes for as long as it runs."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_POLL_S):
                    await self._asked.wait()
            if self._asked.is_set():
                self._asked.clear()
                await self.reload()
            else:
                await self.poll()

    async def poll(self) -> Result:
        """Read the file if it has changed since it was read, and not since the last poll.

        An editor may write a file in pieces, and half a file may be valid.
        """
        state = _state_of(self._path)
        is_settled, self._pending = state == self._pending, state
        if state is None or state == self._seen or not is_settled:
            return Result.UNCHANGED
        return await self.reload()

    async def reload(self) -> Result:
        """Read the file and apply it."""
        self._seen = self._pending = _state_of(self._path)
        try:
            # In a thread: a file with a thousand models takes longer than a stream may pause.
            config = await asyncio.to_thread(load, self._path, self._environ)
        except ConfigErrors as errors:
            self._metrics.config_reloads.add((Result.REJECTED,))
            shown = [str(mistake) for mistake in errors.mistakes[:_MISTAKES_SHOWN]]
            fields_ = {"path": str(self._path), "mistakes": shown, "count": len(errors.mistakes)}
            log.error("configuration rejected, the old one stays", extra=fields_)  # noqa: TRY400 - the mistakes say it all
            return Result.REJECTED
        return self._apply(config)

    def _apply(self, config: Config) -> Result:
        waiting = changes(_fixed_part(self.config), _fixed_part(config))
        config = replace(config, **{name: getattr(self.config, name) for name in FIXED})
        changed = changes(self.config, config)
        if waiting:
            log.warning("settings wait for a restart", extra={"settings": waiting})
        if not changed:
            return Result.UNCHANGED
        self.config = config
        for apply in self._subscribers:
            try:
                apply(config)
            except Exception:  # a job's loop: one bad subscriber must not keep the others from it
                log.exception("a part did not take the new configuration")
        self._metrics.config_reloads.add((Result.APPLIED,))
        log.info("configuration applied", extra={"path": str(self._path), "changed": changed})
        return Result.APPLIED


def changes(old: Config, new: Config) -> list[str]:
    """The paths of what differs, without the values; secrets are compared, too."""
    return _differing(old, new, "")


def _differing(old: Any, new: Any, path: str) -> list[str]:
    if isinstance(old, Secret) and isinstance(new, Secret):
        return [] if old.reveal() == new.reveal() else [path]
    if is_dataclass(old) and type(old) is type(new):
        return [
            changed
            for field in fields(old)
            if not field.metadata.get("derived")
            for changed in _differing(
                getattr(old, field.name), getattr(new, field.name), _joined(path, field.name)
            )
        ]
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            changed
            for key in {**old, **new}
            for changed in _differing(old.get(key), new.get(key), _joined(path, str(key)))
        ]
    return [] if old == new else [path]


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _fixed_part(config: Config) -> Config:
    """The configuration with nothing in it but what a restart alone can change."""
    fixed: dict[str, Any] = {name: getattr(config, name) for name in FIXED}
    return replace(Config(), **fixed)


def _state_of(path: Path) -> tuple[int, int, int] | None:
    """What changes when the file does; None while it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
