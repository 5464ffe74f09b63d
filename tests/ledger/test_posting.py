"""Rules of posting to a partition's book."""

import asyncpg
import pytest

from ledger.book import Organization
from ledger.posting import Entry, Part, lock_parts, post
from tests.ledger.deployment import ACTOR, Deployment


def entry(wallet: str, amount: int, reference: str = "r") -> Entry:
    return Entry("refund", reference, ACTOR, "", {wallet: amount, "refund": -amount})


async def posted(deployment: Deployment, organization: Organization, *entries: Entry) -> Part:
    """Post them under one lock; the partition's row afterwards."""
    number = organization.partition
    async with deployment.connected() as connection, connection.transaction():
        part = (await lock_parts(connection, [number]))[number]
        for one in entries:
            part = await post(connection, part, entry=one, version=part.version + 1)
    return part


async def test_transactions_of_one_lock_follow_each_other_in_the_chain(
    deployment: Deployment,
) -> None:
    acme = await deployment.organization(0)
    part = await posted(deployment, acme, *(entry(acme.id, 0, f"r{n}") for n in range(3)))
    assert not [one for one in await deployment.differences() if "chain" in one]
    assert part.transaction_number == 3


async def test_a_reference_is_posted_once_for_each_kind(deployment: Deployment) -> None:
    acme = await deployment.organization(0)
    with pytest.raises(asyncpg.UniqueViolationError):
        await posted(deployment, acme, entry(acme.id, 0), entry(acme.id, 0))
    assert await deployment.differences() == []


async def test_lines_that_do_not_sum_to_zero_are_not_posted(deployment: Deployment) -> None:
    acme = await deployment.organization(0)
    lopsided = Entry("refund", "r", ACTOR, "", {acme.id: -5})
    with pytest.raises(AssertionError):
        await posted(deployment, acme, lopsided)
