"""Work that waits in rows of Postgres: what is due is done, a few rows at a time, and looked for
again after a pause.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import asyncpg

from ledger.cancelled import raise_if_cancelled
from ledger.outage import outage
from ledger.postgres import AWAY

log = logging.getLogger(__name__)


class Chore:
    """One kind of such work.

    `do_some` does the next few and returns how many there were; it may be cancelled anywhere, and
    other processes do the same: a row says by itself what is due. `rows`: what they are, for logs.
    """

    def __init__(self, rows: str, do_some: Callable[[], Awaitable[int]], *, every_s: float) -> None:
        self.rows = rows
        self._do_some, self._every_s = do_some, every_s
        self._is_leaving = False

    async def run(self) -> None:
        """For as long as the process lives."""
        while True:
            try:
                while await self._do_some():
                    pass
            except (asyncpg.PostgresError, *AWAY) as error:
                raise_if_cancelled()
                if self._is_leaving:
                    return
                log.warning("%s are not looked at", self.rows, extra=outage(error))
            await asyncio.sleep(self._every_s)

    def leave(self) -> None:
        """Say no more of what fails: the stores are closed for the process's end."""
        self._is_leaving = True
