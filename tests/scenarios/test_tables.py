"""Years of records: an old day goes in no time, and neither calls nor reports read the records."""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest

from gateway.embedded import urls
from gateway.management.usage import Grouping, report
from tests.scenarios.deployment import Deployment
from tests.scenarios.fleet import Fleet, traffic
from tests.scenarios.invariants import assert_books, owed
from tests.scenarios.locks import Waits
from tests.scenarios.scale import LONG
from tests.vendor import Vendor

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(3_600)]
DAYS, CUSTOMERS = 30, 20
RECORDS = 5_000_000 if LONG else 150_000
CALLS = 20_000 if LONG else 1_000
DROPPED_S_MAX, WAITED_S_MAX, REPORTED_S_MAX = 1.0, 1.0, 0.2

# Records of another service's past: no wallet of ours has paid for them.
_PAST = """
    INSERT INTO usage_record
    SELECT (left(first_uuid(at)::text, 19) || '8000-' || lpad(to_hex(n), 12, '0'))::uuid,
           customer, customer, customer, customer, customer, at, at, 'settled', 'success',
           'chat/completions', 'vendor', 'model', 'model-' || n % 5, 'model', '', 'v1', 1000,
           n % 1000, n % 1000, NULL, 'reported', 100, 10, 0, 20, 0, NULL, NULL, true, 0, 0
    FROM (SELECT n,
                 now() - make_interval(days => 1 + n % $2) - make_interval(secs => n % 3600) AS at,
                 ('00000000-0000-0000-0000-' || lpad((n % $3)::text, 12, '0'))::uuid AS customer
          FROM generate_series(1, $1) AS n) AS made
"""
_ROLLUPS = """
    INSERT INTO usage_hourly
    SELECT organization_id, date_trunc('hour', admitted_at), project_id, key_id, member_id,
           provider, model_target, count(*), count(*), 0, sum(input), sum(cache_read),
           sum(cache_write), sum(output), sum(reasoning), sum(charge), sum(list_price)
    FROM usage_record GROUP BY 1, 2, 3, 4, 5, 6, 7
"""
_OWNERS = """
    INSERT INTO organization (id, name, partition)
    SELECT DISTINCT organization_id, organization_id::text, 0 FROM usage_hourly
    ON CONFLICT (id) DO NOTHING
"""
# Of records and their like, what was read or written how often by one statement.
_ASKED = """
    SELECT query, calls FROM pg_stat_statements
    WHERE query ~ '(usage_record|usage_call|call_log|posting|correction|usage_hourly)'
      AND query !~ 'pg_stat' ORDER BY calls DESC
"""
_SUMS = """
    SELECT sum(charge)::bigint AS charge, sum(calls)::bigint AS calls FROM usage_hourly
    WHERE organization_id = $1
"""


async def filled(connection: asyncpg.Connection) -> None:
    """Let a month of records lie there, and what reports read of them."""
    await connection.execute("SELECT make_day_partitions(current_date - $1::int, $1)", DAYS + 2)
    await connection.execute(_PAST, RECORDS, DAYS, CUSTOMERS)
    await connection.execute(_ROLLUPS)
    await connection.execute(_OWNERS)
    await connection.execute("VACUUM ANALYZE usage_record, usage_hourly")


async def reported_s(gateway: Deployment) -> float:
    """How long a customer's report of thirty days takes, the slowest of all groupings."""
    slowest_s, now = 0.0, datetime.now(UTC)  # noqa: TID251 - a report's own time
    async with gateway.stores() as stores:
        for by in [*Grouping] * 5:
            began_s = time.monotonic()
            lines = await report(
                stores.pool, UUID(int=7), by=by, since=now - timedelta(days=DAYS + 1), until=now
            )
            slowest_s = max(slowest_s, time.monotonic() - began_s)
            assert sum(line.calls for line in lines) == RECORDS // CUSTOMERS
    return slowest_s


async def dropped(connection: asyncpg.Connection) -> tuple[float, int]:
    """Drop the oldest day that has records: how long it took, and the bytes it gave back."""
    day = (datetime.now(UTC) - timedelta(days=DAYS)).strftime("%Y%m%d")  # noqa: TID251 - its name
    size = "SELECT pg_database_size(current_database())"
    before = await connection.fetchval(size)
    assert await connection.fetchval(f"SELECT count(*) FROM usage_record_{day}")  # noqa: S608 - ours
    began_s = time.monotonic()
    await connection.execute(f"DROP TABLE usage_record_{day}")
    return time.monotonic() - began_s, before - await connection.fetchval(size)


async def test_years_of_records_cost_neither_calls_nor_reports_anything(
    folder: Path, vendor_apart: Vendor
) -> None:
    await vendor_apart.forget()
    model = await vendor_apart.script("swift")
    port, watched = vendor_apart.port, {"shared_preload_libraries": "pg_stat_statements"}
    async with Fleet.started(folder, vendor_port=port, count=1, postgres=watched) as fleet:
        admin = await asyncpg.connect(urls(fleet.bank.servers).postgres_admin)
        try:
            await admin.execute("CREATE EXTENSION pg_stat_statements")
            key = await fleet.bank.new_key(credit_usd="1000")
            await filled(admin)
            async with traffic(fleet.port, key, [model]) as calls:
                await calls.until(CALLS // 4)
                await admin.execute("SELECT pg_stat_statements_reset()")
                async with Waits.seen(urls(fleet.bank.servers).postgres) as waits:
                    dropped_s, freed = await dropped(admin)
                    await calls.until(CALLS, within_s=600)
                asked = await admin.fetch(_ASKED)
                batches = await admin.fetchval("SELECT sum(transaction_number) FROM part")
            assert not calls.failed, calls.failed[:5]
            report_s = await reported_s(fleet.bank)
            seen = await vendor_apart.quiet()
            await assert_books(fleet.bank, key, records=len(seen), charge=owed(seen))
            (sums,) = await admin.fetch(_SUMS, UUID(key.organization_id))
            assert (sums["calls"], sums["charge"]) == (len(seen), owed(seen))
        finally:
            await admin.close()
    most = max(row["calls"] for row in asked)
    assert most <= batches, f"more than once a batch: {asked[0]['query']}"
    assert dropped_s <= DROPPED_S_MAX
    assert waits.longest_s <= WAITED_S_MAX
    assert freed > 0
    assert report_s <= REPORTED_S_MAX
    print(
        f"C5: the oldest of {DAYS} days of {RECORDS} records dropped under load in"
        f" {1000 * dropped_s:.0f} ms, {freed / 1e6:.1f} MB given back, longest wait for a lock"
        f" {1000 * waits.longest_s:.0f} ms, 0 calls failed"
    )
    print(
        f"C6: {len(seen)} calls, {batches} transactions: no statement on records ran more than"
        f" {most} times; a report of 30 days of {RECORDS} records in {1000 * report_s:.0f} ms at"
        " most, rollups equal to the records"
    )
