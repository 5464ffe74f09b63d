"""What is asked under one Idempotency-Key is done once and answered the same."""

import asyncio
from datetime import timedelta

import pytest

from gateway.errors import BadRequest, Conflict, GatewayError, Unavailable
from gateway.management.answered import KEPT, AnsweredOnce, Pace, forget_some
from gateway.rest.caller import ANYBODY, Caller
from gateway.rest.route import Answer, Asked, Nothing, Route
from gateway.rest.server import Given
from ledger.postgres import AWAY
from tests.cutting import is_cut
from tests.gateway.management.office import Office
from tests.gateway.strict_pool import StrictPool


async def _handle(_desk: object, _asked: object) -> Answer:
    return Answer()


ROUTE = Route(
    method="POST", path="/x", name="x.do", says="", access=ANYBODY, handle=_handle, is_once=True
)
DONE = Given(201, b'{"n":1}', 7)


def asked(key: str = "k", caller: str = "ada") -> Asked[Nothing, Nothing]:
    return Asked(
        caller=Caller(actor=caller, address="::1"),
        path={},
        query=Nothing(),
        body=Nothing(),
        if_match=None,
        key=key,
        cookies={},
        agent="",
    )


_AGES = "UPDATE answered SET asked_at = asked_at - $1::interval"
_LONGER = "SELECT asked_at > $1::timestamptz + interval '4.2 seconds' FROM answered"


async def passed(office: Office, time: timedelta) -> None:
    """So much time, for everything that was asked under a key; the clock is Postgres'."""
    await office.pool.execute(_AGES, time)


async def told(once: AnsweredOnce, work: "Work", key: str = "k") -> Given | Exception:
    """What it comes to."""
    try:
        return await once(asked(key), ROUTE, b"{}", work)
    except (GatewayError, *AWAY) as error:
        return error


class Work:
    def __init__(self, *, waits: int = 0) -> None:
        self.done, self.waits = 0, waits
        self.was_cut = False
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.error: Exception | None = None

    async def __call__(self) -> Given:
        self.done += 1
        try:
            for _ in range(self.waits):
                await asyncio.sleep(0)
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.was_cut = True
            raise
        if self.error is not None:
            raise self.error
        return DONE


async def test_the_second_time_it_is_answered_and_not_done(office: Office) -> None:
    once, work = AnsweredOnce(office.desk), Work()
    assert [await once(asked(), ROUTE, b"{}", work) for _ in range(3)] == [DONE] * 3
    assert work.done == 1


async def test_keys_are_their_callers_own(office: Office) -> None:
    once, work = AnsweredOnce(office.desk), Work()
    await once(asked(caller="ada"), ROUTE, b"{}", work)
    await once(asked(caller="bob"), ROUTE, b"{}", work)
    assert work.done == 2


async def test_of_fifty_at_once_one_is_done(office: Office) -> None:
    once, work = AnsweredOnce(office.desk), Work()
    work.may_end.clear()

    async def ask() -> Given | str:
        try:
            return await once(asked(), ROUTE, b"{}", work)
        except Conflict as error:
            return error.code

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ask()) for _ in range(50)]
        while sum(task.done() for task in tasks) < 49:
            await asyncio.sleep(0.01)
        work.may_end.set()
    answers = [task.result() for task in tasks]

    assert work.done == 1
    assert answers.count("in_progress") == 49
    assert DONE in answers


async def test_another_request_under_the_same_key_is_refused(office: Office) -> None:
    once, work = AnsweredOnce(office.desk), Work()
    await once(asked(), ROUTE, b'{"a":1}', work)
    with pytest.raises(Conflict) as caught:
        await once(asked(), ROUTE, b'{"a":2}', work)
    assert caught.value.code == "idempotency_key_reused"


async def test_a_refusal_is_given_again_and_a_failure_may_be_tried_again(office: Office) -> None:
    once, work = AnsweredOnce(office.desk), Work()
    work.error = Unavailable("away", code="away")
    with pytest.raises(Unavailable):
        await once(asked(), ROUTE, b"{}", work)
    work.error = BadRequest("no", code="no")
    with pytest.raises(BadRequest):
        await once(asked(), ROUTE, b"{}", work)
    work.error = None
    given = await once(asked(), ROUTE, b"{}", work)
    assert (given.status, work.done) == (400, 2)
    assert b'"code":"no"' in given.body


async def test_what_a_dead_process_left_is_done_by_who_asks_again_later(office: Office) -> None:
    once, work = AnsweredOnce(office.desk), Work()
    await office.pool.execute(
        "INSERT INTO answered (caller, key, fingerprint, asked_at) SELECT $1, $2, $3, $4",
        "ada@",
        "k",
        b"",
        office.desk.now(),
    )
    with pytest.raises(Conflict):
        await once(asked(), ROUTE, b"{}", work)
    await office.pool.execute("DELETE FROM answered")
    dies = Work()
    dies.error = KeyError("a bug, or the end of the process")
    with pytest.raises(KeyError):
        await once(asked(), ROUTE, b"{}", dies)
    with pytest.raises(Conflict, match="being done"):
        await once(asked(), ROUTE, b"{}", work)
    await passed(office, timedelta(seconds=11))
    assert await once(asked(), ROUTE, b"{}", work) == DONE


async def test_a_key_is_forgotten_after_a_day(office: Office) -> None:
    once, work = AnsweredOnce(office.desk), Work()
    await once(asked(), ROUTE, b"{}", work)
    await passed(office, KEPT + timedelta(seconds=1))
    await once(asked(), ROUTE, b'{"other":1}', work)
    assert work.done == 2


async def test_answers_are_deleted_once_they_are_given_no_more(office: Office) -> None:
    once = AnsweredOnce(office.desk)
    for key in ("old", "older"):
        await once(asked(key), ROUTE, b"{}", Work())
    await passed(office, KEPT + timedelta(seconds=1))
    await once(asked("new"), ROUTE, b"{}", Work())
    assert sum(await asyncio.gather(*(forget_some(office.desk) for _ in range(3)))) == 2
    assert await forget_some(office.desk) == 0
    assert await office.pool.fetchval("SELECT array_agg(key) FROM answered") == ["new"]


async def test_what_the_release_before_does_is_left_to_it_for_its_minute(office: Office) -> None:
    once, work = AnsweredOnce(office.desk), Work()
    await once(asked(), ROUTE, b"{}", work)
    left = "UPDATE answered SET status = NULL, body = NULL, version = NULL"
    await office.pool.execute(left)
    await passed(office, timedelta(seconds=59))
    with pytest.raises(Conflict, match="being done"):
        await once(asked(), ROUTE, b"{}", work)
    await passed(office, timedelta(seconds=2))
    assert await once(asked(), ROUTE, b"{}", work) == DONE
    assert work.done == 2


async def test_work_that_lasts_longer_than_its_claim_is_done_by_nobody_else(
    office: Office,
) -> None:
    once, work = AnsweredOnce(office.desk, Pace(silent_s_max=4, every_s=0.05, margin_s=1)), Work()
    work.may_end.clear()
    async with asyncio.TaskGroup() as group:
        done = group.create_task(once(asked(), ROUTE, b"{}", work))
        while not work.done:
            await asyncio.sleep(0.01)
        began_at = await office.pool.fetchval("SELECT asked_at FROM answered")
        while await office.pool.fetchval(_LONGER, began_at) is not True:
            with pytest.raises(Conflict, match="being done"):
                await once(asked(), ROUTE, b"{}", work)
        work.may_end.set()
    assert (done.result(), work.done) == (DONE, 1)
    assert await once(asked(), ROUTE, b"{}", work) == DONE


async def test_who_was_silent_for_too_long_gives_the_work_up(office: Office) -> None:
    silent, heard = Work(), Work()
    silent.may_end.clear()
    pace = Pace(every_s=0.05)
    async with asyncio.TaskGroup() as group:
        first = group.create_task(told(AnsweredOnce(office.desk, pace), silent))
        while not silent.done:
            await asyncio.sleep(0.01)
        # As if it had stood still: another begins, and the first finds that when it moves again.
        async with office.pool.acquire() as connection, connection.transaction():
            await connection.execute(_AGES, timedelta(seconds=11))
            await connection.execute("UPDATE answered SET body = 'another''s'")
        assert isinstance(await first, Unavailable)
    assert silent.was_cut
    await passed(office, timedelta(seconds=11))
    assert await told(AnsweredOnce(office.desk), heard) == DONE


async def test_who_cannot_reach_the_database_gives_up_before_another_may_begin(
    office: Office, postgres_url: str
) -> None:
    work = Work()
    work.may_end.clear()
    pace = Pace(silent_s_max=5, every_s=0.05, margin_s=3)
    async with StrictPool(postgres_url, max_size=2) as pool, asyncio.TaskGroup() as group:
        once = AnsweredOnce(office.desk._replace(pool=pool), pace)
        first = group.create_task(told(once, work))
        while not work.done:
            await asyncio.sleep(0.01)
        pool.terminate()
        error = await first
    assert isinstance(error, (Unavailable, *AWAY))
    assert work.was_cut
    with pytest.raises(Conflict, match="being done"):
        await AnsweredOnce(office.desk)(asked(), ROUTE, b"{}", Work())


@pytest.mark.parametrize("dies", [False, True], ids=["is cancelled", "dies"])
async def test_wherever_its_process_ends_the_work_is_done_and_never_by_two(
    office: Office, postgres_url: str, *, dies: bool
) -> None:
    for at in range(1, 100):
        key, work = f"{at}", Work(waits=3)
        async with StrictPool(postgres_url, max_size=2) as pool:
            once = AnsweredOnce(office.desk._replace(pool=pool))
            was_cut = await is_cut(once(asked(key), ROUTE, b"{}", work), at=at, dies=dies)
            pool.terminate()
        again = Work(waits=3)
        found = await told(AnsweredOnce(office.desk), again, key)
        if isinstance(found, Conflict):
            assert found.code == "in_progress"
            await passed(office, timedelta(seconds=11))
            found = await told(AnsweredOnce(office.desk), again, key)
        assert found == DONE
        assert await told(AnsweredOnce(office.desk), again, key) == DONE
        assert work.done + again.done in {1, 2}
        if not was_cut:
            assert (work.done, again.done) == (1, 0)
            return
    raise AssertionError("it never comes to its end")
