"""Credits: exact, once per idempotency key, usable at once."""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from gateway.errors import BadRequest, Conflict, Unavailable
from gateway.management import credits as credits_
from gateway.management import organizations
from gateway.management.credits import Grant, Taking
from gateway.management.organizations import OrganizationTerms
from ledger.clients import open_redis
from ledger.functions import Partition
from ledger.money import NANOS_MAX, Nanos, nanos
from ledger.withdrawals import WithdrawalKind
from tests.gateway.tenancy import Tenancy, activate, tenancy


@pytest.fixture
async def stage(postgres_url: str, redis_url: str) -> AsyncIterator[Tenancy]:
    async with tenancy(postgres_url, redis_url) as made:
        yield made


def a_grant(stage: Tenancy, usd: str = "10", key: str | None = "k") -> Grant:
    """A grant to the stage's organization."""
    return Grant(stage.organization_id, nanos(usd), "welcome", "operator", key)


async def balance(stage: Tenancy) -> int:
    """What is posted to the stage's organization."""
    return (await organizations.resolve(stage.pool, "Acme")).balance


async def test_a_grant_is_usable_when_it_is_answered(stage: Tenancy) -> None:
    await activate(stage, 0)
    done = await credits_.grant(stage.pool, stage.redis, a_grant(stage, "0.000000001"))
    assert done == (1, True, True)
    image = await Partition(stage.redis, 0).snap(1, [str(stage.organization_id)])
    assert [wallet.free for wallet in image.wallets] == [1]


async def test_fifty_equal_grants_at_once_are_one(stage: Tenancy) -> None:
    calls = [credits_.grant(stage.pool, stage.redis, a_grant(stage)) for _ in range(50)]
    done = await asyncio.gather(*calls)
    assert [one.is_new for one in done].count(True) == 1
    assert {one.balance for one in done} == {nanos(10)}
    assert await balance(stage) == nanos(10)


async def test_grants_without_a_key_add_up(stage: Tenancy) -> None:
    for _ in range(3):
        await credits_.grant(stage.pool, stage.redis, a_grant(stage, key=None))
    assert await balance(stage) == nanos(30)


async def test_a_key_used_for_another_amount_is_a_conflict(stage: Tenancy) -> None:
    await credits_.grant(stage.pool, stage.redis, a_grant(stage, "10"))
    with pytest.raises(Conflict):
        await credits_.grant(stage.pool, stage.redis, a_grant(stage, "11"))
    assert await balance(stage) == nanos(10)


async def test_the_same_key_of_another_organization_is_another_grant(stage: Tenancy) -> None:
    other = await organizations.create(stage.pool, stage.redis, OrganizationTerms(name="Ada"))
    await credits_.grant(stage.pool, stage.redis, a_grant(stage))
    done = await credits_.grant(
        stage.pool, stage.redis, a_grant(stage)._replace(organization_id=other.id)
    )
    assert done.is_new


async def test_a_grant_with_redis_away_is_booked_and_said_not_to_be_usable_yet(
    stage: Tenancy,
) -> None:
    nowhere = open_redis("redis://127.0.0.1:1")
    done = await credits_.grant(stage.pool, nowhere, a_grant(stage))
    assert (done.is_new, done.is_usable) == (True, False)
    assert await balance(stage) == nanos(10)
    await nowhere.aclose()


async def test_what_an_earlier_push_missed_is_pushed_with_the_next(stage: Tenancy) -> None:
    await credits_.grant(stage.pool, stage.redis, a_grant(stage, key="not pushed"))
    await activate(stage, 0)
    done = await credits_.grant(stage.pool, stage.redis, a_grant(stage, key="pushed"))
    assert done.is_usable
    image = await Partition(stage.redis, 0).snap(1, [str(stage.organization_id)])
    assert [wallet.free for wallet in image.wallets] == [nanos(20)]


@pytest.mark.parametrize(
    ("amount", "reason", "key"),
    [
        (0, "r", "k"),
        (-1, "r", "k"),
        (1, "", "k"),
        (1, " ", "k"),
        (1, "r" * 501, "k"),
        (1, "r", ""),
        (1, "r", "k" * 201),
        (1, "r", "a\nb"),
    ],
)
async def test_flawed_grants_are_refused(
    stage: Tenancy, amount: int, reason: str, key: str
) -> None:
    wanted = Grant(stage.organization_id, Nanos(amount), reason, "operator", key)
    with pytest.raises(BadRequest):
        await credits_.grant(stage.pool, stage.redis, wanted)


async def test_a_grant_beyond_what_a_wallet_holds_or_to_nobody_is_not_booked(
    stage: Tenancy,
) -> None:
    full = a_grant(stage)._replace(amount=Nanos(NANOS_MAX))
    await credits_.grant(stage.pool, stage.redis, full)
    for wanted in (a_grant(stage, key="2"), full._replace(organization_id=UUID(int=7))):
        with pytest.raises(Conflict):
            await credits_.grant(stage.pool, stage.redis, wanted)
    assert await balance(stage) == NANOS_MAX


def a_taking(stage: Tenancy, usd: str = "4", key: str | None = "k") -> Taking:
    """A refund by the stage's organization."""
    kind, organization_id = WithdrawalKind.REFUND, stage.organization_id
    return Taking(organization_id, nanos(usd), kind, "unused", "operator", idempotency_key=key)


async def free(stage: Tenancy, organization_id: UUID, partition: int) -> int:
    """What Redis has free of the organization's."""
    image = await Partition(stage.redis, partition).snap(1, [str(organization_id)])
    return image.wallets[0].free


async def test_a_refund_and_its_repeat_leave_once(stage: Tenancy) -> None:
    await activate(stage, 0)
    await credits_.grant(stage.pool, stage.redis, a_grant(stage, "10"))
    for is_new in (True, False):
        done = await credits_.take(stage.pool, stage.redis, a_taking(stage))
        assert done == (nanos(6), None, is_new, True)
        assert await free(stage, stage.organization_id, 0) == nanos(6)


async def test_a_transfer_is_usable_at_once(stage: Tenancy) -> None:
    await activate(stage, 0, 1)
    other = await organizations.create(stage.pool, stage.redis, OrganizationTerms(name="Ada"))
    await credits_.grant(stage.pool, stage.redis, a_grant(stage, "10"))
    wanted = a_taking(stage)._replace(kind=WithdrawalKind.TRANSFER, target_id=other.id)
    done = await credits_.take(stage.pool, stage.redis, wanted)
    assert done == (nanos(6), nanos(4), True, True)
    assert await free(stage, other.id, 1) == nanos(4)


async def test_more_than_is_free_is_refused_with_what_is(stage: Tenancy) -> None:
    await activate(stage, 0)
    await credits_.grant(stage.pool, stage.redis, a_grant(stage, "10"))
    with pytest.raises(Conflict, match=r"\$11.00 cannot leave: \$10.00 can") as refused:
        await credits_.take(stage.pool, stage.redis, a_taking(stage, "11"))
    assert refused.value.extra["affordable_nanos"] == nanos(10)
    assert await balance(stage) == nanos(10)


async def test_nothing_leaves_while_redis_is_away(stage: Tenancy) -> None:
    await credits_.grant(stage.pool, stage.redis, a_grant(stage, "10"))
    nowhere = open_redis("redis://127.0.0.1:1")
    with pytest.raises(Unavailable, match="Nothing was done"):
        await credits_.take(stage.pool, nowhere, a_taking(stage))
    await nowhere.aclose()
    assert await balance(stage) == nanos(10)


async def test_an_adjustment_goes_both_ways_and_its_key_only_one(stage: Tenancy) -> None:
    await activate(stage, 0)
    up = a_grant(stage, "10")
    assert (await credits_.adjust(stage.pool, stage.redis, up)).balance == nanos(10)
    with pytest.raises(Conflict, match="something else"):
        await credits_.adjust(stage.pool, stage.redis, up._replace(amount=Nanos(-nanos(3))))
    down = up._replace(amount=Nanos(-nanos(3)), idempotency_key="down")
    assert (await credits_.adjust(stage.pool, stage.redis, down)).balance == nanos(7)
    with pytest.raises(BadRequest):
        await credits_.adjust(stage.pool, stage.redis, up._replace(amount=Nanos(0)))
