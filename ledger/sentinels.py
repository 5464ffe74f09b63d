"""Which server the Sentinels call master, asked all the time: one that was replaced may not know.

Cut off from the Sentinels and not from us, it goes on answering, and what it admits nobody else
counts. Sentinels differ for a while after a failover, and one that is cut off together with the old
master never hears of it: so all are asked, and the newest failover counts, whoever tells it.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import NamedTuple, NoReturn

from ledger.location import Location, joined
from ledger.topology import answer_to
from ledger.wire import Address, Wire, WireError

LOOK_EVERY_S = 0.2
SAY_S = 0.3  # for one of them to say it; the others do not wait longer for one that is stopped
MOVED_S = LOOK_EVERY_S + SAY_S  # whoever can ask them has left an old master within this


class View(NamedTuple):
    """What one Sentinel says: in which failover which server became master."""

    epoch: int
    host: str  # "host:port"


class Sentinels:
    """Those of one master.

    `master` is what they called it last, and `opened` where the newest connection that `open` made
    leads: "host:port", or "" before there was one.
    """

    def __init__(self, location: Location) -> None:
        self._location = location
        self._wires: dict[str, Wire] = {}
        self._looking = asyncio.Lock()
        self.master = self.opened = ""

    async def look(self) -> str:
        """Ask them all which it is; `WireError` if none can say."""
        hosts = self._location.hosts
        async with self._looking:
            answers = await asyncio.gather(*map(self._view, hosts), return_exceptions=True)
        views: list[View] = []
        for answer in answers:
            if isinstance(answer, View):
                views.append(answer)
            elif not isinstance(answer, WireError):
                raise answer
        if not views:
            raise WireError(str(answers[0]))
        self.master = newest(views, of=len(hosts), known=self.master)
        return self.master

    async def open(self, *, timeout_s: float) -> Wire:
        """A connection to the master; `WireError` if there is none."""
        host = await self.look()
        wire = await Address(self._location.node_url(host)).open(timeout_s=timeout_s)
        try:
            # It may know of a failover before the Sentinels do.
            is_master = (await answer_to(wire, "ROLE"))[0] == b"master"
        except BaseException:
            wire.close()
            raise
        if is_master and host == self.master:
            self.opened = host
            return wire
        wire.close()
        raise WireError(f"{host} is no master any more")

    async def watch(self, leave: Callable[[str], Awaitable[None]]) -> NoReturn:
        """Have `leave` close what leads anywhere but to the master it is told; until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            with suppress(WireError):  # without Sentinels nobody is promoted
                await leave(await self.look())

    def close(self) -> None:
        """Drop the connections to the Sentinels."""
        while self._wires:
            self._wires.popitem()[1].close()

    async def _view(self, host: str) -> View:
        try:
            async with asyncio.timeout(SAY_S):
                return await self._asked(host)
        except (WireError, TimeoutError) as error:
            raise WireError(f"Sentinel {host}: {str(error) or 'is silent'}") from error

    async def _asked(self, host: str) -> View:
        wire = self._wires.pop(host, None)
        if wire is None or wire.closed.done():
            wire = await Address(self._location.sentinel_url(host)).open(timeout_s=SAY_S)
        try:
            view = await self._said(wire)
        except BaseException:
            wire.close()  # an answer that comes late must not be taken for the next one
            raise
        self._wires[host] = wire
        return view

    async def _said(self, wire: Wire) -> View:
        name = self._location.master
        told = await answer_to(wire, "SENTINEL", "MASTER", name)
        # Not the `ip` and `port` of that answer: while a failover ends they are the old ones.
        found = await answer_to(wire, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", name)
        facts = dict(zip(told[::2], told[1::2], strict=True))
        return View(int(facts[b"config-epoch"]), joined(found[0].decode(), found[1].decode()))


def newest(views: Sequence[View], *, of: int, known: str) -> str:
    """The master of the latest failover that is told; of a tie what most say.

    When not most of the `of` Sentinels answer, the one that is `known` stays: those few can have
    promoted nobody, and may have missed that others did. What they said once is not kept against a
    majority: an operator who sets Sentinels up anew has them count from the beginning.
    """
    if known and 2 * len(views) <= of:
        return known
    tellers = Counter(views)
    return max(tellers, key=lambda view: (view.epoch, tellers[view], view.host)).host
