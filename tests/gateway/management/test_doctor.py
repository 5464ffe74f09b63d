"""The doctor of servers, files and secrets: each fault is planted in a real one, and told."""

import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import pytest
import yaml
from redis.asyncio import Redis

from gateway.config import read
from gateway.embedded import Urls
from gateway.management import doctor
from gateway.management.doctor import Patient, examine
from gateway.settings import Config, Durability
from ledger.doctor import Finding, Grade
from ledger.fcall import execute
from ledger.functions import install
from tests.ledger.own_valkey import OwnValkey

ROOM = "maxmemory 1gb"
LIBRARY = Path(doctor.__file__).parents[2] / "ledger" / "lua" / "tollgate.lua"


def configured(folder: Path, **changes: Any) -> Config:
    """A configuration with its data in a folder of the test's."""
    return read(yaml.safe_dump({"data_dir": str(folder / "data"), **changes}), {})


class Stage(NamedTuple):
    """A patient, and the server of its own that is to be harmed."""

    patient: Patient
    valkey: OwnValkey


@pytest.fixture
async def stage(tmp_path: Path, postgres_url: str) -> AsyncIterator[Stage]:
    """Postgres of the tests, and a Valkey as docs/operations.md wants it."""
    valkey = OwnValkey(tmp_path / "own", ROOM)
    await valkey.start()
    redis = Redis.from_url(valkey.url)
    await install(redis)
    connection = await asyncpg.connect(postgres_url)
    yield Stage(Patient(configured(tmp_path), connection, redis, redis, now_s), valkey)
    await connection.close()
    await redis.aclose()
    valkey.kill()


def now_s() -> float:
    return time.time()  # noqa: TID251 - a root


Harm = Callable[[Patient], Awaitable[Any]]


def command(*words: str) -> Harm:
    """A hand in Redis."""
    return lambda patient: execute(patient.redis, *words)


def other_library(version: int) -> Harm:
    """The library of another release."""
    code = re.sub(r"-- version: \d+", f"-- version: {version}", LIBRARY.read_text(), count=1)
    return command("FUNCTION LOAD", "REPLACE", code)


SERVER_FAULTS: list[tuple[str, Grade, str, Harm]] = [
    ("redis: settings", Grade.PROBLEM, "maxmemory-policy is allkeys-lru", command(
        "CONFIG SET", "maxmemory-policy", "allkeys-lru"
    )),
    ("redis: settings", Grade.PROBLEM, "appendonly is no", command(
        "CONFIG SET", "appendonly", "no"
    )),
    ("redis: settings", Grade.PROBLEM, "appendfsync is no", command(
        "CONFIG SET", "appendfsync", "no"
    )),
    ("redis: settings", Grade.PROBLEM, "it is a replica", command("REPLICAOF", "127.0.0.1", "1")),
    ("redis: memory", Grade.WARNING, "no maxmemory", command("CONFIG SET", "maxmemory", "0")),
    ("redis: memory", Grade.WARNING, "no call is admitted", command(
        "CONFIG SET", "maxmemory", "1200000"
    )),
    ("redis: functions", Grade.PROBLEM, "is not there", command("FUNCTION FLUSH")),
    ("redis: functions", Grade.PROBLEM, "version 1 is loaded", other_library(1)),
    ("redis: functions", Grade.WARNING, "version 99 is loaded", other_library(99)),
]  # fmt: skip


async def asked(patient: Patient, name: str) -> Finding:
    """What one check of the servers says."""
    return await dict(doctor.SERVER_CHECKS + doctor.REDIS_CHECKS)[name](patient)


async def test_a_redis_as_it_must_be_has_nothing_to_say(stage: Stage) -> None:
    for name in ("redis: settings", "redis: memory", "redis: functions", "clocks"):
        assert (await asked(stage.patient, name)).grade is Grade.OK


@pytest.mark.parametrize(
    ("name", "grade", "said", "harm"), SERVER_FAULTS, ids=[one[2] for one in SERVER_FAULTS]
)
async def test_a_redis_that_would_break_a_promise_is_told(
    stage: Stage, name: str, grade: Grade, said: str, harm: Harm
) -> None:
    await harm(stage.patient)
    found = await asked(stage.patient, name)
    assert found.grade is grade, found
    assert said in found.said
    assert found.todo


async def test_group_durability_wants_an_fsync_of_every_write(stage: Stage, tmp_path: Path) -> None:
    config = configured(tmp_path, ledger={"durability": "journal-group"})
    patient = stage.patient._replace(config=config)
    assert (await asked(patient, "redis: settings")).grade is Grade.OK
    await execute(patient.redis, "CONFIG SET", "appendfsync", "everysec")
    found = await asked(patient, "redis: settings")
    assert (found.grade, "promises always" in found.said) == (Grade.PROBLEM, True)


async def test_a_mode_that_waits_for_a_replica_wants_one(stage: Stage, tmp_path: Path) -> None:
    config = configured(tmp_path)
    ledger = replace(config.ledger, durability=Durability.REPLICA)
    patient = stage.patient._replace(config=replace(config, ledger=ledger))
    found = await asked(patient, "redis: settings")
    assert (found.grade, "it has no replica" in found.said) == (Grade.PROBLEM, True)


async def test_users_who_may_do_too_much_are_told(stage: Stage, servers: Urls) -> None:
    found = await asked(stage.patient, "redis: user")
    assert (found.grade, "may do FLUSHALL" in found.said) == (Grade.WARNING, True)
    assert (await asked(stage.patient, "postgres: user")).grade is Grade.OK
    admin = await asyncpg.connect(servers.postgres_admin)
    try:
        as_admin = stage.patient._replace(connection=admin)
        found = await asked(as_admin, "postgres: user")
    finally:
        await admin.close()
    assert (found.grade, "superuser" in found.said) == (Grade.WARNING, True)


async def test_a_user_of_its_own_for_gateways_is_right(stage: Stage, servers: Urls) -> None:
    async with Redis.from_url(servers.redis) as app, Redis.from_url(servers.redis_admin) as admin:
        apart = stage.patient._replace(redis=app, admin=admin)
        assert (await asked(apart, "redis: user")).said == "app, who may not empty it"
        # Who may not ask for settings says so, and nothing else.
        blind = stage.patient._replace(redis=app, admin=app)
        found = await asked(blind, "redis: settings")
        assert (found.grade, found.said) == (
            Grade.WARNING,
            "its user may not ask for appendfsync: set redis.admin_url",
        )


async def test_a_postgres_that_may_lose_commits_is_told(stage: Stage) -> None:
    # The tests' own Postgres runs without these two, as nothing of it outlives the run.
    found = await asked(stage.patient, "postgres: settings")
    assert (found.grade, found.said) == (
        Grade.PROBLEM,
        "fsync is off; full_page_writes is off",
    )
    await stage.patient.connection.execute("SET synchronous_commit = off")
    found = await asked(stage.patient, "postgres: settings")
    assert found.said.endswith("; synchronous_commit is off")


@pytest.mark.parametrize("off_s", [-6.0, 6.0])
async def test_clocks_apart_by_more_than_five_seconds_are_told(stage: Stage, off_s: float) -> None:
    patient = stage.patient._replace(wall_s=lambda: now_s() + off_s)
    found = await asked(patient, "clocks")
    assert found.grade is Grade.PROBLEM
    assert found.said.count("from this machine's") == 2


async def test_a_server_that_is_away_is_a_problem_of_each_of_its_checks(stage: Stage) -> None:
    stage.valkey.kill()
    found = {finding.check: finding async for finding in examine(stage.patient)}
    for name in ("redis: settings", "redis: memory", "clocks", "partitions", "holds"):
        assert found[name].grade is Grade.PROBLEM
        assert found[name].said.startswith("cannot be checked: ConnectionError")
    assert found["books"].grade is Grade.OK


async def test_without_tables_nothing_that_needs_them_is_asked(
    stage: Stage, postgres_empty_url: str
) -> None:
    connection = await asyncpg.connect(postgres_empty_url)
    try:
        patient = stage.patient._replace(connection=connection)
        found = [finding async for finding in examine(patient)]
    finally:
        await connection.close()
    assert (found[-1].check, found[-1].todo) == ("schema", "run `tollgate migrate`")
