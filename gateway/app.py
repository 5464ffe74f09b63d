"""A worker, put together: reading this shows what the data plane consists of.

What is built first is closed last. Every task belongs to the worker's task group, so none fails
unseen: a worker with a broken part dies and is started again, and its journal makes that safe.
"""

import asyncio
import gc
import logging
import os
import secrets
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import asyncpg
import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.auth import Authenticator, AuthLimits, Clock
from gateway.channel import hear
from gateway.closed import Closed
from gateway.config import load, pepper, secrets_in
from gateway.content import Vault
from gateway.content_log import ContentLog
from gateway.front import Front
from gateway.journals import Journals
from gateway.key_cache import KeyCache
from gateway.keys import key_digester
from gateway.logs import Lines, set_level
from gateway.management import known_keys
from gateway.metrics import Metrics
from gateway.proxy.calls import Calls, Parts
from gateway.proxy.clients import Clients
from gateway.proxy.grace import Grace
from gateway.proxy.leaving import let_end
from gateway.proxy.live import Terms
from gateway.proxy.table import Table
from gateway.proxy.tell import Teller
from gateway.readiness import Readiness
from gateway.reload import ConfigFile
from gateway.sealing import sealer
from gateway.settings import Config, Durability
from gateway.sheets import SheetFile, Together
from gateway.snapshots import Publisher
from gateway.upstream import Upstream
from gateway.vitals import Vitals
from gateway.wallets import Wallets
from ledger.cancelled import obeyed, raise_if_cancelled
from ledger.clients import follow, open_redis
from ledger.conveyor import Conveyor
from ledger.journal import Journal
from ledger.outage import REDIS, outage
from ledger.postgres import pooled
from ledger.pricing import PriceSheet
from ledger.recovery import EPOCH_CHANNEL
from ledger.rollcall import GENERATION_CHANNEL, Presence, read_call
from providers.adapter import Secret
from providers.openai.dialect import OpenAI

log = logging.getLogger(__name__)

_POOL_MAX = 2  # Postgres connections of a worker: unknown keys and unknown wallets only
_KEY_QUERIES_PER_S = 8.0  # for unknown keys, of all workers together
_COLLECT_EVERY = 20_000  # allocations; the default, 700, costs a tenth of the worker's CPU
_LAST_ENDS_S = 5.0  # for the ends of the last calls to reach Redis
# Prices that come within it are waited for in silence: until then our port may be another worker's,
# or that of the deployment before this one, and calls are better off there.
_PRICES_S = 2.0


async def run_worker(
    config_path: Path,
    *,
    number: int,
    workers: int,
    stop: asyncio.Event,
    reload: asyncio.Event,
    lines: Lines,
    dropped: Callable[[], int],
) -> None:
    """Serve calls until `stop`; then drain. `dropped`: how many lines of the log nobody took."""
    config = load(config_path)
    sheets = SheetFile(config.run_dir)
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        front = Front(config.listeners.data, config.limits)
        stack.push_async_callback(front.shut)
        prices = group.create_task(sheets.until_there(config, stop), name="first prices")
        await asyncio.wait((prices,), timeout=_PRICES_S)
        if not prices.done():
            log.warning("calls are refused until there are prices")
            await front.open()
        if await prices is None:
            return
        worker = await Worker.built(
            config,
            sheets,
            front,
            stack,
            name=f"worker-{number}",
            workers=workers,
            lines=lines,
            dropped=dropped,
        )
        file = ConfigFile(config_path, None, config=config, metrics=worker.vitals.publisher.metrics)
        together = Together(sheets, config, worker.configure)
        file.subscribe(together.configure)
        together.configure(config)
        tasks = [
            group.create_task(work, name=name)
            for name, work in (
                *worker.jobs(),
                ("config", file.watch()),
                ("prices", sheets.watch(together.price)),
            )
        ]
        tasks.append(group.create_task(file.heed(reload), name="reload by signal"))
        await worker.serve(stop)
        for task in tasks:
            task.cancel()


@dataclass(frozen=True, slots=True)
class Worker:
    """The parts of one data-plane process."""

    calls: Calls
    parts: Parts
    front: Front
    vitals: Vitals
    redis: Redis
    presence: Presence
    notices: asyncio.Queue[int]  # partitions that need a recovery
    lines: Lines

    @classmethod
    async def built(
        cls,
        config: Config,
        sheets: SheetFile,
        front: Front,
        stack: AsyncExitStack,
        *,
        name: str,
        workers: int,
        lines: Lines,
        dropped: Callable[[], int],
    ) -> "Worker":
        """Every part, in the order of who needs whom; `stack` closes them in reverse."""
        metrics, readiness = Metrics(), Readiness(time.monotonic)
        for check in ("serving", "redis", "journal", "backlog"):
            readiness.expect(check)
        notices: asyncio.Queue[int] = asyncio.Queue()
        redis = open_redis(_url(config.redis.url))
        stack.push_async_callback(redis.aclose)
        gateway = f"{name}-{os.getpid()}-{secrets.token_hex(8)}"
        presence = Presence(redis, gateway)
        stack.push_async_callback(presence.leave)
        journal = _journal(config, name, stack)
        journals = Journals(journal, config.journal_dir, prices=lambda: sheets.sheet)
        stack.callback(journals.release)
        conveyor = _conveyor(config, gateway, journals, notices, metrics)
        journals.attach(conveyor)
        pool = await stack.enter_async_context(_pool(config))
        vault = Vault(sealer(_pepper(config), secrets.token_bytes), secrets.token_bytes)
        contents = ContentLog(pool, vault, metrics)
        parts = Parts(
            authenticator=_authenticator(config, redis, pool, workers=workers),
            conveyor=conveyor,
            closed=Closed(redis),
            wallets=Wallets(pool, redis, on_lost=notices.put_nowait),
            grace=Grace(pool, conveyor, metrics, workers=workers, monotonic_s=time.monotonic),
            clients=Clients(_pepper(config)),
            journal=journal,
            journals=journals,
            upstream=_upstream(stack),
            adapter=OpenAI(),
            contents=contents,
            teller=Teller(metrics, lines),
            monotonic_s=time.monotonic,
            wall_s=time.time,
        )
        assert sheets.sheet is not None, "there are prices"
        calls = Calls(parts, Terms(config, sheets.sheet))
        conveyor.renewal = calls.renewal
        publisher = stack.enter_context(
            Publisher(config.run_dir, process=name, metrics=metrics, readiness=readiness)
        )
        vitals = Vitals(calls=calls, parts=parts, dropped=dropped, publisher=publisher)
        return cls(calls, parts, front, vitals, redis, presence, notices, lines)

    def configure(self, config: Config, sheet: PriceSheet) -> None:
        """Take a new configuration with its prices; calls in flight keep what they started with."""
        self.calls.terms = Terms(config, sheet)
        self.front.limit(config.limits)
        self.parts.upstream.limit(_connections_max(config))
        self.vitals.publisher.metrics.configure(
            providers=config.providers.keys(),
            models=config.models.keys(),
            process=self.vitals.publisher.process,
        )
        self.lines.know_secrets([*secrets_in(config)])
        set_level(config.logging.level)

    def jobs(self) -> Iterator[tuple[str, Coroutine[None, None, None]]]:
        """What runs beside the calls for as long as the worker does."""
        yield "master watch", follow(self.redis)
        yield "presence", self.presence.run()
        yield "conveyor", self._convey()
        yield "generations", hear(self.redis, GENERATION_CHANNEL, self._look)
        yield "auth", self.parts.authenticator.run()
        yield "backlog", self.parts.closed.hear()
        yield "grace", self.parts.grace.run()
        yield "journal", self.parts.journal.sync_loop()
        yield "proofs", self.parts.journals.hear_proofs(self.redis)
        yield "generations' ends", self.parts.journals.retell(self.redis)
        yield "journals' ends", self.parts.journals.hand_over()
        yield "orphans", self.parts.journals.adopt_orphans()
        yield "vitals", self.vitals.publisher.run(time.time, look=self.vitals.look)
        yield "notices", self._pass_notices()
        yield "contents", self.parts.contents.run()

    async def serve(self, stop: asyncio.Event) -> None:
        """Serve until `stop`, then drain: no call that was let in is cut before its time."""
        config, readiness = self.calls.terms.config, self.vitals.publisher.readiness
        front, parts = self.front, self.parts
        table = Table(self.calls, parts.authenticator, probe=partial(_probe, readiness))
        await front.open(table.handle, tell=parts.teller.turned_away)
        _calm_the_collector()
        readiness.good("serving")
        address = config.listeners.data
        log.info("serving", extra={"host": address.host, "port": address.port})
        await stop.wait()
        readiness.bad("serving", "stopping")
        self.vitals.publisher.publish(time.time())
        front.server.leave()
        await asyncio.sleep(config.shutdown.drain_delay_s)
        front.close()
        await let_end(front.server, self.calls.under_way, within_s=config.shutdown.streams_s_max)
        await front.shut()
        left, _ = await asyncio.gather(
            parts.conveyor.drain(_LAST_ENDS_S), parts.contents.drain(_LAST_ENDS_S)
        )
        log.info("stopped", extra={"ends_left_to_the_journal": left})

    async def _convey(self) -> None:
        """Hold nothing before the recoveries know of us: they wait for nobody else."""
        await self.presence.known.wait()
        await self.parts.conveyor.run()

    def _look(self, message: bytes) -> None:
        partition, _ = read_call(message)
        self.parts.conveyor.look(partition)

    async def _pass_notices(self) -> None:
        """Tell whoever recovers that a partition needs it. Redis may be away, then it will ask."""
        while True:
            partition = await self.notices.get()
            self.vitals.publisher.metrics.epochs.add()
            try:
                await obeyed(self.redis.publish(EPOCH_CHANNEL, str(partition)))
            except (RedisError, OSError) as error:
                raise_if_cancelled()
                log.warning("epoch not told", extra=outage(error, of=REDIS))


def _calm_the_collector() -> None:
    """A call leaves no cycles behind, so the collector has little to find and may look seldom.

    What was built until now lives as long as the process: it is not looked at again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_EVERY, 20, 50)


def _probe(readiness: Readiness) -> tuple[bool, bytes]:
    state = readiness.state()
    return state.ready, msgspec.json.encode(state)


def _pool(config: Config) -> AbstractAsyncContextManager[asyncpg.Pool]:
    """Made without a connection, so that a worker starts while Postgres is away."""
    return pooled(_url(config.postgres.url), name="worker", size=_POOL_MAX, command_timeout_s=2)


def _url(url: Secret | None) -> str:
    assert url is not None, "the supervisor has set it"
    return url.reveal()


def _pepper(config: Config) -> Secret:
    return pepper(config, secrets.token_urlsafe(32))


def _journal(config: Config, name: str, stack: AsyncExitStack) -> Journal:
    journal = Journal.create(
        config.journal_dir,
        worker=f"{name}-{os.getpid()}",
        fsync="group" if config.ledger.durability is Durability.JOURNAL_GROUP else "interval",
        sync_interval_s=config.ledger.journal.fsync_interval_s,
        segment_bytes=config.ledger.journal.segment_bytes,
        bytes_max=config.ledger.journal.bytes_max,
    )
    stack.callback(journal.close)
    return journal


def _upstream(stack: AsyncExitStack) -> Upstream:
    upstream = Upstream()
    stack.push_async_callback(upstream.close)
    return upstream


def _conveyor(
    config: Config, gateway: str, journals: Journals, notices: asyncio.Queue[int], metrics: Metrics
) -> Conveyor:
    return Conveyor(
        _url(config.redis.url),
        partitions=config.ledger.partitions,
        renew_s=config.ledger.hold_renew_s,
        lease_s=config.ledger.hold_lease_s,
        gateway=gateway,
        needs_replica=config.ledger.durability is Durability.REPLICA,
        on_epoch=notices.put_nowait,
        on_settled=journals.on_settled,
        on_generation=journals.on_generation,
        on_batch=partial(_count_batch, metrics),
    )


def _connections_max(config: Config) -> dict[tuple[str, str, int], int]:
    """By origin; of providers at the same one, which share its connections, the highest."""
    most: dict[tuple[str, str, int], int] = {}
    for provider in config.providers.values():
        scheme, host, port, _ = provider.base_url
        known = most.get((scheme, host, port), 0)
        most[scheme, host, port] = max(known, provider.connections_max)
    return most


def _authenticator(
    config: Config, redis: Redis, pool: asyncpg.Pool, *, workers: int
) -> Authenticator:
    auth = config.auth
    return Authenticator(
        digest=key_digester(_pepper(config)),
        cache=KeyCache(redis, time.time),
        find=partial(known_keys.find, pool),
        clock=Clock(time.time, time.monotonic),
        limits=AuthLimits(
            stale_s=auth.key_cache_s,
            entries_max=auth.key_cache_entries,
            queries_per_s=_KEY_QUERIES_PER_S / workers,
        ),
    )


def _count_batch(metrics: Metrics, steps: int, wait_us: int) -> None:
    metrics.conveyor_batch.observe(steps)
    metrics.conveyor_wait_seconds.observe(wait_us)
