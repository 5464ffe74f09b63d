"""Wherever a purchase is cut off, it ends in one charge and one credit, or in none of both."""

from collections.abc import AsyncIterator
from datetime import timedelta
from itertools import count
from pathlib import Path
from uuid import UUID

import pytest

from gateway.errors import GatewayError
from gateway.management import cashier, purchases
from gateway.management.desk import Desk
from gateway.management.guard import Doorman
from gateway.management.purchases import NewPurchase
from gateway.payments.processor import Order, Payment, ProcessorAway, ProcessorRefused
from gateway.payments.sandbox import Sandbox
from gateway.rest.caller import Knock
from gateway.rest.route import Asked, Nothing
from gateway.rest.server import SESSION_COOKIE
from tests.cutting import is_cut
from tests.gateway.management.office import Browser, Office
from tests.gateway.management.till import (
    TEN_USD,
    another_process,
    buys,
    charged,
    credited,
    everything_is_finished,
    method_of,
    open_till,
)

BUY = next(route for route in purchases.ROUTES if route.name == "purchases.buy")


@pytest.fixture
async def office(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Office]:
    async with open_till(postgres_url, redis_url, tmp_path) as opened:
        yield opened


async def asked_by(
    office: Office, browser: Browser, method: str, key: str
) -> Asked[Nothing, NewPurchase]:
    """A purchase as the handler is given it."""
    jar = {one.key: one.value for one in browser.cookies()}
    csrf = browser.headers["X-CSRF-Token"]
    knock = Knock("::1", "", None, jar[SESSION_COOKIE], csrf, None, {})
    return Asked(
        caller=await Doorman(office.desk)(BUY, knock),
        path={},
        query=Nothing(),
        body=NewPurchase(amount_nanos=TEN_USD, method_id=UUID(method)),
        if_match=None,
        key=key,
        cookies={},
        agent="",
    )


@pytest.mark.timeout(240)
async def test_cut_off_at_any_await_it_is_one_charge_and_one_credit(
    office: Office, postgres_url: str
) -> None:
    ada = await office.signed_up("ada@example.com")
    method = await method_of(ada)
    for at in count(1):
        key = f"cut-at-{at}"
        asked = await asked_by(office, ada, method, key)
        async with another_process(office, postgres_url) as desk:
            was_cut = await is_cut(purchases.buy(desk, asked), at=at)
        before = await credited(office)
        await everything_is_finished(office)
        after = await credited(office)
        assert len(after) - len(before) in {0, 1}
        assert len(await charged(office)) == len(after), f"{key}: charged and not credited"
        got = await buys(ada, method, key=key)
        assert got.status == 201, got
        assert got.body["is_credited"], got
        assert await credited(office) == [TEN_USD] * at, key
        assert len(await charged(office)) == at, key
        if not was_cut:
            break
    assert at > 21, "or too little was tried"
    print(f"cut at {at - 1} awaits: one charge and one credit each")


class Deaf(Sandbox):
    """A sandbox that does what it is asked, and whose answers are lost."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk.pool, desk.now, desk.site)
        self.asked = 0

    async def charge(self, order: Order) -> Payment:
        self.asked += 1
        await super().charge(order)
        raise ProcessorAway("the answer was lost")


class Closed(Deaf):
    """One that cannot be reached at all."""

    async def charge(self, order: Order) -> Payment:
        del order
        self.asked += 1
        raise ProcessorAway("nobody there")


class Strict(Deaf):
    """One that takes no order, and answers no question."""

    async def charge(self, order: Order) -> Payment:
        del order
        self.asked += 1
        raise ProcessorRefused("no", code="no_way")

    async def find(self, order: Order) -> Payment | None:
        del order
        raise ProcessorRefused("the key is wrong", code="processor_key_refused")


async def bought_at(office: Office, processor: Deaf, key: str = "one") -> str:
    """The state of a purchase there, or the code of its refusal."""
    ada = await office.signed_up("ada@example.com")
    asked = await asked_by(office, ada, await method_of(ada), key)
    try:
        answer = await purchases.buy(office.desk._replace(processor=processor), asked)
    except GatewayError as error:
        return error.code
    assert isinstance(answer.body, purchases.PurchaseView)
    return answer.body.state


async def test_an_answer_that_is_lost_is_asked_for_and_not_charged_again(office: Office) -> None:
    deaf = Deaf(office.desk)
    assert await bought_at(office, deaf) == "pending"
    assert (await credited(office), await charged(office)) == ([], [1_000])
    office.clock.ahead += timedelta(minutes=2)
    desk = office.desk._replace(processor=deaf)
    assert await cashier.finish_some(desk) == 1
    assert (deaf.asked, await credited(office)) == (1, [TEN_USD])
    assert await cashier.finish_some(desk) == 0


async def test_who_cannot_be_reached_is_asked_again_later_and_later(office: Office) -> None:
    closed = Closed(office.desk)
    assert await bought_at(office, closed) == "pending"
    desk = office.desk._replace(processor=closed)
    office.clock.ahead += timedelta(seconds=3)
    assert [await cashier.finish_some(desk), await cashier.finish_some(desk)] == [1, 0]
    await everything_is_finished(office)
    assert (await charged(office), await credited(office)) == ([1_000], [TEN_USD])


async def test_after_a_day_an_order_that_nobody_knows_is_given_up(office: Office) -> None:
    assert await bought_at(office, Closed(office.desk)) == "pending"
    office.clock.ahead += cashier.ASKED_AGAIN + timedelta(minutes=1)
    await everything_is_finished(office)
    row = await office.pool.fetchrow("SELECT state, decline FROM payment")
    assert row is not None
    assert tuple(row) == ("failed", "not_asked_in_time")
    assert (await charged(office), await credited(office)) == ([], [])


async def test_what_is_refused_has_failed_but_a_look_that_is_refused_says_nothing(
    office: Office,
) -> None:
    strict = Strict(office.desk)
    assert await bought_at(office, strict) == "payment_declined"
    assert await office.pool.fetchval("SELECT decline FROM payment") == "no_way"
    await office.pool.execute("UPDATE payment SET state = 'pending', ended_at = NULL, tries = 1")
    office.clock.ahead += timedelta(hours=1)
    assert await cashier.finish_some(office.desk._replace(processor=strict)) == 1
    assert await office.pool.fetchval("SELECT state FROM payment") == "pending"
    assert strict.asked == 1, "nobody knows whether it was charged"
