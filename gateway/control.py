"""The control process, put together: the jobs that one process does for all workers.

It may die at any time and be started again: everything it does can be repeated, and the workers go
on meanwhile. It starts without Postgres or Redis and goes to work once they are there.
"""

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, fields
from pathlib import Path

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.config import load, secrets_in
from gateway.days import Days
from gateway.logs import Lines, set_level
from gateway.management.service import managed
from gateway.metrics import Metrics
from gateway.observe import observed
from gateway.readiness import OK, Readiness
from gateway.reload import ConfigFile
from gateway.settings import Config
from gateway.sheets import fingerprint, priced, write_sheet
from gateway.snapshots import Collector, Publisher
from ledger.audit import Audit, Drift
from ledger.backlog import Backlog, Limits
from ledger.cancelled import raise_if_cancelled
from ledger.clients import follow, open_redis
from ledger.flusher import Flusher, FlusherTallies, Pace
from ledger.functions import install
from ledger.migrate import MigrationFailed, migrate
from ledger.outage import POSTGRES, outage
from ledger.postgres import AWAY, connect
from ledger.price_compiler import compile_sheet
from ledger.pricing import PriceSheet
from ledger.recovery import Recovered, Recovery

log = logging.getLogger(__name__)

NAME = "control"
_RETRY_S = 0.2
_SILENT_S = 5.0  # of what is heard several times a second
_FUNCTIONS_EVERY_S = 10.0
_ANSWER_S = 5.0  # the largest steps are the jobs'
FLUSH_REST_S_MAX = 5.0  # of a stop; thousands of ends take less, and the streams keep the others
_STORE_SHEET = """
    INSERT INTO price_sheet (version, sheet) VALUES ($1, $2) ON CONFLICT (version) DO NOTHING
"""


async def run_control(
    config_path: Path,
    *,
    workers: int,
    stop: asyncio.Event,
    reload: asyncio.Event,
    lines: Lines,
    dropped: Callable[[], int],
) -> None:
    """Do every job until `stop`. `dropped`: how many lines of the log nobody took."""
    config = load(config_path)
    set_level(config.logging.level)
    lines.know_secrets([*secrets_in(config)])
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        control = Control.built(config, stack, dropped=dropped)
        await stack.enter_async_context(
            observed(
                config.listeners.metrics,
                collector=Collector(control.publisher),
                own=NAME,
                wall_s=time.time,
            )
        )
        if not await _ended_before(stop, control.prepare(stop)):
            return
        file = ConfigFile(config_path, None, config=config, metrics=control.metrics)
        file.subscribe(control.configure)
        file.subscribe(lambda new: lines.know_secrets([*secrets_in(new)]))
        staff = await stack.enter_async_context(
            managed(
                config,
                control.redis,
                moved=control.flusher.moved,
                wall_s=time.time,
                monotonic_s=time.monotonic,
            )
        )
        jobs = [
            *control.jobs(),
            *staff.jobs(),
            ("config", file.watch()),
            ("reload", file.heed(reload)),
        ]
        tasks = [group.create_task(work, name=name) for name, work in jobs]
        log.info("control runs", extra={"workers": workers})
        await stop.wait()
        staff.leave()
        for task in tasks:
            task.cancel()
        await control.flusher.flush_rest(within_s=FLUSH_REST_S_MAX)


async def _ended_before(stop: asyncio.Event, work: Coroutine[None, None, None]) -> bool:
    """Whether `work` came to its end before `stop`, which cuts it off: it may be repeated."""
    async with asyncio.TaskGroup() as group:
        tasks = (
            group.create_task(work, name="preparation"),
            group.create_task(stop.wait(), name="stop"),
        )
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
    return not stop.is_set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """The parts of the control process."""

    config: Config
    metrics: Metrics
    readiness: Readiness
    publisher: Publisher
    redis: Redis
    flusher: Flusher
    backlog: Backlog
    recovery: Recovery
    audit: Audit
    days: Days
    postgres_url: str
    told: FlusherTallies  # what the metrics were told already
    dropped: Callable[[], int]
    changed: asyncio.Queue[Config]  # configurations whose prices the workers wait for

    @classmethod
    def built(
        cls, config: Config, stack: AsyncExitStack, *, dropped: Callable[[], int]
    ) -> "Control":
        """Every part; nothing is connected yet."""
        metrics, readiness = Metrics(), Readiness(time.monotonic)
        for check in ("postgres", "redis", "prices"):
            readiness.expect(check)
        for check in ("flusher", "backlog"):
            readiness.expect(check, within_s=_SILENT_S, is_required=False)
        readiness.expect("ledger", is_required=False, said=OK)
        publisher = stack.enter_context(
            Publisher(config.run_dir, process=NAME, metrics=metrics, readiness=readiness)
        )
        metrics.configure(
            providers=config.providers.keys(), models=config.models.keys(), process=NAME
        )
        redis_url = config.redis.admin_url or config.redis.url
        assert redis_url is not None, "the supervisor has set it"
        assert config.postgres.url is not None, "the supervisor has set it"
        postgres_url = config.postgres.url.reveal()
        redis = open_redis(redis_url.reveal(), answer_s=_ANSWER_S)
        stack.push_async_callback(redis.aclose)
        recovery = Recovery(
            postgres_url,
            redis,
            owner=f"{NAME}-{os.getpid()}-{secrets.token_hex(4)}",
            on_recovered=lambda recovered: _count_recovery(metrics, recovered),
        )
        ledger, partitions = config.ledger, range(config.ledger.partitions)
        limits = Limits(
            ledger.backlog_entries_max, ledger.backlog_memory_share_max, ledger.backlog_warn_share
        )
        backlog = Backlog(redis, partitions=partitions, limits=limits)
        audit = Audit(
            postgres_url,
            redis,
            partitions=partitions,
            on_drift=lambda drift: readiness.bad("ledger", _drift_text(drift)),
            every_s=ledger.audit_interval_s,
        )
        return cls(
            config=config,
            metrics=metrics,
            readiness=readiness,
            publisher=publisher,
            redis=redis,
            flusher=_flusher(config, redis, recovery, backlog, metrics),
            backlog=backlog,
            recovery=recovery,
            audit=audit,
            days=Days(postgres_url, config.plans, metrics=metrics, wall_s=time.time),
            postgres_url=postgres_url,
            told=FlusherTallies(),
            dropped=dropped,
            changed=asyncio.Queue(),
        )

    async def prepare(self, stop: asyncio.Event) -> None:
        """Schema, functions and prices, tried until they are there, or until `stop`."""
        sheet = await asyncio.to_thread(_compiled, self.config)
        while not stop.is_set():
            try:
                await migrate(self.postgres_url, partitions=self.config.ledger.partitions)
                self.readiness.good("postgres")
                await self._store(sheet)
                await install(self.redis)
                self.readiness.good("redis")
            except (MigrationFailed, asyncpg.PostgresError, *AWAY) as error:
                raise_if_cancelled()
                self.readiness.bad("postgres", str(error))
                log.warning("postgres is not ready", extra=outage(error))
            except RedisError as error:
                raise_if_cancelled()
                self.readiness.bad("redis", str(error))
                log.warning("redis is not ready", extra=outage(error))
            else:
                # Last: the workers begin when they see it. A full disk keeps no job from its work.
                if not self._hand_out(sheet, self.config):
                    self.changed.put_nowait(self.config)
                # From now on calls go on without Postgres, and each server is heard all the time.
                self.readiness.expect("postgres", within_s=_SILENT_S, is_required=False, said=OK)
                self.readiness.expect("redis", within_s=_SILENT_S, said=OK)
                self.publisher.publish(time.time())
                return
            await asyncio.sleep(_RETRY_S)

    def configure(self, config: Config) -> None:
        """Take a new configuration: compile its prices for the workers."""
        self.metrics.configure(providers=config.providers.keys(), models=config.models.keys())
        set_level(config.logging.level)
        self.changed.put_nowait(config)

    def jobs(self) -> Iterator[tuple[str, Coroutine[None, None, None]]]:
        """What runs for as long as the process does."""
        yield "master watch", follow(self.redis)
        yield "flusher", self.flusher.run()
        yield "recovery", self.recovery.run()
        yield "backlog", self.backlog.watch()
        yield "audit", self.audit.run()
        yield "days", self.days.run()
        yield "functions", self._keep_functions()
        yield "prices", self._reprice()
        yield "vitals", self.publisher.run(time.time, look=self._look)

    async def _store(self, sheet: bytes) -> None:
        """Keep the sheet with the records that name it."""
        connection = await connect(self.postgres_url, name="prices")
        try:
            await connection.execute(_STORE_SHEET, PriceSheet.load(sheet).version, sheet)
        finally:
            connection.terminate()

    async def _reprice(self) -> None:
        while True:
            config = await self.changed.get()
            sheet = await asyncio.to_thread(_compiled, config)
            while True:
                try:
                    await self._store(sheet)
                except (asyncpg.PostgresError, *AWAY) as error:
                    raise_if_cancelled()
                    log.warning("prices are not stored", extra=outage(error))
                else:
                    if self._hand_out(sheet, config):
                        break
                await asyncio.sleep(_RETRY_S)

    def _hand_out(self, sheet: bytes, config: Config) -> bool:
        """Give the workers their prices; False: the disk does not take them."""
        try:
            write_sheet(config.run_dir, sheet, of=fingerprint(config))
        except OSError as error:
            self.readiness.bad("prices", str(error))
            said = {"reason": str(error), "cause": "prices not written"}
            log.error("prices are not handed to the workers", extra=said)  # noqa: TRY400 - the reason says it all
            return False
        self.readiness.good("prices")
        return True

    async def _keep_functions(self) -> None:
        """A server that was replaced, or a node that was added, comes without them."""
        while True:
            await asyncio.sleep(_FUNCTIONS_EVERY_S)
            try:
                await install(self.redis)
            except RedisError as error:
                raise_if_cancelled()
                log.info("functions not looked at", extra={"reason": str(error)})

    def _look(self) -> None:
        """Metrics out of the tallies, and whether the flusher gets its work done."""
        told, now = self.told, self.flusher.tallies
        _count_flushes(self.metrics, told, now)
        self.metrics.log_lines_dropped.reach(self.dropped())
        for partition, count in self.backlog.counts.items():
            self.metrics.stream_backlog.set(count.unflushed, (str(partition),))
            self.metrics.holds_open.set(count.open_holds, (str(partition),))
            late_s = time.time() - now.as_of_s[partition] if count.unflushed else 0.0
            self.metrics.flush_lag_seconds.set(max(0.0, late_s), (str(partition),))
        self.metrics.backlog_share.set(self.backlog.fill)
        for partition, nanos in self.audit.tallies.drift_nanos.items():
            self.metrics.drift.set(nanos, (str(partition),))
        self._check(told, now)
        for field in fields(FlusherTallies):
            setattr(told, field.name, getattr(now, field.name))

    def _check(self, before: FlusherTallies, now: FlusherTallies) -> None:
        """What the loops have met since the last look; one that hangs is noticed by its silence."""
        readiness = self.readiness
        has_failed = now.failures > before.failures
        if has_failed:
            readiness.bad("flusher", f"cannot flush; calls go on: {now.trouble['reason']}")
        elif now.rounds > before.rounds:
            readiness.good("flusher")
        if now.reads > before.reads:
            readiness.good("postgres")
        elif has_failed and now.trouble["cause"] == POSTGRES:
            readiness.bad("postgres", now.trouble["reason"])
        self._check_backlog()

    def _check_backlog(self) -> None:
        readiness, backlog = self.readiness, self.backlog
        news = backlog.take_news()
        if news is None:
            return
        if news:
            readiness.bad("redis", news)
        else:
            readiness.good("redis")
            if over := backlog.over():
                readiness.bad("backlog", f"{len(over)} partitions admit nothing until it is less")
            elif backlog.is_worrying:
                readiness.bad("backlog", f"{backlog.fill:.0%} of what may wait for Postgres")
                said = {"entries": backlog.unflushed, "share": round(backlog.fill, 2)}
                log.warning("backlog grows", extra={**said, "cause": "backlog"})
            else:
                readiness.good("backlog")


def _flusher(
    config: Config, redis: Redis, recovery: Recovery, backlog: Backlog, metrics: Metrics
) -> Flusher:
    assert config.postgres.url is not None, "the supervisor has set it"
    ledger = config.ledger
    return Flusher(
        config.postgres.url.reveal(),
        redis,
        partitions=range(ledger.partitions),
        clock=time.time,
        on_epoch=recovery.request,
        on_flush=lambda seconds: metrics.flush_seconds.observe(int(seconds * 1e6)),
        backlog=backlog,
        pace=Pace(
            batch_max=ledger.flush_batch,
            interval_s=ledger.flush_interval_s,
            keep_bytes=ledger.stream_keep_bytes,
        ),
    )


def _compiled(config: Config) -> bytes:
    return compile_sheet(priced(config), config.prices)


def _drift_text(drift: Drift) -> str:
    """Stays until a restart: money that did not agree once is looked into, not waited away."""
    return f"drift of {drift.nanos} nano-USD in partition {drift.partition}, wallet {drift.wallet}"


def _count_recovery(metrics: Metrics, recovered: Recovered) -> None:
    metrics.recoveries.add()
    metrics.recovery_seconds.observe(int(recovered.seconds * 1e6))


def _count_flushes(metrics: Metrics, before: FlusherTallies, now: FlusherTallies) -> None:
    metrics.ends.add(("recorded",), now.records - before.records)
    metrics.ends.add(("late",), now.late - before.late)
    metrics.ends.add(("corrected",), now.corrections - before.corrections)
    metrics.ends.add(("swept",), now.swept - before.swept)
    metrics.dead_letters.add((), now.dead_letters - before.dead_letters)
