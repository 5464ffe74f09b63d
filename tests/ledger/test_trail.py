"""Rules of the audit log."""

import asyncio
import json

import pytest
from asyncpg.transaction import Transaction

from ledger.postgres import Connection
from ledger.trail import Change, append_change
from tests.ledger.deployment import ACTOR, Deployment


async def test_every_change_is_a_line_linked_to_the_one_before(deployment: Deployment) -> None:
    acme = await deployment.organization(credit=500)
    rows = await deployment.pool.fetch(
        "SELECT number, actor, action, after, previous_hash, hash FROM audit_log"
        " WHERE organization_id = $1 ORDER BY number",
        acme.id,
    )
    assert [row["action"] for row in rows] == ["organization.create", "credit.grant"]
    assert rows[1]["previous_hash"] == rows[0]["hash"]
    assert json.loads(rows[1]["after"])["balance"] == "500"
    assert {row["actor"] for row in rows} == {ACTOR}


async def test_a_line_falls_with_its_change(deployment: Deployment) -> None:
    acme = await deployment.organization(credit=0)
    async with deployment.connected() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await append_change(connection, acme.id, Change(ACTOR, "key.revoke", "k", {"n": 1}))
        await transaction.rollback()
        assert await deployment.count("audit_log") == 1
        with pytest.raises(AssertionError):
            await append_change(connection, acme.id, Change(ACTOR, "key.revoke", "k"))
    assert await deployment.differences() == []


async def test_two_who_add_to_an_organization_and_then_say_so_do_not_wait_for_each_other(
    deployment: Deployment,
) -> None:
    acme = await deployment.organization(credit=0)

    async def said(connection: Connection, transaction: Transaction, name: str) -> None:
        await append_change(connection, acme.id, Change(ACTOR, "project.create", name))
        await transaction.commit()

    async with deployment.connected() as one, deployment.connected() as other:
        begun = [(one, one.transaction(), "one"), (other, other.transaction(), "other")]
        for connection, transaction, name in begun:
            await transaction.start()
            await connection.execute(
                "INSERT INTO project (id, organization_id, name)"
                " VALUES (gen_random_uuid(), $1, $2)",
                acme.id,
                name,
            )
        await asyncio.gather(*(said(*each) for each in begun))
    assert await deployment.count("audit_log") == 3
    assert await deployment.differences() == []
