"""Which wallets and cap windows have moved in Postgres, for whoever of this process looks at them.

The ledger notes and knows nothing of who looks: to note is to add to a set, which waits for nobody
and cannot fail. What is noted is a hint: a process that dies forgets it, so who must miss nothing
looks at everything from time to time, too.
"""

import asyncio
from collections.abc import Collection
from typing import NamedTuple

_NOTED_MAX = 50_000  # ids; to look at everything is cheaper than to name more of them


class News(NamedTuple):
    """What has moved since the last look. None: any of them may have."""

    wallets: frozenset[str] | None
    windows: frozenset[str] | None


class Moved:
    """Gathers what moved until somebody takes it."""

    def __init__(self) -> None:
        self._wallets: set[str] = set()
        self._windows: set[str] = set()
        self._is_all = False
        self._has_some = asyncio.Event()

    def note(self, wallets: Collection[str], windows: Collection[str]) -> None:
        """These have moved, and it is committed. More than may be remembered counts as all."""
        if not wallets and not windows:
            return
        self._wallets.update(wallets)
        self._windows.update(windows)
        if len(self._wallets) + len(self._windows) > _NOTED_MAX:
            self.note_all()
        self._has_some.set()

    def note_all(self) -> None:
        """Any of them may have moved, as after a recovery."""
        self._is_all = True
        self._wallets.clear()
        self._windows.clear()
        self._has_some.set()

    async def wait(self) -> None:
        """Until there is something to take."""
        await self._has_some.wait()

    def take(self) -> News:
        """What moved since this was last asked; it is forgotten here."""
        news = News(frozenset(self._wallets), frozenset(self._windows))
        if self._is_all:
            news = News(None, None)
        self._wallets.clear()
        self._windows.clear()
        self._is_all = False
        self._has_some.clear()
        return news
