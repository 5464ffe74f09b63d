"""A data plane in this process: real Valkey, a real journal, the scripted vendor, raw sockets.

    async with open_gate(credit=5_000) as gate:
        status, headers, body = await gate.post({"model": "m", "messages": []})

Only Postgres is left out: one key is known, and what the stream has is looked at directly.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import asyncpg
import orjson
import yaml
from redis.asyncio import Redis

from gateway.auth import Authenticator, AuthLimits, Clock, Find
from gateway.closed import Closed
from gateway.config import read
from gateway.content import Vault
from gateway.content_log import ContentLog
from gateway.journals import Journals
from gateway.key_cache import KeyCache
from gateway.keys import issue, key_digester
from gateway.logs import Lines
from gateway.metrics import Metrics
from gateway.principal import KnownKey, Principal
from gateway.proxy.calls import Calls, Parts
from gateway.proxy.clients import Clients
from gateway.proxy.grace import Grace
from gateway.proxy.live import Terms
from gateway.proxy.table import Table
from gateway.proxy.tell import Teller
from gateway.sealing import sealer
from gateway.settings import Config
from gateway.upstream import Upstream
from gateway.wallets import Wallets
from ledger.clients import open_redis
from ledger.conveyor import Conveyor
from ledger.functions import Partition, WalletState, install
from ledger.journal import Journal
from ledger.price_compiler import compile_sheet
from ledger.pricing import PriceSheet
from ledger.record import Record, decode
from providers.adapter import Adapter, Secret
from providers.openai.dialect import OpenAI
from tests.gateway.principals import PRINCIPAL
from tests.gateway.proxy.door import Door, Line, post
from tests.vendor import Vendor

PEPPER = Secret("the pepper of the tests, which is no secret")
API_KEY = "sk-platform-0123456789"
CREDIT = 10_000_000_000
WALLET = PRINCIPAL.wallet
KEY = issue(bytes(range(32))).secret.reveal()
_digest = key_digester(PEPPER)
P1 = {"input": 3, "output": 15, "cache_read": "0.30"}


def configured(vendor: Vendor, changes: Mapping[str, Any] | None = None) -> Config:
    """A configuration whose one provider is the scripted vendor, with price sheet P1."""
    provider = {
        "kind": "openai",
        "base_url": vendor.url,
        "allow_http": True,
        "api_key": API_KEY,
        "input_overhead_tokens": 0,
    }
    settings = {
        "providers": {"vendor": provider, "spare": provider},
        "models": {
            "free": {"targets": [{"provider": "vendor", "model": "free"}]},
            "unpriced": {"targets": [{"provider": "spare", "model": "unpriced"}]},
            "*": {"targets": [{"provider": "vendor", "model": "*"}]},
        },
        "prices": [
            {"provider": "vendor", "model": "*", "usd_per_million": P1},
            {"provider": "vendor", "model": "free", "free": True},
        ],
        "limits": {"timeouts": {"connect_s": 2, "first_byte_s": 5, "idle_s": 5}},
        **(changes or {}),
    }
    return read(yaml.safe_dump(settings, sort_keys=False), {})


def sheet_of(config: Config) -> PriceSheet:
    """The price sheet that the control process would compile."""
    return PriceSheet.load(compile_sheet({}, config.prices))


def knows(principal: Principal, *, after_s: float = 0.0) -> Find:
    """What finds the one known key, in so many seconds."""

    async def find(digests: Sequence[bytes]) -> Mapping[bytes, KnownKey]:
        await asyncio.sleep(after_s)
        known = {_digest(KEY): KnownKey(principal, is_revoked=False)}
        return {one: known[one] for one in digests if one in known}

    return find


class Gatehouse:
    """The data plane of one worker, and what to look at it with."""

    def __init__(self, door: Door, calls: Calls, parts: Parts, redis: Redis) -> None:
        self.door, self.calls, self.parts, self.redis = door, calls, parts, redis
        self.metrics = Metrics()
        self.lines: list[dict[str, Any]] = []

    @classmethod
    @asynccontextmanager
    async def opened(
        cls,
        redis_url: str,
        vendor: Vendor,
        folder: Path,
        *,
        changes: Mapping[str, Any] | None = None,
        find: Find | None = None,
        credit: int = CREDIT,
        adapter: Adapter | None = None,
        postgres: asyncpg.Pool | None = None,
    ) -> AsyncIterator[Self]:
        """Listen, with one key whose wallet has so much; `postgres` is asked for graces."""
        config = configured(vendor, changes)
        metrics, lines = Metrics(), list[dict[str, Any]]()
        metrics.configure(providers=config.providers, models=config.models, process="test")
        log = Lines(
            lambda line: lines.append(orjson.loads(line)),
            process="test",
            wall_s=time.time,  # noqa: TID251 - a root
        )
        async with AsyncExitStack() as stack:
            group = await stack.enter_async_context(asyncio.TaskGroup())
            redis = open_redis(redis_url)
            stack.push_async_callback(redis.aclose)
            await _activate(redis, credit)
            sheet = sheet_of(config)
            teller, renew_s = Teller(metrics, log), config.ledger.hold_renew_s
            parts = _parts(
                redis_url, redis, folder, find or knows(PRINCIPAL), sheet, teller, renew_s=renew_s
            )
            parts = replace(parts, adapter=adapter or parts.adapter)
            if postgres is not None:
                ours = parts.conveyor
                grace = Grace(postgres, ours, metrics, workers=2, monotonic_s=time.monotonic)
                parts = replace(parts, grace=grace)
            calls = Calls(parts, Terms(config, sheet))
            parts.conveyor.renewal = calls.renewal
            table = Table(calls, parts.authenticator, probe=lambda: (True, b"{}"))
            tasks = [
                group.create_task(parts.conveyor.run(), name="conveyor"),
                group.create_task(parts.authenticator.run(), name="auth"),
                group.create_task(parts.journals.retell(redis), name="retell"),
            ]
            door = await stack.enter_async_context(
                Door.opened(table.handle, tell=teller.turned_away)
            )
            gate = cls(door, calls, parts, redis)
            gate.metrics, gate.lines = metrics, lines
            try:
                yield gate
            finally:
                await calls.under_way.all_ended()
                await parts.conveyor.drain(5)
                await parts.upstream.close()
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)  # before what they use is closed
                parts.journal.close()

    @property
    def journal(self) -> Journal:
        """The one that its calls are written to."""
        return self.parts.journal

    async def line(self) -> Line:
        """A connection to it."""
        return await self.door.line()

    async def post(
        self, body: Mapping[str, Any], *lines: str, path: str = "/v1/chat/completions"
    ) -> tuple[int, dict[str, str], bytes]:
        """One call with the known key, on a connection of its own."""
        line = await self.line()
        return await line.ask(request(body, *lines, path=path))

    async def settled(self) -> dict[str, int]:
        """The wallet once no call is open and every end is in the stream."""
        await self.calls.under_way.all_ended()
        assert await self.parts.conveyor.drain(5) == 0
        image = await Partition(self.redis, 0).snap(1, [WALLET])
        return image.wallets[0]._asdict()

    async def records(self) -> list[Record]:
        """What the stream has of ended calls, oldest first."""
        await self.settled()
        entries = await Partition(self.redis, 0).peek(1, "0-0", 1000)
        return [decode(entry.fields[b"r"]) for entry in entries if entry.fields[b"k"] != b"base"]


# `Gatehouse.opened` without its first three arguments.
OpenGate = Callable[..., AbstractAsyncContextManager[Gatehouse]]


def request(body: Mapping[str, Any], *lines: str, path: str = "/v1/chat/completions") -> bytes:
    """The bytes of a call with the known key."""
    return post(orjson.dumps(body), f"Authorization: Bearer {KEY}", *lines, path=path)


def events(body: bytes) -> list[Any]:
    """The JSON of every event of a stream, [DONE] left out."""
    data = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ")]
    return [orjson.loads(one) for one in data if one != b"[DONE]"]


async def _activate(redis: Redis, credit: int) -> None:
    """What a recovery would do: one partition with one wallet."""
    await install(redis)
    partition = Partition(redis, 0)
    await partition.freeze(1)
    await partition.load(1, [WalletState(WALLET, credit, 0, 1)])
    await partition.activate(1, 1)


def _parts(
    redis_url: str,
    redis: Redis,
    folder: Path,
    find: Find,
    sheet: PriceSheet,
    teller: Teller,
    *,
    renew_s: float,
) -> Parts:
    journal = Journal.create(folder / "journal", worker="test")
    journals = Journals(journal, folder / "journal", prices=lambda: sheet)
    conveyor = Conveyor(
        redis_url,
        partitions=1,
        renew_s=renew_s,
        on_settled=journals.on_settled,
        on_generation=journals.on_generation,
    )
    journals.attach(conveyor)
    pool = asyncpg.create_pool("postgresql://nobody@127.0.0.1:1/none", min_size=0)
    return Parts(
        authenticator=_authenticator(redis, find),
        conveyor=conveyor,
        wallets=Wallets(pool, redis, on_lost=lambda _: None),
        closed=Closed(redis),
        grace=Grace(pool, conveyor, Metrics(), workers=1, monotonic_s=time.monotonic),
        clients=Clients(PEPPER),
        journal=journal,
        journals=journals,
        upstream=Upstream(),
        adapter=OpenAI(),
        contents=ContentLog(pool, Vault(sealer(PEPPER, os.urandom), os.urandom), Metrics()),
        teller=teller,
        monotonic_s=time.monotonic,
        wall_s=time.time,  # noqa: TID251 - a root
    )


def _authenticator(redis: Redis, find: Find) -> Authenticator:
    return Authenticator(
        digest=_digest,
        cache=KeyCache(redis, time.time),  # noqa: TID251 - a root
        find=find,
        clock=Clock(time.time, time.monotonic),  # noqa: TID251 - a root
        limits=AuthLimits(postgres_s=5.0),
    )
