"""`tollgate doctor`: everything that would break a promise, as far as this machine can tell.

The settings of both servers, their clocks and users, the files of the data folder, secrets and
journals here; the ledger itself in `ledger.doctor`. Nothing is changed. A check that cannot be made
is a problem by itself: at three in the morning silence is no good news.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import NamedTuple

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from gateway.management import doctor_files as files
from gateway.settings import Config, Durability
from ledger import doctor as ledger_doctor
from ledger.clients import name_of, primaries
from ledger.doctor import Finding, Grade, Ledger, good, judged
from ledger.fcall import Epoch, execute
from ledger.library import library_versions
from ledger.postgres import AWAY

CLOCK_S_MAX = 5.0
_CLOCK_WARNED_S = 1.0  # heartbeats are told in the time of one node
_MEMORY_WARNED = 0.7  # of maxmemory: at all of it holds are refused
_ASK_S = 5.0

_POSTGRES_SETTINGS = ("fsync", "full_page_writes", "synchronous_commit")
_POSTGRES_USER = "SELECT current_user, rolsuper FROM pg_roles WHERE rolname = current_user"
_POSTGRES_NOW = "SELECT extract(epoch FROM clock_timestamp())::float8"


class Patient(NamedTuple):
    """What is examined: connections, and what the configuration says of them."""

    config: Config
    connection: asyncpg.Connection
    redis: Redis  # as gateways use it
    admin: Redis  # as the control process uses it
    wall_s: Callable[[], float]


Check = Callable[[Patient], Awaitable[Finding]]


async def postgres_settings(patient: Patient) -> Finding:
    """Whether a commit is on the disk when Postgres says so."""
    said = [
        f"{name} is off"
        for name in _POSTGRES_SETTINGS
        if await patient.connection.fetchval("SELECT current_setting($1)", name) == "off"
    ]
    todo = "turn it on in postgresql.conf, or for the role and database, and reload: a power cut"
    return judged(
        "postgres: settings",
        said,
        [],
        todo=f"{todo} would lose what was booked",
        otherwise=f"{', '.join(_POSTGRES_SETTINGS)} are on",
    )


async def postgres_user(patient: Patient) -> Finding:
    """Whether gateways could do more in Postgres than they need."""
    row = await patient.connection.fetchrow(_POSTGRES_USER)
    assert row is not None, "one is always somebody"
    if row["rolsuper"]:
        said = f"gateways log in as {row['current_user']}, a superuser"
        todo = "give them a role that owns its database and nothing else"
        return Finding(Grade.WARNING, "postgres: user", said, todo)
    return good("postgres: user", f"{row['current_user']}, no superuser")


async def redis_settings(patient: Patient) -> Finding:
    """Whether Redis keeps what it is given, as the durability mode wants it."""
    info = await _info(patient.redis)
    asked = await _asked(patient.admin, "appendfsync", "min-replicas-to-write")
    problems, warnings = [], []
    if info["role"] != "master":
        problems.append("it is a replica and refuses writes: point redis.url at its primary")
    policy = info["maxmemory_policy"]
    if policy != "noeviction":
        problems.append(f"maxmemory-policy is {policy}: it may drop wallets")
    if info["aof_enabled"] != "1":
        problems.append("appendonly is no: a restart loses everything since the last snapshot")
    problems += [
        f"{name} is {info[name]}: its disk is full or broken, make room or replace it"
        for name in ("aof_last_write_status", "aof_last_bgrewrite_status")
        if info.get(name, "ok") != "ok"
    ]
    appendfsync = asked.get("appendfsync")
    mode = patient.config.ledger.durability
    if appendfsync is None:
        warnings.append("its user may not ask for appendfsync: set redis.admin_url")
    elif appendfsync == "no":
        problems.append("appendfsync is no: what it has said is on no disk")
    elif mode is not Durability.JOURNAL and appendfsync != "always":
        problems.append(f"appendfsync is {appendfsync}, durability {mode} promises always")
    replicas = int(info["connected_slaves"])
    if mode is Durability.REPLICA and not replicas:
        problems.append("it has no replica, for which the last byte of an answer waits: add one")
    if (replicas or mode is Durability.REPLICA) and asked.get("min-replicas-to-write") == "0":
        found = problems if mode is Durability.REPLICA else warnings
        found.append("min-replicas-to-write is 0: it goes on without its replicas")
    todo = "settings: by `CONFIG SET`, and in its configuration file"
    said = f"noeviction, append-only, appendfsync {appendfsync}"
    return judged("redis: settings", problems, warnings, todo=todo, otherwise=said)


async def redis_memory(patient: Patient) -> Finding:
    """Whether there is room for what an outage of Postgres would leave there."""
    info = await _info(patient.redis)
    used, most = int(info["used_memory"]), int(info["maxmemory"])
    mib = f"{used >> 20} MiB used"
    todo = (
        "set maxmemory to what the machine can spare: docs/operations.md says how much an hour is"
    )
    if not most:
        said = f"{mib}, and no maxmemory: the kernel would kill it"
        return Finding(Grade.WARNING, "redis: memory", said, todo)
    if used > most * _MEMORY_WARNED:
        said = f"{mib} of {most >> 20}: when it is full, no call is admitted"
        return Finding(Grade.WARNING, "redis: memory", said, todo)
    return good("redis: memory", f"{mib} of {most >> 20}")


async def redis_user(patient: Patient) -> Finding:
    """Whether gateways could empty Redis by mistake."""
    name = await execute(patient.redis, "ACL WHOAMI")
    try:
        allowed = await execute(patient.admin, "ACL DRYRUN", name, "FLUSHALL") == b"OK"
    except ResponseError:
        said = f"gateways log in as {name}; what it may do cannot be asked"
        return Finding(Grade.WARNING, "redis: user", said, "set redis.admin_url")
    if allowed:
        said = f"gateways log in as {name}, who may do FLUSHALL"
        todo = "give them a user without @admin and @dangerous, as docs/operations.md has it"
        return Finding(Grade.WARNING, "redis: user", said, todo)
    return good("redis: user", f"{name}, who may not empty it")


async def redis_library(patient: Patient) -> Finding:
    """Whether Redis runs this release's functions."""
    loaded, ours = await library_versions(patient.admin)
    if loaded is None:
        said = "the function library is not there: nothing is admitted"
        todo = "start `tollgate serve`, which loads it; or mend the rights of redis.admin_url"
        return Finding(Grade.PROBLEM, "redis: functions", said, todo)
    if loaded < ours:
        said = f"version {loaded} is loaded, this release has {ours}"
        todo = "restart the control process (`tollgate serve`): it replaces it"
        return Finding(Grade.PROBLEM, "redis: functions", said, todo)
    if loaded > ours:
        said = f"version {loaded} is loaded, this gateway is older and has {ours}"
        return Finding(Grade.WARNING, "redis: functions", said, "bring it to the same release")
    return good("redis: functions", f"version {ours}, this release's")


async def clocks(patient: Patient) -> Finding:
    """Whether this machine's clock and those of both servers agree."""

    async def postgres_s() -> float:
        return float(await patient.connection.fetchval(_POSTGRES_NOW))

    async def redis_s() -> float:
        seconds, micros = await execute(patient.redis, "TIME")
        return int(seconds) + int(micros) / 1e6

    problems, warnings, worst_s = list[str](), list[str](), 0.0
    for name, ask in (("Postgres", postgres_s), ("Redis", redis_s)):
        before_s = patient.wall_s()
        theirs_s = await ask()
        off_s = theirs_s - (before_s + patient.wall_s()) / 2
        worst_s = max(worst_s, abs(off_s))
        if abs(off_s) > _CLOCK_WARNED_S:
            found = problems if abs(off_s) > CLOCK_S_MAX else warnings
            found.append(f"{name}'s clock is {off_s:+.1f} s from this machine's")
    todo = "run an NTP client on every machine; call ids and records are dated by these clocks"
    said = f"within {worst_s * 1000:.0f} ms of Postgres and Redis"
    return judged("clocks", problems, warnings, todo=todo, otherwise=said)


SERVER_CHECKS: tuple[tuple[str, Check], ...] = (
    ("postgres: settings", postgres_settings),
    ("postgres: user", postgres_user),
)
REDIS_CHECKS: tuple[tuple[str, Check], ...] = (
    ("redis: settings", redis_settings),
    ("redis: memory", redis_memory),
    ("redis: user", redis_user),
    ("redis: functions", redis_library),
    ("clocks", clocks),
)


async def examine(patient: Patient) -> AsyncIterator[Finding]:
    """Every check there is, each as soon as it is made."""
    config = patient.config
    yield files.providers(config)
    yield files.permissions(config)
    yield files.disk(config)
    for name, check in SERVER_CHECKS:
        yield await _made(name, check(patient))
    servers = await _servers(patient) or [patient]
    for name, check in REDIS_CHECKS:
        for server in servers:
            made = await _made(name, check(server))
            where = f"{name_of(server.redis)}: " if len(servers) > 1 else ""
            yield made._replace(said=where + made.said)
    ledger = Ledger(patient.connection, patient.redis, config.ledger.partitions)
    schema = await _made("schema", ledger_doctor.schema(ledger))
    yield schema
    if schema.grade is Grade.PROBLEM:
        return  # the others would not find the tables that they ask
    yield await _made("pepper", files.pepper(config, patient.connection))
    for name, examined in ledger_doctor.CHECKS:
        yield await _made(name, examined(ledger))
    yield await _made("journals", files.journals(config, patient.connection))


async def _servers(patient: Patient) -> list[Patient]:
    """The patient with each of its Redis servers: all but a Cluster have one."""
    try:
        admins = {name_of(one): one for one in await primaries(patient.admin)}
        seen = await primaries(patient.redis)
        # Who sees a server that the other does not sees an older Cluster: it is asked all the same.
        return [
            patient._replace(redis=one, admin=admins.get(name_of(one), patient.admin))
            for one in seen
        ]
    except RedisError:
        return [patient]  # every check of it will say so


async def _made(name: str, finding: Awaitable[Finding]) -> Finding:
    """The finding; a server that gives no answer is one."""
    try:
        return await finding
    except (asyncpg.PostgresError, RedisError, Epoch, *AWAY) as error:
        said = f"cannot be checked: {type(error).__name__}: {error}".replace("\n", " ")
        todo = "is the server up, and may this user ask? Try again: a recovery takes seconds"
        return Finding(Grade.PROBLEM, name, said, todo)


async def _info(redis: Redis) -> Mapping[str, str]:
    told = [await execute(redis, "INFO", section) for section in _SECTIONS]
    return {name: str(value) for section in told for name, value in section.items()}


_SECTIONS = ("replication", "memory", "persistence")


async def _asked(redis: Redis, *names: str) -> Mapping[str, str]:
    """What these settings are; nothing if this user may not ask."""
    try:
        told: Mapping[str, str] = await execute(redis, "CONFIG GET", *names)
    except ResponseError:
        return {}
    return told
