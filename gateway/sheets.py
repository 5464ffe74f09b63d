"""The price sheet as a file: the control process writes it, workers take each new one they see."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from ledger.pricing import PriceSheet

log = logging.getLogger(__name__)

_POLL_S = 0.5
_FIRST_POLL_S = 0.05


def sheet_path(run_dir: Path) -> Path:
    """Where the sheet of a deployment on this machine is."""
    return run_dir / "prices.msgpack"


def write_sheet(run_dir: Path, packed: bytes) -> None:
    """Put a compiled sheet where the workers look; a reader sees the old one or the new one."""
    path = sheet_path(run_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".new")
    draft.write_bytes(packed)
    draft.replace(path)


class SheetFile:
    """The sheet in use by this process."""

    def __init__(self, run_dir: Path) -> None:
        self._path = sheet_path(run_dir)
        self._seen: tuple[int, int] | None = None
        self.sheet: PriceSheet | None = None

    async def until_there(self, stop: asyncio.Event) -> PriceSheet | None:
        """The first sheet; None if `stop` came first."""
        while not stop.is_set():
            sheet = await self._news()
            if sheet is not None:
                return sheet
            await asyncio.sleep(_FIRST_POLL_S)
        return None

    async def watch(self, apply: Callable[[PriceSheet], None]) -> None:
        """Give every new sheet to `apply`, for ever."""
        while True:
            await asyncio.sleep(_POLL_S)
            sheet = await self._news()
            if sheet is not None:
                apply(sheet)
                log.info("prices applied", extra={"version": sheet.version})

    async def _news(self) -> PriceSheet | None:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return None
        state = (found.st_ino, found.st_mtime_ns)
        if state == self._seen:
            return None
        self._seen = state
        self.sheet = await asyncio.to_thread(lambda: PriceSheet.load(self._path.read_bytes()))
        return self.sheet
