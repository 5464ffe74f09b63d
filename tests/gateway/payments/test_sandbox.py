"""The sandbox keeps the processor's contract, as Stripe does."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from gateway.payments.processor import (
    Coins,
    Forged,
    MethodKind,
    Order,
    ProcessorRefused,
    Progress,
)
from gateway.payments.sandbox import Entered, Sandbox

CENTS = Coins(1_000, "usd")
BEGAN = datetime(2026, 11, 23, tzinfo=UTC)


class Clock:
    """Stands still until it is turned on."""

    def __init__(self) -> None:
        self.at = BEGAN

    def __call__(self) -> datetime:
        return self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def sandbox(postgres_url: str, clock: Clock) -> AsyncIterator[Sandbox]:
    async with asyncpg.create_pool(postgres_url, min_size=0) as pool:
        yield Sandbox(pool, clock, "http://gate")


async def order(
    sandbox: Sandbox, does: Entered | None = Entered.APPROVE, order_id: str = "o1"
) -> Order:
    customer = await sandbox.customer("ada", email="ada@example.com", name="Ada")
    plain = Order(order_id, customer, CENTS, "credits", BEGAN)
    if does is None:
        return plain
    setup = await sandbox.start_setup(f"m-{does}", customer=customer, kind=MethodKind.CARD)
    method = await sandbox.finish_setup(setup.id, customer=customer, entered=does)
    return plain._replace(method=method.reference, method_kind=method.kind)


@pytest.mark.parametrize(
    ("does", "at_once", "later", "is_hard"),
    [
        (Entered.APPROVE, Progress.PAID, Progress.PAID, False),
        (Entered.INSUFFICIENT_FUNDS, Progress.DECLINED, Progress.DECLINED, False),
        (Entered.STOLEN_CARD, Progress.DECLINED, Progress.DECLINED, True),
        (Entered.SLOW, Progress.PROCESSING, Progress.PAID, False),
        (Entered.SLOW_DECLINE, Progress.PROCESSING, Progress.DECLINED, False),
    ],
)
async def test_a_method_does_what_was_entered(
    sandbox: Sandbox,
    clock: Clock,
    does: Entered,
    at_once: Progress,
    later: Progress,
    *,
    is_hard: bool,
) -> None:
    wanted = await order(sandbox, does)
    assert (await sandbox.charge(wanted)).progress is at_once
    clock.at += timedelta(seconds=3)
    found = await sandbox.find(wanted)
    assert found is not None
    assert (found.progress, found.is_hard, found.coins) == (later, is_hard, CENTS)
    assert (found.decline is not None) == (later is Progress.DECLINED)


async def test_an_order_is_charged_once_whatever_it_says_the_second_time(sandbox: Sandbox) -> None:
    wanted = await order(sandbox)
    first = await sandbox.charge(wanted)
    assert await sandbox.charge(wanted._replace(coins=Coins(9, "eur"))) == first


async def test_what_was_never_ordered_is_not_found(sandbox: Sandbox) -> None:
    assert await sandbox.find(await order(sandbox)) is None


async def test_a_page_waits_for_a_button_and_takes_one(sandbox: Sandbox) -> None:
    opened = await sandbox.checkout(await order(sandbox, None), back_url="http://gate/paid")
    assert (opened.progress, opened.url) == (Progress.OPEN, "http://gate/sandbox/o1")
    for value in (Entered.APPROVE, Entered.STOLEN_CARD):
        assert await sandbox.pay("o1", value) == "http://gate/paid"
    found = await sandbox.find(await order(sandbox, None))
    assert found is not None
    assert (found.progress, found.url) == (Progress.PAID, None)
    assert await sandbox.pay("o2", Entered.APPROVE) is None


async def test_no_more_goes_back_than_was_paid_and_each_refund_once(sandbox: Sandbox) -> None:
    paid = await sandbox.charge(await order(sandbox))
    assert paid.reference is not None
    for _ in range(3):
        done = await sandbox.refund("r1", payment=paid.reference, coins=Coins(600, "usd"))
        assert done.progress is Progress.PAID
    with pytest.raises(ProcessorRefused):
        await sandbox.refund("r2", payment=paid.reference, coins=Coins(401, "usd"))
    await sandbox.refund("r3", payment=paid.reference, coins=Coins(400, "usd"))


async def test_somebody_elses_method_and_a_removed_one_are_refused(sandbox: Sandbox) -> None:
    wanted = await order(sandbox)
    eve = await sandbox.customer("eve", email="eve@example.com", name="Eve")
    with pytest.raises(ProcessorRefused):
        await sandbox.charge(wanted._replace(customer=eve))
    setup = await sandbox.start_setup("m-approve", customer=eve, kind=MethodKind.CARD)
    with pytest.raises(ProcessorRefused):
        await sandbox.finish_setup(setup.id, customer=eve, entered="approve")
    assert wanted.method is not None
    for _ in range(2):
        await sandbox.remove(wanted.method)
    with pytest.raises(ProcessorRefused):
        await sandbox.charge(wanted)


async def test_it_lists_what_was_paid_and_sends_no_events(sandbox: Sandbox) -> None:
    wanted = await order(sandbox)
    await sandbox.charge(wanted)
    (found,) = await sandbox.documents(wanted.customer)
    assert (found.order, found.coins, found.url) == ("o1", CENTS, None)
    assert await sandbox.receipt(found.reference) is None
    with pytest.raises(Forged):
        sandbox.event(b"{}", {}, now=BEGAN)
