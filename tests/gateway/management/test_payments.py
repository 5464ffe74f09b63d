"""A payment is credited once, whatever is repeated, late, out of order, or not what was asked."""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest

from gateway.errors import Conflict
from gateway.management import payments
from gateway.management.payments import NewPayment, Owner, OwnerKind, Purpose, Row, State
from gateway.payments.processor import Coins, MethodKind, Payment, Progress
from gateway.settings import Config
from ledger.money import NANOS_MAX, Nanos
from tests.gateway.management.office import Office
from tests.gateway.management.till import TEN_USD, credited, open_till

CENTS = Coins(1_000, "usd")


@pytest.fixture
async def office(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Office]:
    async with open_till(postgres_url, redis_url, tmp_path) as opened:
        await opened.signed_up("ada@example.com")
        yield opened


async def account_of(office: Office) -> UUID:
    found = await office.pool.fetchval("SELECT account_id FROM person WHERE account_id IS NOT NULL")
    return UUID(str(found))


async def begun(office: Office, purpose: Purpose = Purpose.PURCHASE) -> Row:
    """A payment at a page, by the account itself."""
    account = await account_of(office)
    owner = Owner(OwnerKind.ORGANIZATION, account)
    new = NewPayment(uuid4(), purpose, account, owner, Nanos(TEN_USD), CENTS, "ada@example.com")
    return await payments.begin(office.pool, new, office.desk)


def news(row: Row, progress: Progress, reference: str | None = "pi_1") -> Payment:
    return Payment(str(row.id), progress, CENTS, reference)


async def told(office: Office, *all_of_it: Payment) -> State:
    """The state after all of it was settled, one after the other."""
    row = None
    for payment in all_of_it:
        row = await payments.settle(office.desk, payment, processor="sandbox")
    assert row is not None
    return row.state


async def test_in_whatever_order_and_however_often_it_is_told_it_is_credited_once(
    office: Office,
) -> None:
    kinds = (Progress.OPEN, Progress.PROCESSING, Progress.DECLINED, Progress.PAID)
    count = 0
    for order in itertools.permutations(kinds):
        row = await begun(office)
        reference = f"pi_{row.id}"
        everything = [news(row, progress, reference) for progress in order]
        assert await told(office, *everything, *everything) is State.PAID, order
        count += 1
    assert await credited(office) == [TEN_USD] * count


async def test_twenty_who_hear_of_it_at_once_credit_it_once(office: Office) -> None:
    row = await begun(office)
    told_all = (
        payments.settle(office.desk, news(row, Progress.PAID), processor="sandbox")
        for _ in range(20)
    )
    rows = await asyncio.gather(*told_all)
    assert {one.state for one in rows if one is not None} == {State.PAID}
    assert await credited(office) == [TEN_USD]


@pytest.mark.parametrize("coins", [Coins(999, "usd"), Coins(1_001, "usd"), Coins(1_000, "eur")])
async def test_another_amount_than_was_asked_for_is_not_credited(
    office: Office, coins: Coins, caplog: pytest.LogCaptureFixture
) -> None:
    row = await begun(office)
    with caplog.at_level(logging.ERROR):
        assert await told(office, news(row, Progress.PAID)._replace(coins=coins)) is State.PENDING
    assert "of another amount" in caplog.text
    assert await credited(office) == []
    assert await told(office, news(row, Progress.PAID)) is State.PAID


async def test_another_processors_news_changes_nothing(office: Office) -> None:
    row = await begun(office)
    paid = news(row, Progress.PAID)
    assert await payments.settle(office.desk, paid, processor="stripe") is None
    assert await payments.settle(office.desk, paid._replace(order="x"), processor="sandbox") is None
    unknown = paid._replace(order=str(uuid4()))
    assert await payments.settle(office.desk, unknown, processor="sandbox") is None
    assert await credited(office) == []


async def test_what_is_paid_twice_is_credited_once_and_cried_out(
    office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    row = await begun(office)
    with caplog.at_level(logging.ERROR):
        await told(office, news(row, Progress.PAID), news(row, Progress.PAID, "pi_2"))
    assert "paid twice" in caplog.text
    assert await credited(office) == [TEN_USD]


async def test_the_end_of_another_attempt_does_not_fail_it(office: Office) -> None:
    row = await begun(office)
    await told(office, news(row, Progress.PROCESSING, "pi_1"))
    assert await told(office, news(row, Progress.DECLINED, "pi_0")) is State.PROCESSING


async def test_a_plan_is_paid_for_and_nothing_is_credited(office: Office) -> None:
    row = await begun(office, Purpose.PLAN)
    assert await told(office, news(row, Progress.PAID)) is State.PAID
    assert await credited(office) == []
    office.clock.ahead += timedelta(hours=2)
    assert await payments.take_some(office.desk, 10) == []


async def test_a_wallet_that_is_full_gets_it_once_there_is_room(office: Office) -> None:
    row = await begun(office)
    account = await account_of(office)
    await office.pool.execute("UPDATE wallet SET base = $2 WHERE id = $1", account, NANOS_MAX)
    settled = await payments.settle(office.desk, news(row, Progress.PAID), processor="sandbox")
    assert settled is not None
    assert (settled.state, settled.is_credited) == (State.PAID, False)
    await office.pool.execute("UPDATE wallet SET base = 0 WHERE id = $1", account)
    again = await payments.settle(office.desk, news(row, Progress.PAID), processor="sandbox")
    assert again is not None
    assert again.is_credited


async def test_an_id_is_one_payment(office: Office) -> None:
    row = await begun(office)
    same = NewPayment(
        row.id, row.purpose, row.organization_id, row.owner, row.amount, row.coins, row.actor
    )
    assert (await payments.begin(office.pool, same, office.desk)).tries == 1, "not to be advanced"
    with pytest.raises(Conflict):
        await payments.begin(office.pool, same._replace(amount=Nanos(1)), office.desk)


async def test_of_two_top_ups_of_an_organization_one_is_in_flight(office: Office) -> None:
    first = await begun(office, Purpose.TOP_UP)
    with pytest.raises(asyncpg.UniqueViolationError):
        await begun(office, Purpose.TOP_UP)
    await told(office, news(first, Progress.DECLINED))
    await begun(office, Purpose.TOP_UP)


async def test_a_payment_is_one_workers_at_a_time(office: Office) -> None:
    row = await begun(office)
    assert await payments.take(office.desk, row.id) is None, "who began it is at it"
    office.clock.ahead += payments.LEASE
    assert len(await payments.take_some(office.desk, 10)) == 1
    assert await payments.take_some(office.desk, 10) == []
    await payments.later(office.pool, row, office.desk.now(), timedelta(0))
    assert await payments.take(office.desk, row.id) is not None


def test_pauses_grow_to_an_hour() -> None:
    pauses = [payments.pause_of(tries) for tries in range(30)]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (timedelta(seconds=2), timedelta(hours=1))


async def test_sepa_debits_euro_at_the_configured_price_rounded_up(office: Office) -> None:
    amount, sepa = Nanos(10_010_000_000), MethodKind.SEPA_DEBIT
    assert payments.coins_of(office.desk, amount, sepa) == Coins(901, "eur")
    assert payments.coins_of(office.desk, amount, MethodKind.CARD) == Coins(1_001, "usd")
    plain = office.desk._replace(config=Config(), processor=None)
    with pytest.raises(Conflict, match="eur_per_usd"):
        payments.coins_of(plain, amount, sepa)
    with pytest.raises(Conflict, match="no payment processor"):
        payments.processor_of(plain)
