"""Rules of the audit log."""

import json

import pytest

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
