"""Clients of Redis for everything but the hot path, in the one shape of redis-py's `Redis`.

Behind Sentinels a client asks them at every new connection, and `follow` has it leave a master that
was replaced meanwhile. A Cluster's sends each command to the
node that has its key; what names no key goes where the gateways' list is, whose clock is told with
it. Every command that is sent so may be repeated, so a node that is away, or not the right one any
more, is asked for once again and the command is sent a second time.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from redis.asyncio import Redis, Sentinel
from redis.asyncio.client import Pipeline, PubSub
from redis.asyncio.connection import ConnectionPool, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool, SentinelManagedConnection
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    ClusterDownError,
    ConnectionError,  # noqa: A004 - redis-py's, which is no OSError
    MovedError,
    RedisError,
    ResponseError,
    TimeoutError,  # noqa: A004 - as above
    TryAgainError,
)

from ledger.fcall import execute
from ledger.location import Kind, Location, host_and_port, joined
from ledger.sentinels import Sentinels
from ledger.topology import Topology
from ledger.wire import WireError

CONNECT_S, ANSWER_S = 1.0, 2.0
HOME_KEY = "tg:gateways"  # whose node gets what names no key; the roll call's list
_ELSEWHERE = (MovedError, AskError, TryAgainError, ClusterDownError)
_GONE = (*_ELSEWHERE, ConnectionError, TimeoutError)
Answer = TypeVar("Answer")
Command = tuple[Sequence[Any], Mapping[str, Any]]  # its words, and redis-py's options


class ClusterAway(ConnectionError):
    """No node has the key at the moment: a failover or a move of its slot is under way."""


def open_redis(url: str, *, answer_s: float = ANSWER_S) -> Redis:
    """A client of what `url` names. It connects when it is used, and again whenever that breaks.

    It tries a lost connection once again and never pauses: an authenticator would rather ask
    Postgres than wait, and a subscription that came back late would let a revoked key pass.
    """
    location, options = Location.parse(url), _options(answer_s)
    if location.kind is Kind.ONE:
        return Redis.from_url(url, **options)
    if location.kind is Kind.CLUSTER:
        return ClusterClient(location, options)
    of_master = {**_login(location.node_url("_:1")), **options}
    manager = _Manager(Sentinels(location))
    master: Redis = manager.master_for(location.master, redis_class=_WatchedClient, **of_master)
    return master


async def follow(client: Redis) -> None:
    """Behind Sentinels, leave a master that was replaced; returns at once of any other client.

    Without this a connection stays for as long as the old master answers on it, a subscription too.
    """
    if isinstance(client, _WatchedClient):
        await client.sentinels.watch(client.leave)


def is_watched(client: Redis) -> bool:
    """Whether Sentinels say which server it is, and some may be at another one for a moment."""
    return isinstance(client, _WatchedClient)


class _Manager(Sentinel):
    """redis-py's, but for who is asked and whom it believes."""

    def __init__(self, sentinels: Sentinels) -> None:
        super().__init__([])  # type: ignore[no-untyped-call]  # redis-py's
        self.said = sentinels

    async def discover_master(self, service_name: str) -> tuple[str, int]:  # noqa: ARG002 - redis-py's
        try:
            return host_and_port(await self.said.look())
        except WireError as error:
            raise ConnectionError(str(error)) from error


class _WatchedClient(Redis):
    @property
    def sentinels(self) -> Sentinels:
        """Those that are asked for the master."""
        assert isinstance(self.connection_pool, SentinelConnectionPool)
        manager = self.connection_pool.sentinel_manager
        assert isinstance(manager, _Manager)
        return manager.said

    async def leave(self, master: str) -> None:
        """Close the connections that lead anywhere but to `master`."""
        pool = self.connection_pool
        idle, used = pool._available_connections, pool._in_use_connections  # noqa: SLF001 - no other way
        # redis-py closes only idle ones, and those not before it connects anew.
        for connection in (*idle, *used):
            assert isinstance(connection, SentinelManagedConnection)
            if connection.is_connected and joined(connection.host, connection.port) != master:
                await connection.disconnect(nowait=True)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:  # noqa: FBT001 - redis-py's
        await super().aclose(close_connection_pool)
        self.sentinels.close()


def _login(url: str) -> dict[str, Any]:
    """What a URL says but for the host."""
    options: dict[str, Any] = {**parse_url(url)}
    is_tls = options.pop("connection_class", None) is not None
    return {name: value for name, value in options.items() if name not in {"host", "port"}} | (
        {"ssl": True} if is_tls else {}
    )


def _options(answer_s: float) -> dict[str, Any]:
    return {
        "retry": Retry(NoBackoff(), 1),
        "socket_connect_timeout": CONNECT_S,
        "socket_timeout": answer_s,
    }


async def primaries(client: Redis) -> Sequence[Redis]:
    """A client of each server that takes writes: all but a Cluster have one, which is `client`."""
    return await client.primaries() if isinstance(client, ClusterClient) else [client]


async def ask_all(client: Redis, *args: str) -> list[Any]:
    """What each server that takes writes answers. A refusal is an answer, too; of a Cluster's,
    that one of them is away, as well.
    """
    if isinstance(client, ClusterClient):
        return await client.ask_all(*args)
    try:
        return [await execute(client, *args)]
    except ResponseError as error:
        return [error]


def name_of(server: Redis) -> str:
    """Host and port of one server, for people."""
    options = server.connection_pool.connection_kwargs
    return f"{options['host']}:{options['port']}" if "host" in options else "the server"


async def holder(client: Redis, key: str) -> Redis:
    """A client of the server that has this key."""
    return await client.holder(key) if isinstance(client, ClusterClient) else client


def is_cluster(client: Redis) -> bool:
    """Whether keys are spread over several servers, so that one may lose what another has."""
    return isinstance(client, ClusterClient)


class ClusterClient(Redis):
    """A Cluster behind the words of one server."""

    def __init__(self, location: Location, options: Mapping[str, Any]) -> None:
        first = location.node_url(location.hosts[0])
        super().__init__(connection_pool=ConnectionPool.from_url(first))
        self._location, self._topology, self._options = location, Topology(location), options
        self._nodes: dict[str, Redis] = {}
        self._listened = 0
        self._looking: asyncio.Lock = asyncio.Lock()
        self._looks = 0

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """One command, at the node that has its key; `ClusterAway` if none has it now."""
        slot = _slot(args)
        return await self._sent(lambda: self._execute(slot, args, options))

    async def _execute(self, slot: int, args: Sequence[Any], options: Mapping[str, Any]) -> Any:
        return await self._owner(slot).execute_command(*args, **options)  # type: ignore[no-untyped-call]  # redis-py's

    async def _sent(self, send: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
        """Send it, and if that comes to nothing, look at the Cluster and send it once more."""
        looks = await self._looked()
        try:
            return await send()
        except _GONE:
            await self._look(looks)
        try:
            return await send()
        except _ELSEWHERE as error:
            raise ClusterAway(str(error)) from error

    async def _looked(self) -> int:
        """How often the Cluster has been looked at by now: once at least."""
        if not self._looks:
            await self._look(0)
        return self._looks

    async def _look(self, looks: int) -> None:
        """Look at the Cluster, unless somebody has since there had been so many looks."""
        async with self._looking:
            if self._looks > looks:
                return
            try:
                await self._topology.look()
            except WireError as error:
                raise ClusterAway(str(error)) from error
            self._looks += 1
            for host in self._nodes.keys() - set(self._topology.known):
                await self._nodes.pop(host).aclose()

    def _owner(self, slot: int) -> Redis:
        host = self._topology.owner(slot)
        if not host:
            raise ClusterAway(f"slot {slot} is served by no node")
        return self._node(host)

    def _node(self, host: str) -> Redis:
        if host not in self._nodes:
            self._nodes[host] = Redis.from_url(self._location.node_url(host), **self._options)
        return self._nodes[host]

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:  # noqa: FBT001, FBT002 - redis-py's
        """Commands that are sent together, to each node its own; there are no transactions."""
        assert not transaction, "keys may be at several nodes"
        return _Spread(self, self.connection_pool, self.response_callbacks, shard_hint)

    async def send_all(self, commands: Sequence[Command]) -> list[Any]:
        """The answers to these commands, an error being one, too: what is at a node that is away
        takes nothing from the others.
        """
        looks = await self._looked()
        answers = await self._send_all(commands)
        if any(isinstance(answer, _GONE) for answer in answers):
            await self._look(looks)
            answers = await self._send_all(commands)
        return [ClusterAway(str(one)) if isinstance(one, _ELSEWHERE) else one for one in answers]

    async def _send_all(self, commands: Sequence[Command]) -> list[Any]:
        at: dict[str, list[int]] = {}
        for place, (args, _) in enumerate(commands):
            at.setdefault(self._topology.owner(_slot(args)), []).append(place)
        answers: list[Any] = [None] * len(commands)

        async def send(host: str, places: Sequence[int]) -> None:
            told = await self._told(host, [commands[place] for place in places])
            for place, answer in zip(places, told, strict=True):
                answers[place] = answer

        await asyncio.gather(*(send(host, places) for host, places in at.items()))
        return answers

    async def _told(self, host: str, commands: Sequence[Command]) -> list[Any]:
        """What one node answers; if it is away: for each command, that it is."""
        if not host:
            return [ClusterAway("a slot is served by no node")] * len(commands)
        async with self._node(host).pipeline(transaction=False) as pipeline:
            for args, options in commands:
                _ = pipeline.execute_command(*args, **options)
            try:
                return await pipeline.execute(raise_on_error=False)
            except _GONE as error:
                return [error] * len(commands)

    async def ask_all(self, *args: str) -> list[Any]:
        """What each node that has slots answers to one command; an error is an answer, too."""
        await self._looked()
        asked = [self._told(host, [(args, {})]) for host in self._topology.primaries]
        return [answer for (answer,) in await asyncio.gather(*asked)]

    def pubsub(self, **options: Any) -> PubSub:
        """A subscription at one of the nodes, which hear of each other's messages; each another."""
        self._listened += 1
        known = self._topology.known
        return self._node(known[self._listened % len(known)]).pubsub(**options)

    async def primaries(self) -> list[Redis]:
        """A client of every node that has slots."""
        await self._look(self._looks)
        return [self._node(host) for host in self._topology.primaries]

    async def holder(self, key: str) -> Redis:
        """A client of the node that has this key; `ClusterAway` if none has it now."""
        await self._look(self._looks)
        return self._owner(int(key_slot(key.encode())))

    async def aclose(self, close_connection_pool: bool | None = None) -> None:  # noqa: FBT001 - redis-py's
        """Close every connection."""
        for node in self._nodes.values():
            await node.aclose(close_connection_pool)
        await super().aclose(close_connection_pool)


class _Spread(Pipeline):
    """Gathers as redis-py does, and sends through a `ClusterClient`."""

    def __init__(
        self, client: ClusterClient, pool: ConnectionPool, callbacks: Any, hint: str | None
    ) -> None:
        super().__init__(pool, callbacks, transaction=False, shard_hint=hint)
        self._client = client

    async def execute(self, raise_on_error: bool = True) -> list[Any]:  # noqa: FBT001, FBT002 - redis-py's
        """The answers in their order; with `raise_on_error` the first error is raised."""
        commands = [(args, options) for args, options in self.command_stack]
        self.command_stack = []
        answers: list[Any] = await self._client.send_all(commands) if commands else []
        for answer in answers:
            if raise_on_error and isinstance(answer, RedisError):
                raise answer
        return answers


def _slot(args: Sequence[Any]) -> int:
    """The slot of the key that a command names first."""
    match str(args[0]):
        case "TIME" | "PING" | "PUBLISH" | "INFO":
            key: Any = HOME_KEY
        case "FCALL" | "FCALL_RO":
            key = args[3]
        case _:
            key = args[1]
    return int(key_slot(key if isinstance(key, bytes) else str(key).encode()))
