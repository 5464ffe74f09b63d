"""Rules of forgetting how calls went: what goes, what stays, and that nobody waits for it."""

import asyncio
from collections.abc import Mapping
from datetime import date, timedelta
from itertools import count
from uuid import UUID

import asyncpg

from ledger.book import Organization
from ledger.retention import Forgotten, Keeper, forget
from tests.cutting import is_cut
from tests.ledger.days import days_of, filled, has_day, id_on, kept, logged, today_of
from tests.ledger.deployment import Deployment


async def forgets(
    deployment: Deployment, keeps: Mapping[Organization, int], *, is_dry: bool = False
) -> Forgotten | None:
    rows = await deployment.pool.fetch("SELECT id, logs_swept_to FROM organization")
    swept = {str(row["id"]): row["logs_swept_to"] for row in rows}
    keepers = [Keeper(UUID(one.id), days, swept[one.id]) for one, days in keeps.items()]
    async with deployment.connected() as connection:
        return await forget(connection, keepers, today=await today_of(deployment), is_dry=is_dry)


async def test_a_day_that_nobody_keeps_is_dropped_and_the_day_at_the_edge_stays(
    deployment: Deployment,
) -> None:
    acme, today = await filled(deployment, each=2), await today_of(deployment)

    done = await forgets(deployment, {acme: 3})

    assert done == Forgotten([today - timedelta(days=5), today - timedelta(days=4)], 0, [])
    assert await kept(deployment, acme) == 8
    assert await has_day(deployment, today - timedelta(days=3))
    assert not await has_day(deployment, today - timedelta(days=4))


async def test_of_a_day_that_some_keep_the_others_are_deleted_over_any_number_of_batches(
    deployment: Deployment,
) -> None:
    short, long = await deployment.organization(), await deployment.organization()
    today = await today_of(deployment)
    await days_of(deployment, 6)
    old = today - timedelta(days=5)
    for _ in range(3):
        await logged(deployment, short, old, 2_500)
        await logged(deployment, long, old, 2_500)
    await logged(deployment, short, today, 3)

    done = await forgets(deployment, {short: 3, long: 90})

    assert done == Forgotten([], 7_500, [])
    assert (await kept(deployment, short), await kept(deployment, long)) == (3, 7_500)


async def test_a_shorter_time_reaches_back_and_a_longer_one_brings_nothing_again(
    deployment: Deployment,
) -> None:
    acme, long = await filled(deployment, days=10), await deployment.organization()
    for days, rows in ((8, 1), (8, 0), (4, 4), (9, 0), (2, 2)):
        done = await forgets(deployment, {acme: days, long: 90})
        assert done == Forgotten([], rows, []), days
    assert await kept(deployment, acme) == 3


async def test_a_dry_run_says_what_the_real_one_does_and_changes_nothing(
    deployment: Deployment,
) -> None:
    acme, long = await filled(deployment, days=10, each=2), await deployment.organization()
    today = await today_of(deployment)
    keeps = {acme: 3, long: 7}

    said = await forgets(deployment, keeps, is_dry=True)
    assert await kept(deployment, acme) == 20
    assert await has_day(deployment, today - timedelta(days=9))

    assert await forgets(deployment, keeps) == said
    assert said == Forgotten([today - timedelta(days=9), today - timedelta(days=8)], 8, [])


async def test_what_a_dropped_call_cost_stays_and_it_is_not_charged_again(
    deployment: Deployment,
) -> None:
    acme = await deployment.active()
    today = await today_of(deployment)
    call_id = id_on(today - timedelta(days=6), 1).bytes
    assert await deployment.late(acme, call_id, 10) == "late"
    await deployment.flush(acme)
    before = await deployment.balance(acme), await deployment.count("usage_record")
    assert await kept(deployment, acme) == 1

    await forgets(deployment, {acme: 3})
    assert not await has_day(deployment, today - timedelta(days=6))
    await deployment.late(acme, call_id, 10)
    await deployment.flush(acme)

    assert (await deployment.balance(acme), await deployment.count("usage_record")) == before
    assert await deployment.count("usage_hourly") == 1
    assert await deployment.differences() == []


async def test_an_end_that_comes_after_its_day_was_dropped_is_recorded_and_goes_next_time(
    deployment: Deployment,
) -> None:
    acme, today = await deployment.active(), await today_of(deployment)
    old = today - timedelta(days=6)
    await deployment.late(acme, id_on(old, 1).bytes, 10)
    await deployment.flush(acme)
    await forgets(deployment, {acme: 3})
    # The flusher that made the day knows no better: the row goes where days without a table go.
    await deployment.late(acme, id_on(old, 2).bytes, 10)
    await deployment.flush(acme)
    await logged_astray(deployment, acme, old)
    assert await deployment.count("usage_record") == 2

    done = await forgets(deployment, {acme: 3})

    assert done is not None
    assert await kept(deployment, acme) == 0
    assert await deployment.count("call_log_standard_default") == 0


async def logged_astray(deployment: Deployment, organization: Organization, day: date) -> None:
    await deployment.pool.execute(f"DROP TABLE IF EXISTS call_log_standard_{day:%Y%m%d}")
    await logged(deployment, organization, day, 2)


async def test_that_grace_let_a_call_in_is_known_after_its_log_is_gone(
    deployment: Deployment,
) -> None:
    short, long = await deployment.organization(), await deployment.organization()
    today = await today_of(deployment)
    await days_of(deployment, 9)
    await logged(deployment, short, today - timedelta(days=9), 1, "grace", "odd")
    await logged(deployment, short, today - timedelta(days=9), 1, "odd")
    await logged(deployment, short, today - timedelta(days=5), 1, "grace")
    await logged(deployment, short, today - timedelta(days=5), 1)
    await forgets(deployment, {short: 3, long: 7})
    assert await deployment.count("call_log") == 0
    assert await deployment.count("grace_call") == 2


async def test_a_day_in_use_is_left_to_the_next_turn_and_no_flush_waits_for_it(
    deployment: Deployment,
) -> None:
    acme = await deployment.active()
    today = await today_of(deployment)
    await days_of(deployment, 6)
    async with deployment.connected() as reader, reader.transaction():
        await reader.execute(f"LOCK TABLE call_log_standard_{today - timedelta(days=6):%Y%m%d}"
                             " IN ACCESS SHARE MODE")  # fmt: skip
        async with asyncio.TaskGroup() as group:
            forgetting = group.create_task(forgets(deployment, {acme: 5}))
            flushed = 0
            while not forgetting.done():
                await deployment.call(acme, 10)
                await deployment.flush(acme)
                flushed += 1
        assert forgetting.result() == Forgotten([], 0, [today - timedelta(days=6)])
    assert flushed > 5, "whoever waits for a lock lets flushes pass"
    assert await forgets(deployment, {acme: 5}) == Forgotten([today - timedelta(days=6)], 0, [])


async def test_one_process_is_at_it_at_a_time_and_one_that_dies_leaves_no_lock(
    deployment: Deployment,
) -> None:
    acme = await deployment.organization()
    holder = await asyncpg.connect(deployment.url)
    await holder.execute("SELECT pg_advisory_lock($1)", 0x746F6C6C666F7267)
    assert await forgets(deployment, {acme: 3}) is None
    holder.terminate()
    async with asyncio.timeout(20):
        while await forgets(deployment, {acme: 3}) is None:
            await asyncio.sleep(0.01)


async def test_cut_off_anywhere_it_is_taken_up_where_it_was(deployment: Deployment) -> None:
    short, long = await deployment.organization(), await deployment.organization()
    today = await today_of(deployment)
    keeps = {short: 3, long: 7}
    for waits in count(1):
        await days_of(deployment, 9)
        await deployment.pool.execute("UPDATE organization SET logs_swept_to = NULL")
        for ago in range(10):
            await logged(deployment, short, today - timedelta(days=ago), 1, "grace")
        was_cut = await is_cut(forgets(deployment, keeps), at=waits)

        while await forgets(deployment, keeps) is None:
            await asyncio.sleep(0.01)  # the server has not noticed yet that the other one is gone
        assert await kept(deployment, short) == 4, waits
        assert await deployment.count("grace_call") == 6, waits
        assert not await has_day(deployment, today - timedelta(days=8)), waits
        if not was_cut:
            break
        await deployment.pool.execute("DELETE FROM call_log")
        await deployment.pool.execute("DELETE FROM grace_call")
    assert waits > 20, "it waits for Postgres again and again"
