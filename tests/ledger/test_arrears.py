"""What ended calls owe is held as few sums, each end's charge in one of them and once."""

from typing import Any

from ledger.admission import End
from ledger.arrears import Arrears
from ledger.fcall import Renewal
from ledger.money import Nanos
from tests.ledger.partitions import NUMBER, cap, end_of, hold

CAPS = (cap("key", 500),)


def ended(charge: int, **given: Any) -> End:
    return end_of(hold(1), charge)._replace(**given)


def begun(*held_again: bytes) -> Arrears:
    arrears = Arrears(NUMBER, "gateway", lease_ms=4_000)
    arrears.begin(4, held_again)
    return arrears


def owe(arrears: Arrears, *ends: End, queued: tuple[End, ...] = ()) -> list[bytes]:
    """As journals tell it: first what ends charge, then the ends."""
    owing = arrears.owing(queued)
    for end in ends:
        owing.add(end)
    ids = arrears.owe(owing)
    for end in (*queued, *ends):
        arrears.keep(end)
    return ids


def test_ends_of_one_wallet_and_the_same_caps_are_one_sum() -> None:
    arrears = begun()
    ends = [ended(3), ended(4), ended(50, caps=CAPS), ended(600, wallet="other"), ended(0)]

    ids = owe(arrears, *ends)

    sums = {(one.wallet, one.caps): one.amount for one in arrears.sums}
    wallet = ends[0].wallet
    assert sums == {(wallet, ()): 7, (wallet, CAPS): 50, ("other", ()): 600}
    assert ids == [one.call_id for one in arrears.sums]
    assert {len(one) for one in ids} == {16}


def test_a_call_that_is_held_again_or_waits_already_owes_nothing_more() -> None:
    held_again, known, other = ended(5), ended(6), ended(30)
    arrears = begun(held_again.call_id)

    owe(arrears, held_again, known, other, queued=(known, held_again, known))

    assert [one.amount for one in arrears.sums] == [36]
    assert [arrears.keep(one) for one in (held_again, known)] == [True, False]


def test_what_is_left_is_given_back_when_the_last_end_is_told_and_not_before() -> None:
    arrears, ends = begun(), [ended(5), ended(6)]
    (owed,) = owe(arrears, *ends)
    assert arrears.acquittal() == ()
    arrears.sums.clear()  # held
    arrears.told(ends[:1])
    assert arrears.acquittal() == ()
    arrears.told(ends[1:])
    assert arrears.acquittal() == (), "more may come"
    arrears.all_there()
    assert arrears.acquittal()[-2:] == (4, owed)
    arrears.acquitted()
    assert arrears.acquittal() == ()


def test_while_anything_is_untold_the_sums_are_renewed() -> None:
    arrears, end = begun(), ended(5)
    (owed,) = owe(arrears, end)
    assert arrears.renewals() == [Renewal(owed, 4_000)]

    arrears.sums.clear()  # held
    arrears.told([end])
    arrears.acquitted()

    assert arrears.renewals() == []


def test_a_new_generation_owes_anew_under_other_ids() -> None:
    arrears, end = begun(), ended(5)
    before = owe(arrears, end)
    arrears.begin(5, [])

    after = owe(arrears, end)

    assert len(arrears.sums) == 1
    assert before != after
    assert arrears.sums[0].amount == Nanos(5)
