"""Rules of money that leaves by choice: once or not at all, and never what calls hold."""

import asyncio
from typing import NamedTuple

import pytest

from ledger.admission import LedgerUnavailable
from ledger.audit import Audit
from ledger.bases import push_bases
from ledger.book import BookRefused, CreditKind, Organization
from ledger.functions import Epoch
from ledger.money import NANOS_MAX, Nanos
from ledger.postgres import connect
from ledger.withdrawals import Asked, Short, WithdrawalKind
from tests.ledger.deployment import ACTOR, Deployment


class Money(NamedTuple):
    """What a wallet has in both places."""

    posted: int
    free: int
    held: int


async def money(deployment: Deployment, organization: Organization) -> Money:
    generation = await deployment.generation(organization)
    image = await deployment.partition(organization).snap(generation, [organization.id])
    there = image.wallets[0]
    assert there.free + there.held + there.spent == there.base
    return Money(await deployment.balance(organization), there.free, there.held)


async def push(deployment: Deployment, organization: Organization) -> None:
    generation = await deployment.generation(organization)
    async with deployment.connected() as connection:
        partition = deployment.partition(organization)
        await push_bases(connection, partition, generation=generation, above=0)


async def withheld(
    deployment: Deployment, organization: Organization, amount: int
) -> tuple[Asked, int]:
    """The first two steps of a withdrawal: what is asked, and the generation it is withheld in."""
    asked = await deployment.withdrawals.ask(deployment.wanted(organization, amount))
    return asked, await deployment.withdrawals.withhold(asked)


async def two(deployment: Deployment) -> tuple[Organization, Organization]:
    """Two organizations in two partitions, with 1,000 each."""
    acme, other = await deployment.active(1_000), await deployment.active(1_000)
    assert acme.partition != other.partition
    return acme, other


async def drift(deployment: Deployment, organization: Organization) -> int:
    audit = Audit(deployment.url, deployment.redis, partitions=[], on_drift=lambda _: None)
    connection = await connect(deployment.url, name="a test's audit")
    try:
        drifts = await audit.audit(connection, deployment.partition(organization))
    finally:
        await connection.close()
    assert drifts is not None
    return len(drifts)


async def test_a_refund_leaves_the_wallet_in_both_places(deployment: Deployment) -> None:
    acme = await deployment.active(1_000)
    done = await deployment.withdrawals.withdraw(deployment.wanted(acme, 400))
    assert (done.is_new, done.is_told, done.wallet.balance) == (True, True, 600)
    assert await money(deployment, acme) == (600, 600, 0)
    assert await deployment.differences() == []


async def test_a_transfer_between_partitions_takes_as_much_as_it_gives(
    deployment: Deployment,
) -> None:
    acme, other = await two(deployment)
    await deployment.withdrawals.withdraw(deployment.wanted(acme, 400, to=other))
    assert await money(deployment, acme) == (600, 600, 0)
    assert await money(deployment, other) == (1_400, 1_400, 0)
    assert await deployment.differences() == []
    actions = "SELECT organization_id::text, action FROM audit_log WHERE action LIKE '%transfer%'"
    assert {tuple(row) for row in await deployment.pool.fetch(actions)} == {
        (acme.id, "credit.transfer"),
        (other.id, "credit.transfer_in"),
    }


async def test_what_open_calls_hold_cannot_leave(deployment: Deployment) -> None:
    acme = await deployment.active(1_000)
    call_id = await deployment.hold(acme, 700)
    with pytest.raises(Short) as refused:
        await deployment.withdrawals.withdraw(deployment.wanted(acme, 301))
    assert (refused.value.affordable, refused.value.held) == (300, 700)
    await deployment.withdrawals.withdraw(deployment.wanted(acme, 300))
    assert await money(deployment, acme) == (700, 0, 700)
    assert await deployment.settle(acme, call_id, 700) == "settled"
    await deployment.flush(acme)
    assert await money(deployment, acme) == (0, 0, 0)


async def test_what_is_charged_but_not_flushed_cannot_leave(deployment: Deployment) -> None:
    acme = await deployment.active(1_000)
    await deployment.call(acme, 900)
    with pytest.raises(Short) as refused:
        await deployment.withdrawals.withdraw(deployment.wanted(acme, 101))
    assert refused.value.affordable == 100


async def test_a_late_debit_that_redis_has_not_heard_of_cannot_leave(
    deployment: Deployment,
) -> None:
    acme = await deployment.active(1_000)
    await deployment.pool.execute("UPDATE wallet SET base = 10 WHERE id = $1", acme.id)
    with pytest.raises(Short) as refused:
        await deployment.withdrawals.withdraw(deployment.wanted(acme, 11))
    assert refused.value.affordable == 10
    assert (await money(deployment, acme)).held == 0


async def test_twenty_racing_for_the_last_money_take_no_more_than_there_is(
    deployment: Deployment,
) -> None:
    acme = await deployment.active(1_000)
    wanted = [deployment.wanted(acme, 300) for _ in range(20)]
    done = await asyncio.gather(
        *(deployment.withdrawals.withdraw(one) for one in wanted), return_exceptions=True
    )
    assert sum(isinstance(one, Short) for one in done) == 17
    assert await money(deployment, acme) == (100, 100, 0)


async def test_ten_asking_under_one_reference_at_once_are_one(deployment: Deployment) -> None:
    acme = await deployment.active(1_000)
    wanted = deployment.wanted(acme, 900)
    done = await asyncio.gather(*(deployment.withdrawals.withdraw(wanted) for _ in range(10)))
    assert [one.is_new for one in done].count(True) == 1
    await deployment.conclude(acme)
    assert await money(deployment, acme) == (100, 100, 0)
    assert await deployment.count("withdrawal") == 1


async def test_transfers_both_ways_at_once_do_not_deadlock(deployment: Deployment) -> None:
    acme, other = await two(deployment)
    ways = [(acme, other), (other, acme)] * 10
    await asyncio.gather(
        *(deployment.withdrawals.withdraw(deployment.wanted(a, 10, to=b)) for a, b in ways)
    )
    assert await money(deployment, acme) == await money(deployment, other) == (1_000, 1_000, 0)
    assert await deployment.differences() == []


async def test_a_reference_is_not_used_for_something_else(deployment: Deployment) -> None:
    acme, other = await two(deployment)
    wanted = deployment.wanted(acme, 5, reference="r")
    await deployment.withdrawals.withdraw(wanted)
    for changed in (
        wanted._replace(amount=Nanos(6)),
        wanted._replace(organization_id=other.id),
    ):
        with pytest.raises(BookRefused, match="something else"):
            await deployment.withdrawals.withdraw(changed)


async def test_an_adjustment_down_under_the_reference_of_one_up_is_refused(
    deployment: Deployment,
) -> None:
    acme = await deployment.active(1_000)
    kind = CreditKind.ADJUSTMENT
    await deployment.book.credit(acme.id, Nanos(5), kind=kind, reference="r", actor=ACTOR)
    wanted = deployment.wanted(acme, 5, reference="r")._replace(kind=WithdrawalKind.ADJUSTMENT)
    with pytest.raises(BookRefused, match="something else"):
        await deployment.withdrawals.withdraw(wanted)
    assert (await money(deployment, acme)).held == 0


async def test_what_was_refused_may_be_asked_for_again(deployment: Deployment) -> None:
    acme = await deployment.active(100)
    wanted = deployment.wanted(acme, 500)
    with pytest.raises(Short):
        await deployment.withdrawals.withdraw(wanted)
    await deployment.credit(acme, 900)
    await push(deployment, acme)
    assert (await deployment.withdrawals.withdraw(wanted)).is_new
    assert await money(deployment, acme) == (500, 500, 0)


async def test_nobody_and_nothing_and_oneself_are_refused(deployment: Deployment) -> None:
    acme = await deployment.active(1_000)
    nobody = acme._replace(id="018f0000-0000-7000-8000-000000000000")
    for wanted in (
        deployment.wanted(acme, 0),
        deployment.wanted(acme, NANOS_MAX + 1),
        deployment.wanted(acme, 5, to=acme),
        deployment.wanted(acme, 5, to=nobody),
        deployment.wanted(nobody, 5),
        deployment.wanted(acme._replace(id="not a uuid"), 5),
    ):
        with pytest.raises(BookRefused):
            await deployment.withdrawals.withdraw(wanted)
    assert await deployment.count("withdrawal") == 0


async def test_a_transfer_does_not_fill_a_wallet_beyond_measure(deployment: Deployment) -> None:
    acme, other = await deployment.active(1_000), await deployment.active(NANOS_MAX)
    with pytest.raises(BookRefused, match="at most"):
        await deployment.withdrawals.withdraw(deployment.wanted(acme, 1, to=other))
    assert await money(deployment, acme) == (1_000, 1_000, 0)


async def test_nothing_leaves_while_redis_cannot_hold(deployment: Deployment) -> None:
    acme = await deployment.active(1_000)
    await deployment.redis.flushall()
    wanted = deployment.wanted(acme, 400)
    with pytest.raises(LedgerUnavailable):
        await deployment.withdrawals.withdraw(wanted)
    assert await deployment.balance(acme) == 1_000
    await deployment.recover(acme)
    assert (await deployment.withdrawals.withdraw(wanted)).is_new
    assert await money(deployment, acme) == (600, 600, 0)


async def test_a_wallet_that_redis_does_not_know_yet_is_loaded_first(
    deployment: Deployment,
) -> None:
    first = await deployment.active()
    while True:
        acme = await deployment.organization(70)
        if acme.partition == first.partition:
            break
    await deployment.withdrawals.withdraw(deployment.wanted(acme, 30))
    assert await money(deployment, acme) == (40, 40, 0)


async def test_what_was_withheld_before_a_recovery_books_nothing(deployment: Deployment) -> None:
    acme = await deployment.active(1_000)
    asked, generation = await withheld(deployment, acme, 400)
    await deployment.redis.flushall()
    assert await deployment.recover(acme) is not None
    assert await deployment.withdrawals.book(asked, generation) is None
    # The call that was admitted since has what the withdrawal no longer holds.
    await deployment.hold(acme, 1_000)
    with pytest.raises(Short):
        await deployment.withdrawals.withhold(asked)
    assert await money(deployment, acme) == (1_000, 0, 1_000)


async def test_a_recovery_keeps_calls_and_drops_what_is_withheld(deployment: Deployment) -> None:
    acme = await deployment.active(1_000)
    await deployment.hold(acme, 300)
    await withheld(deployment, acme, 400)
    assert await money(deployment, acme) == (1_000, 300, 700)
    await deployment.pool.execute("UPDATE part SET state = 'damaged'")
    assert await deployment.recover(acme) is not None
    assert await money(deployment, acme) == (1_000, 700, 300)
    await deployment.pool.execute("UPDATE withdrawal SET asked_at = now() - interval '1 hour'")
    await deployment.conclude(acme)
    assert await money(deployment, acme) == (1_000, 700, 300)
    generation = await deployment.generation(acme)
    assert await deployment.partition(acme).withheld(generation) == []


async def test_a_process_that_slept_while_it_was_given_up_books_nothing(
    deployment: Deployment,
) -> None:
    acme = await deployment.active(1_000)
    asked, generation = await withheld(deployment, acme, 400)
    await deployment.pool.execute("UPDATE withdrawal SET asked_at = now() - interval '1 hour'")
    assert await deployment.conclude(acme) == 1
    with pytest.raises(LedgerUnavailable):
        await deployment.withdrawals.book(asked, generation)
    # It had not even withheld, or does it again: the job takes that back as well.
    await deployment.withdrawals.withhold(asked)
    assert await money(deployment, acme) == (1_000, 600, 400)
    assert await deployment.conclude(acme) == 1
    assert await money(deployment, acme) == (1_000, 1_000, 0)


async def test_a_withdrawal_that_postgres_lost_is_given_back(deployment: Deployment) -> None:
    acme = await deployment.active(1_000)
    await withheld(deployment, acme, 400)
    await deployment.pool.execute("DELETE FROM withdrawal")
    assert await deployment.conclude(acme) == 1
    assert await money(deployment, acme) == (1_000, 1_000, 0)


async def test_neither_the_sweeper_nor_the_audit_minds_what_is_withheld(
    deployment: Deployment,
) -> None:
    acme = await deployment.active(1_000)
    asked, generation = await withheld(deployment, acme, 400)
    partition = deployment.partition(acme)
    assert await partition.sweep(generation, 100) == 0
    assert await partition.open_holds(generation) == []
    assert await drift(deployment, acme) == 0
    await deployment.withdrawals.book(asked, generation)
    assert await drift(deployment, acme) == 0
    # The audit pushed the base that it found missing, and with it went what was withheld.
    assert await money(deployment, acme) == (600, 600, 0)
    assert await deployment.count("usage_record") == 0


async def test_a_base_pushed_for_another_reason_takes_the_withdrawal_along(
    deployment: Deployment,
) -> None:
    acme = await deployment.active(1_000)
    asked, generation = await withheld(deployment, acme, 800)
    await deployment.withdrawals.book(asked, generation)
    await deployment.withdrawals.withdraw(deployment.wanted(acme, 1))
    assert await money(deployment, acme) == (199, 199, 0)


async def test_concluding_twice_changes_nothing(deployment: Deployment) -> None:
    acme = await deployment.active(1_000)
    await deployment.withdrawals.withdraw(deployment.wanted(acme, 400))
    for _ in range(3):
        await deployment.conclude(acme)
        assert await money(deployment, acme) == (600, 600, 0)
    released = "SELECT count(*) FROM withdrawal WHERE released_at IS NULL"
    assert await deployment.pool.fetchval(released) == 0
    await deployment.redis.flushall()
    with pytest.raises(Epoch):
        await deployment.conclude(acme)
