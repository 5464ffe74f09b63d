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


def test_ends_of_one_wallet_and_the_same_caps_are_one_sum() -> None:
    arrears = begun()
    ends = [ended(3), ended(4), ended(50, caps=CAPS), ended(600, wallet="other"), ended(0)]

    ids = arrears.owe(ends)

    sums = {(one.wallet, one.caps): one.amount for one in arrears.sums}
    wallet = ends[0].wallet
    assert sums == {(wallet, ()): 7, (wallet, CAPS): 50, ("other", ()): 600}
    assert ids == [one.call_id for one in arrears.sums]
    assert {len(one) for one in ids} == {16}


def test_a_call_that_is_held_again_or_known_already_owes_nothing_more() -> None:
    held_again, known = ended(5), ended(6)
    arrears = begun(held_again.call_id)
    arrears.owe([known])

    assert arrears.owe([held_again, known]) == []
    assert [one.amount for one in arrears.sums] == [6]


def test_what_is_left_is_given_back_when_the_last_end_is_told_and_not_before() -> None:
    arrears, ends = begun(), [ended(5), ended(6)]
    (owed,) = arrears.owe(ends)
    assert arrears.acquittal() == ()
    arrears.sums.clear()  # held
    arrears.told(ends[:1])
    assert arrears.acquittal() == ()
    arrears.told(ends[1:])
    assert arrears.acquittal()[-2:] == (4, owed)
    arrears.acquitted()
    assert arrears.acquittal() == ()


def test_while_anything_is_untold_the_sums_are_renewed() -> None:
    arrears, end = begun(), ended(5)
    (owed,) = arrears.owe([end])
    assert arrears.renewals() == [Renewal(owed, 4_000)]

    arrears.sums.clear()  # held
    arrears.told([end])
    arrears.acquitted()

    assert arrears.renewals() == []


def test_a_new_generation_owes_anew_under_other_ids() -> None:
    arrears, end = begun(), ended(5)
    before = arrears.owe([end])
    arrears.begin(5, [])

    after = arrears.owe([end])

    assert len(arrears.sums) == 1
    assert before != after
    assert arrears.sums[0].amount == Nanos(5)
