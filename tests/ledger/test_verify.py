"""Rules of the offline proof: a true ledger has no differences, a changed one names them."""

import msgspec
import pytest

from ledger.price_data import FORMAT, Between, Equals, Override, Sheet, Step
from ledger.record import EndKind, encode
from ledger.stream import Window
from ledger.verify import verify
from tests.ledger.deployment import Deployment, Line, entry_fields, new_call_id, record_of

WINDOW = Window("key-1", 0, 500)


async def _busy(deployment: Deployment) -> None:
    """A ledger with a bit of everything in it."""
    acme = await deployment.active()
    call = new_call_id()
    await deployment.write(
        acme,
        [
            Line(new_call_id(), acme, EndKind.SETTLED, 10, windows=(WINDOW,)),
            Line(new_call_id(), acme, EndKind.SETTLED, 5, moved=False, windows=(WINDOW,)),
            Line(call, acme, EndKind.EXPIRED, 0),
            {b"k": b"nonsense"},
        ],
    )
    await deployment.write(acme, [Line(call, acme, EndKind.SETTLED, 7, windows=(WINDOW,))])
    await deployment.write(acme, [Line(call, acme, EndKind.SETTLED, 7, windows=(WINDOW,))])
    await deployment.withdrawals.withdraw(deployment.wanted(acme, 100))
    other = await deployment.organization(0)
    await deployment.withdrawals.withdraw(deployment.wanted(acme, 50, to=other))


async def test_a_true_ledger_has_no_differences(deployment: Deployment) -> None:
    await _busy(deployment)
    assert await deployment.differences() == []


async def test_an_empty_ledger_has_no_differences(deployment: Deployment) -> None:
    assert await deployment.differences() == []


FORGERIES = {
    "wallet base": "UPDATE wallet SET base = base + 1",
    "wallet spent": "UPDATE wallet SET spent = spent + 1",
    "posted balance": "UPDATE wallet SET base = base + 1",
    "sum of postings": "UPDATE posting SET amount = amount + 1 WHERE account = 'grant'",
    "posting": """
        UPDATE posting SET amount = amount + CASE account WHEN 'revenue' THEN -1 ELSE 1 END
        WHERE number = 2
    """,
    "hash": "UPDATE ledger_transaction SET reason = 'a better one' WHERE kind = 'grant'",
    "link to the line before": "UPDATE ledger_transaction SET previous_hash = 'x' WHERE number = 2",
    "end of hash chain": "UPDATE part SET transaction_number = transaction_number + 1",
    "end of audit chain": "DELETE FROM audit_log WHERE number > 1",
    "audit number": "DELETE FROM audit_log WHERE number = 1",
    "cap window base": "UPDATE cap_window SET base = base - 1",
    "cap window spent": "UPDATE cap_window SET spent = spent - 1",
    "hourly figures": "UPDATE usage_hourly SET output = output + 1",
    "correction": "UPDATE correction SET base_delta = base_delta + 1 WHERE number = 1",
    "transaction of a record": "UPDATE usage_record SET transaction_number = 99",
    "withdrawal": "UPDATE withdrawal SET amount = amount + 1",
    "sum of transfers": """
        UPDATE posting SET amount = amount - 1 WHERE account = 'transfer' AND amount > 0
    """,
    "wallet": "DELETE FROM withdrawal; DELETE FROM wallet",
}


@pytest.mark.parametrize(("what", "forgery"), FORGERIES.items(), ids=list(FORGERIES))
async def test_every_forgery_is_named(deployment: Deployment, what: str, forgery: str) -> None:
    await _busy(deployment)
    async with deployment.connected() as connection:
        for table in ("posting", "ledger_transaction", "usage_record", "correction", "audit_log"):
            await connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER append_only")
        await connection.execute(forgery)
        found = await verify(connection)
    assert any(difference.what.startswith(what) for difference in found), found


async def test_a_deleted_record_is_missed(deployment: Deployment) -> None:
    await _busy(deployment)
    async with deployment.connected() as connection:
        await connection.execute("ALTER TABLE usage_record DISABLE TRIGGER append_only")
        await connection.execute("DELETE FROM usage_record WHERE charge = 10")
        found = {difference.what for difference in await verify(connection)}
    assert {"wallet spent", "posting", "cap window spent", "hourly figures"} <= found


async def test_a_call_is_priced_again_by_the_sheet_that_priced_it(deployment: Deployment) -> None:
    acme = await deployment.active()
    steps = (Step(0, {"input": 3_000_000}),)
    override = Override("openai", Equals("small-1"), Between(None, None), steps, {})
    await deployment.pool.execute(
        "INSERT INTO price_sheet (version, sheet) VALUES ('v1', $1)",
        msgspec.msgpack.encode(Sheet(FORMAT, {}, (override,))),
    )
    for charge in (39, 40):  # 13 input tokens, cached ones at the price of input, at 3 each
        call_id = new_call_id()
        record = record_of(acme, call_id, charge=charge)
        record.price_version = "v1"
        fields = entry_fields(Line(call_id, acme, EndKind.SETTLED, charge), encode(record))
        await deployment.write(acme, [fields])
    (difference,) = await deployment.differences()
    assert difference.startswith("list price of call")
    assert difference.endswith("expected 39, found 40")
