"""What is asked under one Idempotency-Key is done once and answered the same."""

import asyncio
from datetime import timedelta

import pytest

from gateway.errors import BadRequest, Conflict, Unavailable
from gateway.management.answered import KEPT, AnsweredOnce
from gateway.rest.caller import ANYBODY, Caller
from gateway.rest.route import Answer, Asked, Nothing, Route
from gateway.rest.server import Given
from tests.gateway.management.office import Office


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


class Work:
    def __init__(self) -> None:
        self.done = 0
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.error: Exception | None = None

    async def __call__(self) -> Given:
        self.done += 1
        await self.may_end.wait()
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
    office.clock.ahead += timedelta(seconds=61)
    assert await once(asked(), ROUTE, b"{}", work) == DONE


async def test_a_key_is_forgotten_after_a_day(office: Office) -> None:
    once, work = AnsweredOnce(office.desk), Work()
    await once(asked(), ROUTE, b"{}", work)
    office.clock.ahead += KEPT + timedelta(seconds=1)
    await once(asked(), ROUTE, b'{"other":1}', work)
    assert work.done == 2
