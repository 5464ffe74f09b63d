"""Rules of the migrations, on real databases."""

import asyncio
import re
from pathlib import Path

import asyncpg
import pytest

import ledger.migrate
from ledger.migrate import MigrationFailed, make_days, migrate, migrations
from tests import previous

_CATALOG = {
    "columns": """
        SELECT table_name, column_name, ordinal_position, data_type, is_nullable, column_default
        FROM information_schema.columns WHERE table_schema = 'public'
    """,
    "constraints": """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace
    """,
    "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    "triggers": """
        SELECT tgrelid::regclass::text, tgname, pg_get_triggerdef(oid) FROM pg_trigger
        WHERE NOT tgisinternal
    """,
    "functions": """
        SELECT proname, pg_get_functiondef(oid), '' FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace
    """,
    "tables": """
        SELECT relname, relkind::text, reloptions::text,
               pg_get_partkeydef(oid), pg_get_expr(relpartbound, oid)
        FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'S')
    """,
}


async def _catalog(connection: asyncpg.Connection) -> set[tuple[object, ...]]:
    """What there is, but for the partitions of days and the list of migrations."""
    found = set()
    for what, query in _CATALOG.items():
        for row in await connection.fetch(query):
            owner = str(row[0])
            if not owner.startswith("migration") and not owner[-8:].isdigit():
                found.add((what, *row))
    return found


async def test_the_schema_file_says_what_the_migrations_make(
    postgres_url: str, postgres_empty_url: str
) -> None:
    schema = (Path(ledger.migrate.__file__).parent / "schema.sql").read_text("utf-8")
    migrated = await asyncpg.connect(postgres_url)
    written = await asyncpg.connect(postgres_empty_url)
    try:
        await written.execute(schema)
        assert await _catalog(written) == await _catalog(migrated)
    finally:
        await migrated.close()
        await written.close()


@pytest.mark.parametrize("already", [0, len(previous.schema())])
async def test_six_processes_at_once_apply_each_migration_once(
    postgres_empty_url: str, already: int
) -> None:
    if already:
        before = await asyncpg.connect(postgres_empty_url)
        await ledger.migrate._apply_missing(before, migrations()[:already])
        await before.close()
    applied = await asyncio.gather(*(migrate(postgres_empty_url, partitions=3) for _ in range(6)))
    assert sorted(applied) == [0, 0, 0, 0, 0, len(migrations()) - already]
    connection = await asyncpg.connect(postgres_empty_url)
    try:
        assert await connection.fetchval("SELECT count(*) FROM part") == 3
        assert await connection.fetchval("SELECT count(*) FROM installation") == 1
    finally:
        await connection.close()


async def test_a_process_killed_in_mid_migration_leaves_nothing_half_done(
    postgres_empty_url: str,
) -> None:
    victim = await asyncpg.connect(postgres_empty_url)
    transaction = victim.transaction()
    await victim.execute("SELECT pg_advisory_lock($1)", ledger.migrate._LOCK)
    await transaction.start()
    await victim.execute(migrations()[0].sql)
    waiting = asyncio.gather(migrate(postgres_empty_url))
    victim.terminate()  # as by kill -9: nothing is said to the server
    async with asyncio.timeout(20):
        (applied,) = await waiting
    assert applied == len(migrations())


async def test_calls_pass_a_migration_that_waits_for_a_lock(postgres_empty_url: str) -> None:
    blocker = await asyncpg.connect(postgres_empty_url)
    other = await asyncpg.connect(postgres_empty_url)
    try:
        await ledger.migrate._apply_missing(other, migrations()[:1])
        transaction = blocker.transaction()
        await transaction.start()
        await blocker.execute("LOCK TABLE dead_letter IN ROW EXCLUSIVE MODE")
        async with asyncio.TaskGroup() as group:
            migrating = group.create_task(migrate(postgres_empty_url))
            async with asyncio.timeout(20):
                while not await other.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                    await asyncio.sleep(0.01)
                assert await other.fetchval("SELECT count(*) FROM dead_letter") == 0
            assert not migrating.done()
            await transaction.rollback()
        assert migrating.result() == len(migrations()) - 1
    finally:
        await blocker.close()
        await other.close()


_CREATED = re.compile(r"create (?:unlogged )?table (?:if not exists )?(\w+)")
_BREAKS = (
    r"\b(drop|rename|truncate|delete from|update|lock|cluster|vacuum|reindex)\b",
    r"\balter column\b.*\b(type|set not null)\b",
    r"\badd column\b(?!.*\bdefault\b).*\bnot null\b",
    r"\badd (constraint|foreign key|primary key|unique|check)\b(?!.*\bnot valid\b)",
)
CONTRACT = "-- Contract:"


def breaches(sql: str) -> list[str]:
    """The statements that the release before would not survive, or that stop calls for long."""
    if sql.startswith(CONTRACT):
        return []  # it says in this line why no release that may still run needs what goes
    plain = re.sub(r"--[^\n]*|'[^']*'", "", sql).lower()
    statements = [" ".join(statement.split()) for statement in plain.split(";")]
    new = {found for statement in statements for found in _CREATED.findall(statement)}
    wrong = []
    for statement in statements:
        if re.match(r"create (unique )?index", statement):
            table = re.search(r"\bon (?:only )?(\w+)", statement)
            if table is None or table[1] not in new:
                wrong.append(statement)
        elif not statement.startswith("create ") and any(re.search(b, statement) for b in _BREAKS):
            wrong.append(statement)
    return wrong


def test_a_migration_only_adds_so_that_the_release_before_goes_on() -> None:
    found = {m.name: breaches(m.sql) for m in migrations()[1:]}
    assert not any(found.values()), found


@pytest.mark.parametrize(
    "sql",
    [
        "ALTER TABLE wallet DROP COLUMN base",
        "ALTER TABLE wallet RENAME COLUMN base TO ground",
        "ALTER TABLE wallet ALTER COLUMN base TYPE numeric",
        "ALTER TABLE wallet ALTER COLUMN base SET NOT NULL",
        "ALTER TABLE wallet ADD COLUMN color text NOT NULL",
        "ALTER TABLE wallet ADD CONSTRAINT positive CHECK (base > 0)",
        "CREATE INDEX slow ON usage_record (key_id)",
        "UPDATE wallet SET base = 0",
        "CREATE TABLE fine (id int); TRUNCATE wallet",
    ],
)
def test_what_a_migration_may_not_do_is_noticed(sql: str) -> None:
    assert breaches(sql)
    assert not breaches(f"{CONTRACT} nothing reads it since 0.3\n{sql}")


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE fine (id int); CREATE INDEX quick ON fine (id)",
        "ALTER TABLE wallet ADD COLUMN color text, ADD COLUMN age int NOT NULL DEFAULT 0",
        "ALTER TABLE wallet ADD CONSTRAINT positive CHECK (base > 0) NOT VALID",
        "ALTER TABLE wallet SET (autovacuum_vacuum_threshold = 50000)",
    ],
)
def test_what_a_migration_may_do_is_let_pass(sql: str) -> None:
    assert not breaches(sql)


def test_this_release_adds_to_the_schema_of_the_one_before() -> None:
    before, now = previous.schema(), [migration.sql for migration in migrations()]
    assert now[: len(before)] == before, "an applied migration was edited"


async def test_an_edited_migration_is_refused(postgres_url: str) -> None:
    connection = await asyncpg.connect(postgres_url)
    try:
        await connection.execute("UPDATE migration SET digest = 'another' WHERE number = 1")
    finally:
        await connection.close()
    with pytest.raises(MigrationFailed, match="was changed after it was applied"):
        await migrate(postgres_url)


async def test_another_number_of_partitions_is_refused_with_both(postgres_url: str) -> None:
    with pytest.raises(MigrationFailed, match=r"made with 16 partitions.* is 8: set it to 16"):
        await migrate(postgres_url, partitions=8)


async def test_what_a_newer_release_applied_is_left_alone(postgres_url: str) -> None:
    connection = await asyncpg.connect(postgres_url)
    try:
        await connection.execute(
            "INSERT INTO migration (number, name, digest) VALUES (9999, 'later', 'x')"
        )
    finally:
        await connection.close()
    assert await migrate(postgres_url) == 0


async def test_days_have_their_partitions_ahead_of_time_and_making_them_is_repeatable(
    postgres_url: str,
) -> None:
    connection = await asyncpg.connect(postgres_url)
    try:
        await make_days(connection)
        tomorrow = await connection.fetchval("SELECT to_char(now() + '1 day', 'YYYYMMDD')")
        assert await connection.fetchval("SELECT to_regclass($1)", f"usage_record_{tomorrow}")
        assert await connection.fetchval("SELECT to_regclass($1)", f"call_log_standard_{tomorrow}")
    finally:
        await connection.close()


@pytest.mark.parametrize(
    "table", ["posting", "ledger_transaction", "usage_record", "correction", "audit_log"]
)
async def test_the_book_is_append_only(postgres_url: str, table: str) -> None:
    connection = await asyncpg.connect(postgres_url)
    try:
        triggers = await connection.fetch(
            "SELECT tgname FROM pg_trigger WHERE tgrelid = $1::text::regclass", table
        )
        assert "append_only" in {row["tgname"] for row in triggers}
    finally:
        await connection.close()


async def test_postings_that_do_not_sum_to_zero_are_refused(postgres_url: str) -> None:
    connection = await asyncpg.connect(postgres_url)
    try:
        with pytest.raises(asyncpg.CheckViolationError, match="sum to zero"):
            await connection.execute(
                "INSERT INTO posting (partition, number, account, amount)"
                " VALUES (0, 1, 'grant', -5), (0, 1, 'revenue', 4)"
            )
    finally:
        await connection.close()
