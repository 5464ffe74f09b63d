"""Wherever a refund is cut off, credits and money go back once, or neither does."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from itertools import count
from pathlib import Path
from uuid import UUID

import pytest

from gateway.errors import Conflict
from gateway.management import cashier, payments, refunds
from gateway.management.desk import Desk
from gateway.management.payments import Row
from gateway.management.refunds import NewRefund, RefundRow, RefundState
from gateway.payments.processor import Coins, ProcessorAway, ProcessorRefused, Progress, Returned
from gateway.payments.sandbox import Sandbox
from ledger.money import Nanos
from tests.cutting import is_cut
from tests.gateway.management.office import Browser, Office
from tests.gateway.management.till import (
    TEN_USD,
    another_process,
    buys,
    everything_is_finished,
    method_of,
    open_till,
)
from tests.gateway.tenancy import Tenancy, activate

PART = 2_000_000_000  # two dollars


@pytest.fixture
async def office(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Office]:
    async with open_till(postgres_url, redis_url, tmp_path) as opened:
        await activate(Tenancy(opened.pool, opened.redis))
        yield opened


async def bought(
    office: Office, *, kind: str = "card", does: str = "approve"
) -> tuple[Browser, Row]:
    """Somebody who paid ten dollars, and the payment."""
    ada = await office.signed_up("ada@example.com")
    got = await buys(ada, await method_of(ada, does, kind=kind))
    await everything_is_finished(office)
    return ada, await paid(office, got.body["id"])


async def paid(office: Office, payment_id: str | UUID) -> Row:
    found = await payments.one(office.pool, UUID(str(payment_id)))
    assert found is not None
    return found


def new(payment: Row, key: str = "one", amount: int = PART) -> NewRefund:
    return NewRefund(refunds.refund_id(payment.id, key), Nanos(amount), "root@example.com", "sorry")


async def back(office: Office) -> list[int]:
    """What went back at the processor's, in coins."""
    rows = await office.pool.fetch(
        "SELECT (body ->> 'amount')::bigint AS amount FROM sandbox_object WHERE kind = 'refund'"
    )
    return [row["amount"] for row in rows]


async def balance(office: Office) -> int:
    return int(await office.pool.fetchval("SELECT max(base - spent) FROM wallet"))


async def test_a_refund_takes_the_credits_and_gives_the_money_back(office: Office) -> None:
    _, payment = await bought(office)
    for _ in range(3):
        done = await refunds.refund(office.desk, payment, new(payment))
        assert done.state is RefundState.REFUNDED
    assert (await balance(office), await back(office)) == (TEN_USD - PART, [200])
    assert (await paid(office, payment.id)).refunded == PART


async def test_no_more_goes_back_than_was_paid_however_many_ask_at_once(office: Office) -> None:
    _, payment = await bought(office)
    tries = (
        refunds.refund(office.desk, payment, new(payment, str(number), 3 * PART))
        for number in range(8)
    )
    done = await asyncio.gather(*tries, return_exceptions=True)
    assert len([one for one in done if isinstance(one, RefundRow)]) == 1
    assert {type(one) for one in done} == {RefundRow, Conflict}
    assert (await balance(office), await back(office)) == (TEN_USD - 3 * PART, [600])


async def test_in_parts_all_of_it_goes_back_to_the_coin(office: Office) -> None:
    _, payment = await bought(office, kind="sepa_debit")
    for number in range(3):
        part = 3_330_000_000 if number < 2 else 3_340_000_000
        await refunds.refund(office.desk, payment, new(payment, str(number), part))
    assert (sum(await back(office)), await balance(office)) == (900, 0)


async def test_what_is_spent_is_not_given_back(office: Office) -> None:
    _, payment = await bought(office)
    await office.pool.execute("UPDATE wallet SET spent = base - 1 WHERE base > 0")
    with pytest.raises(Conflict):
        await refunds.refund(office.desk, payment, new(payment))
    assert (await back(office), (await paid(office, payment.id)).refunded) == ([], 0)
    await everything_is_finished(office)
    assert await back(office) == []


class Stubborn(Sandbox):
    """A sandbox that gives nothing back, or gives it back without saying so."""

    def __init__(self, desk: Desk, *, answer: Exception | Progress) -> None:
        super().__init__(desk.pool, desk.now, desk.site)
        self._answer = answer

    async def refund(self, refund_id: str, *, payment: str, coins: Coins) -> Returned:
        if isinstance(self._answer, ProcessorAway):
            await super().refund(refund_id, payment=payment, coins=coins)
        if isinstance(self._answer, Exception):
            raise self._answer
        return Returned("re_1", self._answer)


@pytest.mark.parametrize("answer", [ProcessorRefused("no", code="no"), Progress.DECLINED])
async def test_what_the_processor_gives_up_comes_back_as_credits_once(
    office: Office, answer: Exception | Progress
) -> None:
    _, payment = await bought(office)
    desk = office.desk._replace(processor=Stubborn(office.desk, answer=answer))
    for _ in range(2):
        done = await refunds.refund(desk, payment, new(payment))
        assert done.state is RefundState.RETURNED
    assert (await balance(office), await back(office)) == (TEN_USD, [])
    assert (await paid(office, payment.id)).refunded == 0
    again = await refunds.refund(office.desk, payment, new(payment, "another"))
    assert again.state is RefundState.REFUNDED


async def test_a_refund_whose_answer_was_lost_is_asked_for_again_and_made_once(
    office: Office,
) -> None:
    _, payment = await bought(office)
    away = office.desk._replace(processor=Stubborn(office.desk, answer=ProcessorAway("lost")))
    assert (await refunds.refund(away, payment, new(payment))).state is RefundState.HELD
    assert await balance(office) == TEN_USD - PART, "the credits are out while it is not known"
    await everything_is_finished(office)
    found = await refunds.find(office.desk, new(payment).id)
    assert found is not None
    assert (found.state, await back(office)) == (RefundState.REFUNDED, [200])


async def test_a_bank_may_take_its_time_for_a_refund(office: Office) -> None:
    _, payment = await bought(office)
    slow = office.desk._replace(processor=Stubborn(office.desk, answer=Progress.PROCESSING))
    assert (await refunds.refund(slow, payment, new(payment))).state is RefundState.HELD
    office.clock.ahead += timedelta(hours=2)
    assert await cashier.finish_some(slow) == 1
    await everything_is_finished(office)
    assert await back(office) == [200]


async def test_what_was_paid_elsewhere_or_under_another_amount_is_refused(office: Office) -> None:
    _, payment = await bought(office)
    with pytest.raises(Conflict, match="stripe"):
        await refunds.refund(office.desk, payment._replace(processor="stripe"), new(payment))
    await refunds.refund(office.desk, payment, new(payment))
    with pytest.raises(Conflict, match="Idempotency-Key"):
        await refunds.refund(office.desk, payment, new(payment, amount=2 * PART))


@pytest.mark.timeout(240)
async def test_cut_off_at_any_await_credits_and_money_go_back_together_once(
    office: Office, postgres_url: str
) -> None:
    ada = await office.signed_up("ada@example.com")
    method = await method_of(ada)
    refunded = 0
    for at in count(1):
        payment = await paid(office, (await buys(ada, method)).body["id"])
        async with another_process(office, postgres_url) as desk:
            was_cut = await is_cut(refunds.refund(desk, payment, new(payment)), at=at)
        await everything_is_finished(office)
        row = await refunds.find(office.desk, new(payment).id)
        refunded += row is not None and row.state is RefundState.REFUNDED
        assert await back(office) == [200] * refunded, at
        assert await balance(office) == at * TEN_USD - refunded * PART, at
        assert (await paid(office, payment.id)).refunded in {0, PART}, at
        if not was_cut:
            break
    assert at > 20, "or too little was tried"
