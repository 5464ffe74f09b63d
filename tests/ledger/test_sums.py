"""Rules of what a batch adds up in the tables."""

from ledger.record import EndKind
from ledger.stream import Window
from tests.ledger.deployment import Deployment, Line, new_call_id

WINDOW = Window("key-1", 0, 500)


async def test_a_window_begins_with_its_limit_and_keeps_the_first_one(
    deployment: Deployment,
) -> None:
    acme = await deployment.active()
    raised = WINDOW._replace(limit=900)
    await deployment.write(
        acme,
        [
            Line(new_call_id(), acme, EndKind.SETTLED, 10, windows=(WINDOW,)),
            Line(new_call_id(), acme, EndKind.SETTLED, 10, windows=(raised,)),
            Line(new_call_id(), acme, EndKind.SETTLED, 5, moved=False, windows=(WINDOW,)),
        ],
    )
    row = await deployment.pool.fetchrow("SELECT cap_limit, base, spent, version FROM cap_window")
    assert row is not None
    assert (row["cap_limit"], row["base"], row["spent"]) == (500, 495, 20)
    assert row["version"] == await deployment.pool.fetchval("SELECT max(version) FROM part")


async def test_the_hourly_figures_follow_corrections(deployment: Deployment) -> None:
    acme = await deployment.active()
    call = new_call_id()
    await deployment.write(acme, [Line(call, acme, EndKind.LOST, 40)])
    await deployment.write(acme, [Line(call, acme, EndKind.SETTLED, 30, moved=False)])
    rows = await deployment.pool.fetch("SELECT calls, estimated, charge, input FROM usage_hourly")
    assert [tuple(row) for row in rows] == [(1, 0, 30, 10)]


async def test_a_batch_posts_one_line_for_each_wallet_and_one_for_revenue(
    deployment: Deployment,
) -> None:
    acme = await deployment.active()
    await deployment.write(
        acme, [Line(new_call_id(), acme, EndKind.SETTLED, 10) for _ in range(50)]
    )
    rows = await deployment.pool.fetch(
        "SELECT account, amount FROM posting JOIN ledger_transaction USING (partition, number)"
        " WHERE kind = 'flush' ORDER BY amount"
    )
    assert [tuple(row) for row in rows] == [(acme.id, -500), ("revenue", 500)]


async def test_the_number_of_statements_does_not_grow_with_the_batch(
    deployment: Deployment,
) -> None:
    acme = await deployment.active()

    async def transactions() -> int:
        return await deployment.count("ledger_transaction")

    before = await transactions()
    await deployment.write(
        acme, [Line(new_call_id(), acme, EndKind.SETTLED, 1) for _ in range(500)]
    )
    assert await transactions() == before + 1
    assert await deployment.count("usage_hourly") == 1
