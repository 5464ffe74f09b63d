"""Whoever acts on balances and budgets is told what moved, and from time to time to look at all.

The flusher notes what a committed batch has moved; at most a few times a second that is handed to
every observer. A process may die between the commit and the look, so from time to time, and at
first, everything is looked at. Several processes may look at the same wallet at once, and at the
same crossing again: what fires is decided by each observer in one conditional statement.
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol
from uuid import UUID

from ledger.cancelled import raise_if_cancelled
from ledger.moved import Moved, News
from ledger.outage import outage

log = logging.getLogger(__name__)

_REST_S = 0.2  # between looks: what moves all the time is looked at so often
_SCAN_EVERY_S = 60.0  # what a dead process has noted is late by so much


class Sight(NamedTuple):
    """What is to be looked at. None: all there is."""

    organizations: Sequence[UUID] | None  # whose wallets moved
    windows: Sequence[str] | None  # of caps: '<cap id>@<start, unix ms>'

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to look at."""
        return self.organizations is not None and not self.organizations and not self.windows


_ALL = Sight(None, None)


class Observer(Protocol):
    """Looks at balances and at the windows of caps, and decides what is to be done.

    It asks Postgres, which alone knows: committed, holds aside. It writes rows and waits for
    nobody else; what is to be sent or charged is done by a job of its own, from its rows. It may
    be cancelled, asked again for the same, and be at work in another process: what has fired is a
    row, written by a statement that does so once.
    """

    async def look(self, sight: Sight) -> None:
        """Look at these; raises what Postgres raises, and is then asked to look at all."""


class Watch:
    """Hands what moved to the observers, one after the other."""

    def __init__(
        self,
        moved: Moved,
        observers: Iterable[Observer],
        *,
        rest_s: float = _REST_S,
        scan_every_s: float = _SCAN_EVERY_S,
    ) -> None:
        self._moved, self._observers = moved, tuple(observers)
        self._rest_s, self._scan_every_s = rest_s, scan_every_s
        self._behind: set[Observer] = set()  # whose last look failed
        self._is_leaving = False
        self.looks = 0

    async def run(self) -> None:
        """Hand it out for as long as the process lives."""
        loop = asyncio.get_running_loop()
        scan_at_s = loop.time()
        while not self._is_leaving:
            news = self._moved.take()
            if loop.time() >= scan_at_s:
                scan_at_s = loop.time() + self._scan_every_s
                news = News(None, None)
            await self.look(news)
            await asyncio.sleep(self._rest_s)
            # One that failed is asked again soon, and not five times a second.
            wait_s = min(1.0, self._scan_every_s) if self._behind else scan_at_s - loop.time()
            try:
                async with asyncio.timeout(max(0.0, wait_s)):
                    await self._moved.wait()
            except TimeoutError:
                continue

    def leave(self) -> None:
        """Say no more of what fails: the stores are closed for the process's end."""
        self._is_leaving = True

    async def look(self, news: News) -> None:
        """Hand this to every observer; one that failed before looks at everything."""
        self.looks += 1
        sight = _sight(news)
        for observer in self._observers:
            wanted = _ALL if observer in self._behind else sight
            if wanted.is_empty:
                continue
            try:
                await observer.look(wanted)
            # A job's loop: whatever fails, the other observers look, and this one again.
            except Exception as error:  # noqa: BLE001 - see above
                raise_if_cancelled()
                self._behind.add(observer)
                if not self._is_leaving:
                    log.warning("balances are not looked at", extra=outage(error))
            else:
                self._behind.discard(observer)


def _sight(news: News) -> Sight:
    if news.wallets is None or news.windows is None:
        return _ALL
    try:
        return Sight([UUID(wallet) for wallet in news.wallets], [*news.windows])
    except ValueError:  # an entry of the stream that named no organization's wallet
        return _ALL
