"""The price sheet as a file: the control process writes it, workers take each new one they see.

A sheet says which configuration it was compiled from, and a worker uses the two together: a model
must not lead to a vendor whose price comes a moment later.
"""

import asyncio
import logging
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from gateway.settings import Config
from ledger.pricing import PriceSheet

log = logging.getLogger(__name__)

_POLL_S = 0.5
_FIRST_POLL_S = 0.05


def sheet_path(run_dir: Path) -> Path:
    """Where the sheet of a deployment on this machine is."""
    return run_dir / "prices.msgpack"


def priced(config: Config) -> dict[str, str]:
    """The providers that have list prices, and whose they are."""
    return {name: one.prices for name, one in config.providers.items() if one.prices}


def fingerprint(config: Config) -> str:
    """Of all in a configuration that a sheet is good for.

    The partitions, too: who wrote the sheet has seen that the database has as many.
    """
    facts = (priced(config), config.prices, config.ledger.partitions)
    return sha256(repr(facts).encode()).hexdigest()


def write_sheet(run_dir: Path, packed: bytes, *, of: str) -> None:
    """Put a compiled sheet where the workers look; a reader sees the old one or the new one.

    `of`: the fingerprint of the configuration.
    """
    path = sheet_path(run_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".new")
    draft.write_bytes(of.encode() + b"\n" + packed)
    draft.replace(path)


class SheetFile:
    """The sheet in use by this process."""

    def __init__(self, run_dir: Path) -> None:
        self._path = sheet_path(run_dir)
        self._seen: tuple[int, int] | None = None
        self.sheet: PriceSheet | None = None
        self.of = ""  # the fingerprint of its configuration

    async def until_there(self, config: Config, stop: asyncio.Event) -> PriceSheet | None:
        """The sheet of this configuration; None if `stop` came first."""
        while not stop.is_set():
            sheet = await self._news()
            if sheet is not None and self.of == fingerprint(config):
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
        of, _, packed = (await asyncio.to_thread(self._path.read_bytes)).partition(b"\n")
        self._seen = state
        self.sheet = await asyncio.to_thread(PriceSheet.load, packed)
        self.of = of.decode()
        return self.sheet


class Together:
    """Hands on configuration and prices once those seen last belong together."""

    def __init__(
        self, file: SheetFile, config: Config, apply: Callable[[Config, PriceSheet], None]
    ) -> None:
        self._file, self._config, self._apply = file, config, apply

    def configure(self, config: Config) -> None:
        """A new configuration was read."""
        self._config = config
        self._hand_on()

    def price(self, _sheet: PriceSheet) -> None:
        """A new sheet was read."""
        self._hand_on()

    def _hand_on(self) -> None:
        if self._file.sheet is not None and self._file.of == fingerprint(self._config):
            self._apply(self._config, self._file.sheet)
