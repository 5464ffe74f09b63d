"""The doctor of the ledger: all is well, then one fault is planted, and its check tells."""

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest

from ledger.admission import Cap
from ledger.book import Organization
from ledger.doctor import CHECKS, Finding, Grade, Ledger, schema
from ledger.fcall import execute
from ledger.money import Nanos
from tests.ledger.deployment import Deployment

PARTITIONS = 16
CAP = Cap("key-1", Nanos(50_000), (0,))
DAY = "to_char((now() AT TIME ZONE 'UTC')::date + 1, 'YYYYMMDD')"

Plant = Callable[[Deployment, Organization], Awaitable[Any]]


def key(acme: Organization, name: str) -> str:
    return f"tg:{{p{acme.partition:02d}}}:{name}"


def in_redis(command: str, name: str, *arguments: object) -> Plant:
    """A hand in Redis, at a key of the organization's partition; ACME stands for its wallet."""

    async def plant(deployment: Deployment, acme: Organization) -> None:
        words = [acme.id if word == "ACME" else word for word in arguments]
        await execute(deployment.redis, command, key(acme, name), *words)

    return plant


def in_postgres(statement: str) -> Plant:
    """A hand in the tables; PART and ACME stand for the organization's."""

    async def plant(deployment: Deployment, acme: Organization) -> None:
        sql = statement.replace("PART", str(acme.partition)).replace("ACME", f"'{acme.id}'")
        await deployment.pool.execute(sql)

    return plant


async def flushed_away(deployment: Deployment, _: Organization) -> None:
    await deployment.redis.flushall()


async def an_old_end(deployment: Deployment, acme: Organization) -> None:
    log = key(acme, f"log:{await deployment.generation(acme)}")
    await deployment.redis.delete(log)
    await deployment.pool.execute("UPDATE part SET watermark_id = '0-0'")
    await deployment.redis.xadd(log, {"k": "settled"}, id="1000-0")


async def an_overdue_hold(deployment: Deployment, acme: Organization) -> None:
    await deployment.redis.zadd(key(acme, "due"), {await deployment.hold(acme): 1})


async def poison(deployment: Deployment, acme: Organization) -> None:
    await deployment.write(acme, [{b"k": b"nonsense"}])


async def a_late_end_of_more_than_there_is(deployment: Deployment, acme: Organization) -> None:
    call_id = await deployment.hold(acme)
    await deployment.redis.zadd(key(acme, "due"), {call_id: 1})
    await deployment.partition(acme).sweep(await deployment.generation(acme), 1)
    await deployment.flush(acme)
    assert await deployment.late(acme, call_id, 2_000_000) == "late"
    await deployment.flush(acme)


OLD_WITHDRAWAL = """
    INSERT INTO withdrawal
        (id, kind, reference, wallet_id, partition, amount, actor, reason, asked_at)
    VALUES (gen_random_uuid(), 'refund', 'r', ACME, PART, 5, 'a', 'b', now() - interval '1 hour')
"""
STRAY_RECORD = """
    INSERT INTO usage_record SELECT 'ffffffff-0000-7000-8000-000000000001', organization_id,
        project_id, key_id, member_id, wallet_id, admitted_at, arrived_at, kind, outcome, operation,
        provider, model_requested, model_target, model_served, tier, price_version, held, 0, 0,
        NULL, usage_source, 0, 0, 0, 0, 0, NULL, NULL, moved, partition, transaction_number
    FROM usage_record LIMIT 1
"""
RECOVERED_OFTEN = """
    INSERT INTO recovery_log (partition, generation, cause, owner, started_at)
    SELECT PART, 100 + n, 'a', 'b', now() FROM generate_series(1, 4) AS n
"""
RECOVERING = (
    "UPDATE part SET state = 'recovering', lease_until = now() + interval '{}' WHERE number = PART"
)

FAULTS: list[tuple[str, Grade, str, Plant]] = [
    ("days of records", Grade.PROBLEM, "1 records are in no day's", in_postgres(STRAY_RECORD)),
    ("days of records", Grade.PROBLEM, "tomorrow's table", in_postgres(
        f"DO $$ BEGIN EXECUTE 'DROP TABLE usage_record_' || {DAY}; END $$"
    )),
    ("partitions", Grade.PROBLEM, "redis restarted", in_redis("HSET", "meta", "seq", "5")),
    ("partitions", Grade.PROBLEM, "redis is empty", flushed_away),
    ("partitions", Grade.PROBLEM, "is another deployment's, us: mend", in_redis(
        "HSET", "meta", "install", "us"
    )),
    ("append-only", Grade.PROBLEM, "posting: ", in_postgres(
        "ALTER TABLE posting DISABLE TRIGGER USER"
    )),
    ("partitions", Grade.PROBLEM, "is damaged", in_postgres(
        "UPDATE part SET state = 'damaged' WHERE number = PART"
    )),
    ("partitions", Grade.PROBLEM, "waits for a recovery", in_postgres(RECOVERING.format("-1 s"))),
    ("partitions", Grade.WARNING, "is being recovered", in_postgres(RECOVERING.format("9 s"))),
    ("partitions", Grade.WARNING, "4 times in 10 minutes", in_postgres(RECOVERED_OFTEN)),
    ("partitions", Grade.PROBLEM, "watermark is of generation 99", in_postgres(
        "UPDATE part SET watermark_generation = 99 WHERE number = PART"
    )),
    ("partitions", Grade.PROBLEM, "Redis only to", in_postgres(
        "UPDATE part SET watermark_id = '99999999999999-0' WHERE number = PART"
    )),
    ("partitions", Grade.PROBLEM, "postgres went back", in_postgres(
        "UPDATE part SET version = 0 WHERE number = PART"
    )),
    ("flushing", Grade.PROBLEM, "has an end that waits for", an_old_end),
    ("holds", Grade.PROBLEM, "open calls hold 1000", in_redis("HINCRBY", "held", "ACME", 5)),
    ("holds", Grade.PROBLEM, "key-1@0 holds 1007", in_redis("HINCRBY", "held", "key-1@0", 7)),
    ("holds", Grade.WARNING, "overdue by", an_overdue_hold),
    ("wallets", Grade.PROBLEM, "has +3 nano-USD too much", in_redis("HINCRBY", "free", "ACME", 3)),
    ("wallets", Grade.PROBLEM, "(spent)", in_postgres("UPDATE wallet SET spent = spent + 1")),
    ("wallets", Grade.PROBLEM, "(missing)", in_redis("HDEL", "base", "ACME")),
    ("below zero", Grade.PROBLEM, "have no cause", in_postgres("UPDATE wallet SET base = -5")),
    ("below zero", Grade.WARNING, "late and re-held", a_late_end_of_more_than_there_is),
    ("dead letters", Grade.PROBLEM, "1 open", poison),
    ("withdrawals", Grade.WARNING, "has not been concluded", in_postgres(OLD_WITHDRAWAL)),
    ("books", Grade.PROBLEM, "wallet base", in_postgres("UPDATE wallet SET base = base + 1")),
    ("books", Grade.PROBLEM, "hash", in_postgres(
        "ALTER TABLE ledger_transaction DISABLE TRIGGER USER;"
        " UPDATE ledger_transaction SET reason = 'x'"
    )),
]  # fmt: skip


async def asked(deployment: Deployment, name: str, *, partitions: int = PARTITIONS) -> Finding:
    """What one check says now."""
    async with deployment.connected() as connection:
        return await dict(CHECKS)[name](Ledger(connection, deployment.redis, partitions))


async def at_work(deployment: Deployment) -> Organization:
    """A deployment of which all partitions are active, with open and ended calls."""
    acme = await deployment.organization()
    for number in range(PARTITIONS):
        await deployment.recovery.recover(number)
    await deployment.call(acme, 100, (CAP,))
    await deployment.flush(acme)
    await deployment.call(acme, 7, (CAP,))
    await deployment.hold(acme, 1_000, (CAP,))
    await deployment.pool.execute(
        "UPDATE recovery_log SET started_at = started_at - interval '1 hour'"
    )
    return acme


async def test_a_ledger_at_work_has_nothing_to_say(deployment: Deployment) -> None:
    acme = await at_work(deployment)
    partition, generation = deployment.partition(acme), await deployment.generation(acme)
    await partition.withhold(generation, str(UUID(int=9)), wallet=acme.id, amount=9)
    found = [await asked(deployment, name) for name, _ in CHECKS]
    assert [one.grade for one in found] == [Grade.OK] * len(CHECKS), found


@pytest.mark.parametrize(
    ("name", "grade", "said", "plant"),
    FAULTS,
    ids=[f"{name}: {said}" for name, _, said, _ in FAULTS],
)
async def test_a_planted_fault_is_told_with_what_to_do(
    deployment: Deployment, name: str, grade: Grade, said: str, plant: Plant
) -> None:
    acme = await at_work(deployment)
    await plant(deployment, acme)
    found = await asked(deployment, name)
    assert found.grade is grade, found
    assert said in found.said
    assert found.todo


async def test_another_number_of_partitions_than_configured_is_told(deployment: Deployment) -> None:
    await at_work(deployment)
    found = await asked(deployment, "partitions", partitions=8)
    said = "Postgres has 16, ledger.partitions says 8: put it back"
    assert (found.grade, found.said) == (Grade.PROBLEM, said)


@pytest.mark.parametrize(
    ("change", "grade"),
    [
        ("SELECT 1", Grade.OK),
        ("DELETE FROM migration WHERE number > 1", Grade.PROBLEM),
        ("DROP TABLE migration", Grade.PROBLEM),
        ("INSERT INTO migration VALUES (999, 'n', 'd')", Grade.WARNING),
    ],
)
async def test_the_schema_is_this_releases_or_it_is_told(
    deployment: Deployment, change: str, grade: Grade
) -> None:
    await deployment.pool.execute(change)
    async with deployment.connected() as connection:
        assert (await schema(Ledger(connection, deployment.redis, PARTITIONS))).grade is grade


async def test_it_looks_and_changes_nothing(deployment: Deployment) -> None:
    acme = await at_work(deployment)
    await deployment.credit(acme, 5)  # which Redis does not know yet
    other = await deployment.organization()
    lost = in_redis("HDEL", "base", "ACME")
    await lost(deployment, other)
    before = await everything(deployment)
    for name, _ in CHECKS:
        await asked(deployment, name)
    assert await everything(deployment) == before


async def everything(deployment: Deployment) -> dict[Any, Any]:
    """All of Redis, and the rows of the partitions."""
    names = sorted(await deployment.redis.keys("tg:*"))
    found: dict[Any, Any] = {name: await deployment.redis.dump(name) for name in names}
    found["part"] = [tuple(row) for row in await deployment.pool.fetch("SELECT * FROM part")]
    found["wallet"] = [tuple(row) for row in await deployment.pool.fetch("SELECT * FROM wallet")]
    return found
