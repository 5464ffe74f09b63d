"""Rules of the book."""

import asyncio
from uuid import uuid4

import pytest

from ledger.book import BookRefused, CreditKind
from ledger.money import NANOS_MAX, Nanos
from ledger.record import EndKind
from tests.ledger.deployment import ACTOR, Deployment, Line, new_call_id


async def test_organizations_go_round_the_partitions(deployment: Deployment) -> None:
    made = [
        await deployment.book.create_organization(f"o{number}", actor=ACTOR) for number in range(17)
    ]
    assert sorted(one.partition for one in made) == sorted([*range(16), made[0].partition])


async def test_a_new_organization_has_an_empty_wallet_and_a_project(
    deployment: Deployment,
) -> None:
    acme = await deployment.organization(credit=0)
    wallet = await deployment.book.wallet(acme.id)
    assert wallet is not None
    assert (wallet.balance, wallet.partition) == (0, acme.partition)
    assert await deployment.book.wallet(str(uuid4())) is None


async def test_a_credit_is_booked_once_for_each_reference(deployment: Deployment) -> None:
    acme = await deployment.organization(credit=0)

    async def grant() -> bool:
        credited = await deployment.book.credit(
            acme.id, Nanos(500), kind=CreditKind.GRANT, reference="r", actor=ACTOR
        )
        assert credited.wallet.balance == 500
        return credited.is_new

    assert sorted(await asyncio.gather(*(grant() for _ in range(4)))) == [False] * 3 + [True]
    assert await deployment.differences() == []


async def test_a_reference_is_not_used_for_something_else(deployment: Deployment) -> None:
    acme, other = await deployment.organization(0), await deployment.organization(0)
    await deployment.credit(acme, 500, "r")
    with pytest.raises(BookRefused, match="something else"):
        await deployment.credit(acme, 501, "r")
    with pytest.raises(BookRefused):
        await deployment.credit(other, 500, "r")
    assert await deployment.balance(other) == 0


@pytest.mark.parametrize(
    ("amount", "kind"),
    [
        (0, CreditKind.GRANT),
        (-1, CreditKind.GRANT),
        (-1, CreditKind.PAYMENT),
        (NANOS_MAX + 1, CreditKind.GRANT),
        (-1, CreditKind.ADJUSTMENT),
        (NANOS_MAX, CreditKind.GRANT),
    ],
)
async def test_what_the_book_does_not_take_changes_nothing(
    deployment: Deployment, amount: int, kind: CreditKind
) -> None:
    acme = await deployment.organization(credit=1_000)
    with pytest.raises(BookRefused):
        await deployment.book.credit(acme.id, Nanos(amount), kind=kind, reference="r", actor=ACTOR)
    assert await deployment.balance(acme) == 1_000
    assert await deployment.differences() == []


@pytest.mark.parametrize("organization_id", ["018f0000-0000-7000-8000-000000000000", "not a uuid"])
async def test_an_unknown_organization_gets_no_credit(
    deployment: Deployment, organization_id: str
) -> None:
    with pytest.raises(BookRefused):
        await deployment.book.credit(
            organization_id, Nanos(5), kind=CreditKind.GRANT, reference="r", actor=ACTOR
        )


async def test_credits_and_flushes_of_a_partition_do_not_deadlock(deployment: Deployment) -> None:
    acme = await deployment.active()

    async def give() -> None:
        for _ in range(10):
            await deployment.credit(acme, 5)

    async def calls() -> None:
        for _ in range(10):
            while not await deployment.write(acme, [Line(new_call_id(), acme, EndKind.SETTLED, 2)]):
                continue  # a credit had the partition at that moment

    await asyncio.gather(give(), calls(), calls_elsewhere(deployment))
    assert await deployment.balance(acme) == 1_000_000 + 50 - 20
    assert await deployment.differences() == []


async def calls_elsewhere(deployment: Deployment) -> None:
    other = await deployment.active()
    await deployment.write(other, [Line(new_call_id(), other, EndKind.SETTLED, 2)])
