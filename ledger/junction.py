"""Which belt serves which partition: one belt for one server, one per node of a Cluster.

A partition is served by one belt at a time. When its slot moves, whatever the old belt had under
way may have happened or not, and the new one asks first in which generation the partition is.
"""

import asyncio
from collections.abc import Sequence
from typing import NoReturn

from redis.crc import key_slot

from ledger.belt import Belt, Manner
from ledger.fcall import key_names
from ledger.lane import Lane
from ledger.location import Kind, Location
from ledger.sentinels import Sentinels
from ledger.topology import Topology
from ledger.wire import Address, Wire, WireError

LOOK_S_MIN = 0.1  # between two looks at the Cluster, whatever calls for them
LOOK_S_MAX = 10.0


def slot_of(partition: int) -> int:
    """The slot of a Cluster that has all keys of the partition."""
    return int(key_slot(key_names(partition, 0)[0].encode()))


class Junction:
    """The belts, and `belt_of` each partition by its number."""

    def __init__(self, url: str, lanes: Sequence[Lane], manner: Manner) -> None:
        location = Location.parse(url)
        self._lanes, self._manner = lanes, manner
        # Serves what has no node yet: nothing is sent, and deadlines are kept.
        self._nowhere = Belt(_no_wire, manner)
        self._belts: dict[str, tuple[Belt, asyncio.Task[None]]] = {}
        self._is_stale = asyncio.Event()
        self._location = location
        self._topology = Topology(location) if location.kind is Kind.CLUSTER else None
        self._sentinels = Sentinels(location) if location.kind is Kind.SENTINEL else None
        if self._topology is not None:
            only = self._nowhere
        elif self._sentinels is not None:
            only = Belt(self._sentinels.open, manner)
        else:
            only = Belt(Address(url).open, manner)
        self.belt_of = [only] * len(lanes)
        for lane in lanes:
            only.lanes.add(lane)

    @property
    def is_connected(self) -> bool:
        """Whether a server that has partitions of ours has let us in; of a Cluster, any."""
        return any(belt.is_connected for belt in self.belt_of)

    @property
    def is_spread(self) -> bool:
        """Whether partitions are at several servers, so that some may be away alone."""
        return self._topology is not None

    def moved(self) -> None:
        """A partition is not where it was, or a node is away: look at the Cluster again."""
        self._is_stale.set()

    async def run(self) -> None:
        """Keep connections for ever; cancelled to stop."""
        if self._topology is None:
            await self._run_only(self.belt_of[0])
            return
        try:
            async with asyncio.TaskGroup() as group:
                await self._route(self._topology, group)
        finally:
            for lane in self._lanes:
                lane.abandon("the gateway is stopping")

    async def _run_only(self, belt: Belt) -> None:
        if self._sentinels is None:
            await belt.run()
            return
        sentinels = self._sentinels

        async def leave(master: str) -> None:
            if sentinels.opened != master:
                belt.leave()

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(sentinels.watch(leave), name="master watch")
                await belt.run()
        finally:
            sentinels.close()

    async def _route(self, topology: Topology, group: asyncio.TaskGroup) -> NoReturn:
        while True:
            self._is_stale.clear()
            try:
                await topology.look()
                self._assign(topology, group)
            except WireError as error:
                self._manner.say("the Cluster is away", str(error))
                self._is_stale.set()
            await asyncio.sleep(LOOK_S_MIN)
            try:
                async with asyncio.timeout(LOOK_S_MAX):
                    await self._is_stale.wait()
            except TimeoutError:
                continue

    def _assign(self, topology: Topology, group: asyncio.TaskGroup) -> None:
        for lane in self._lanes:
            host, before = topology.owner(slot_of(lane.number)), self.belt_of[lane.number]
            belt = self._belt(host, group) if host else self._nowhere
            if belt is not before:
                before.give(lane)
                self.belt_of[lane.number] = belt
                belt.take(lane)
        for host, (belt, task) in [*self._belts.items()]:
            if not belt.lanes:
                task.cancel()
                del self._belts[host]

    def _belt(self, host: str, group: asyncio.TaskGroup) -> Belt:
        if host not in self._belts:
            address = Address(self._location.node_url(host))
            belt = Belt(address.open, self._manner, on_away=self.moved)
            self._belts[host] = belt, group.create_task(belt.run(), name=f"belt {host}")
        return self._belts[host][0]


async def _no_wire(*, timeout_s: float) -> Wire:  # noqa: ARG001 - as any other is asked
    raise WireError("no node has the partition's slot")
