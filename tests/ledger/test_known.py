"""Rules of what Postgres knows of a call that ended before."""

from ledger.known import known_calls, windows_of
from ledger.record import EndKind
from ledger.stream import Window
from tests.ledger.deployment import Deployment, Line, new_call_id

EARLY, LATE = Window("key-1", 0, 500), Window("key-1", 3_600_000, 500)


async def test_a_call_is_known_as_its_last_correction_left_it(deployment: Deployment) -> None:
    acme = await deployment.active()
    call, other = new_call_id(), new_call_id()
    await deployment.write(acme, [Line(call, acme, EndKind.EXPIRED, 0)])
    await deployment.write(acme, [Line(call, acme, EndKind.LOST, 40, windows=(EARLY,))])
    await deployment.write(acme, [Line(call, acme, EndKind.SETTLED, 30, windows=(LATE,))])
    await deployment.write(acme, [Line(call, acme, EndKind.SETTLED, 30, windows=(LATE,))])
    async with deployment.connected() as connection:
        known = await known_calls(connection, [call, other])
    assert set(known) == {call}
    assert (known[call].kind, known[call].charge) == ("settled", 30)
    assert [window.id for window in known[call].windows] == [LATE.id]
    assert known[call].corrections == 3
    assert known[call].figures.charge == 30
    assert await deployment.differences() == []


async def test_what_is_shown_of_a_call_is_what_its_corrections_left(
    deployment: Deployment,
) -> None:
    acme = await deployment.active()
    call, plain = new_call_id(), new_call_id()
    await deployment.write(
        acme, [Line(call, acme, EndKind.EXPIRED, 0), Line(plain, acme, EndKind.SETTLED, 5)]
    )
    await deployment.write(acme, [Line(call, acme, EndKind.SETTLED, 30, moved=False)])
    await deployment.write(acme, [Line(call, acme, EndKind.SETTLED, 30)])
    rows = await deployment.pool.fetch(
        "SELECT kind, charge, input, is_corrected FROM usage_call ORDER BY charge"
    )
    assert [tuple(row) for row in rows] == [("settled", 5, 10, False), ("settled", 30, 10, True)]


def test_windows_are_told_by_their_names() -> None:
    (window,) = windows_of(["a@cap@86400000"])
    assert (window.cap_id, window.starts_ms) == ("a@cap", 86_400_000)
    assert windows_of(None) == ()
