"""Which node of a Cluster has which slot, as the nodes say.

They disagree for a while after every failover: the claim with the highest epoch holds, whoever
tells it.
"""

import asyncio
from collections.abc import Iterable
from typing import Any, NamedTuple

from hiredis import ReplyError

from ledger.location import Location, joined
from ledger.wire import Address, Wire, WireError

SLOTS = 16_384
ASK_S = 0.5  # one of them may be stopped, and the others know enough
_CLAIMS = 8  # the word of a line of CLUSTER NODES at which its slots begin


class Claim(NamedTuple):
    """A node, and the slots that are said to be its own: a replica has none."""

    epoch: int
    host: str  # "host:port"
    slots: tuple[tuple[int, int], ...]  # first and last


class Topology:
    """The nodes of a Cluster, and which of them has which slot."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self._owners: tuple[str, ...] = ()  # by slot; "": nobody has it
        self.primaries: tuple[str, ...] = ()  # that have slots
        self._nodes: tuple[str, ...] = ()

    def owner(self, slot: int) -> str:
        """The primary that has the slot, "host:port"; "" while that is not known."""
        return self._owners[slot] if self._owners else ""

    @property
    def known(self) -> tuple[str, ...]:
        """Every node that may be asked: those that were found, and those that were configured."""
        return tuple(dict.fromkeys((*self._nodes, *self._location.hosts)))

    async def look(self) -> None:
        """Ask every node that is known; `WireError` if none answers."""
        asked = [self._view(host) for host in self.known]
        views = await asyncio.gather(*asked, return_exceptions=True)
        claims: list[Claim] = []
        for view in views:
            if isinstance(view, list):
                claims += view
            elif not isinstance(view, WireError):
                raise view
        if not claims:
            raise WireError(f"no node of the Cluster answers: {views[0]}")
        self._owners = owners(claims)
        self.primaries = tuple(sorted({*self._owners} - {""}))
        self._nodes = tuple(sorted({claim.host for claim in claims}))

    async def _view(self, host: str) -> list[Claim]:
        wire = await Address(self._location.node_url(host)).open(timeout_s=ASK_S)
        try:
            told = await answer_to(wire, "CLUSTER", "NODES")
        finally:
            wire.close()
        return read_nodes(told.decode(), asked=host, by_name=self._location.is_tls)


def read_nodes(told: str, *, asked: str, by_name: bool) -> list[Claim]:
    """The claims in an answer to CLUSTER NODES, of the node at `asked`.

    `by_name`: nodes that announce a name go by it, else by their address.
    """
    claims = []
    for line in told.splitlines():
        words = line.split()
        flags = {*words[2].split(",")}
        if not flags.isdisjoint({"noaddr", "handshake"}):
            continue
        address, _, rest = words[1].partition("@")
        ip, _, port = address.rpartition(":")
        name = rest.split(",")[1] if "," in rest else ""
        # Before it has met another, a node does not know its own address.
        host = joined((by_name and name) or ip.strip("[]") or asked.rpartition(":")[0], port)
        # A replica's line names none; "[" is a slot on the move, which is still its source's.
        slots = [word for word in words[_CLAIMS:] if not word.startswith("[")]
        claims.append(Claim(int(words[6]), host, tuple(map(_range, slots))))
    return claims


def owners(claims: Iterable[Claim]) -> tuple[str, ...]:
    """The host of each slot, by the newest claim to it."""
    held: list[tuple[int, str]] = [(-1, "")] * SLOTS
    for epoch, host, slots in set(claims):
        for first, last in slots:
            for slot in range(first, last + 1):
                if epoch > held[slot][0]:
                    held[slot] = epoch, host
    return tuple(host for _, host in held)


def _range(word: str) -> tuple[int, int]:
    first, _, last = word.partition("-")
    return int(first), int(last or first)


async def answer_to(wire: Wire, *words: str) -> Any:
    """The answer to one command; `WireError` if it is a refusal or does not come in time."""
    try:
        async with asyncio.timeout(ASK_S):
            answer = await wire.ask(words)
    except TimeoutError as error:
        raise WireError(f"{words[0]} is not answered") from error
    if isinstance(answer, ReplyError):
        raise WireError(str(answer))
    return answer
