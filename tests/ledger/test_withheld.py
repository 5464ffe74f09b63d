"""Rules of withholding in Redis, and of giving back."""

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from ledger.admission import Held, Refused
from ledger.functions import Base, Epoch, Partition, Withheld
from tests.ledger.partitions import WALLET, call, hold, images, recovered

ID, OTHER_ID = "8a1c9a4e-0000-4000-8000-0000000000a1", "8a1c9a4e-0000-4000-8000-0000000000a2"


async def withhold(partition: Partition, amount: int, id_: str = ID) -> Held | Refused:
    return await partition.withhold(1, id_, wallet=WALLET, amount=amount)


async def test_what_is_withheld_cannot_be_held_and_what_is_held_not_withheld(
    partition: Partition,
) -> None:
    assert isinstance(await withhold(partition, 600), Held)
    assert isinstance(await partition.hold(1, hold(401)), Refused)
    assert isinstance(await partition.hold(1, hold(400)), Held)
    assert await withhold(partition, 1, OTHER_ID) == Refused("wallet", WALLET, 0, 1_000)


async def test_withholding_again_changes_nothing(partition: Partition) -> None:
    for _ in range(3):
        assert isinstance(await withhold(partition, 600), Held)
    assert (await images(partition))[WALLET].held == 600
    with pytest.raises(ValueError, match="another withdrawal"):
        await withhold(partition, 601)
    assert await partition.withheld(1) == [Withheld(ID, 1, WALLET, 600)]


async def test_the_base_and_what_is_withheld_change_in_one_step_once(partition: Partition) -> None:
    await withhold(partition, 600)
    await withhold(partition, 100, OTHER_ID)
    for answer in (True, False, False):
        base = Base(WALLET, 400, 2, "withdrawal", ended=(ID,))
        assert await partition.set_bases(1, [base]) == [answer]
        image = (await images(partition))[WALLET]
        assert (image.free, image.held, image.base) == (300, 100, 400)


async def test_an_end_without_a_newer_base_only_gives_back(partition: Partition) -> None:
    await withhold(partition, 600)
    base = Base(WALLET, 1_000, 1, "withdrawal", ended=(ID,))
    assert await partition.set_bases(1, [base]) == [False]
    image = (await images(partition))[WALLET]
    assert (image.free, image.held) == (1_000, 0)


async def test_what_was_withheld_in_another_generation_gives_nothing_back(
    partition: Partition,
) -> None:
    await withhold(partition, 600)
    await recovered(partition, 2)
    await partition.set_bases(2, [Base(WALLET, 1_000, 1, "withdrawal", ended=(ID,))])
    image = (await images(partition, 2))[WALLET]
    assert (image.free, image.held) == (1_000, 0)
    assert await partition.withheld(2) == []


async def test_an_id_of_another_generation_is_withheld_anew(partition: Partition) -> None:
    await withhold(partition, 600)
    await recovered(partition, 2)
    assert isinstance(await partition.withhold(2, ID, wallet=WALLET, amount=500), Held)
    assert await partition.withheld(2) == [Withheld(ID, 2, WALLET, 500)]


@pytest.mark.parametrize(
    ("id_", "wallet", "amount"),
    [
        ("short", WALLET, "1"),
        (ID, "", "1"),
        (ID, WALLET, "0"),
        (ID, WALLET, "-1"),
        (ID, WALLET, "x"),
    ],
)
async def test_a_flawed_withdrawal_withholds_nothing(
    partition: Partition, id_: str, wallet: str, amount: str
) -> None:
    with pytest.raises((ValueError, TypeError)):
        await partition.withhold(1, id_, wallet=wallet, amount=amount)  # type: ignore[arg-type]  # on purpose
    assert (await partition.state()).is_active()
    assert (await images(partition))[WALLET].free == 1_000


async def test_the_twelfth_key_is_asked_for(client: Redis, partition: Partition) -> None:
    with pytest.raises(ResponseError, match="12 keys"):
        await call(client, "tg_withhold", ID, WALLET, "5")
    assert (await partition.state()).is_active()


async def test_nothing_is_withheld_in_another_generation_or_state(partition: Partition) -> None:
    with pytest.raises(Epoch):
        await partition.withhold(2, ID, wallet=WALLET, amount=5)
    await partition.freeze(2)
    with pytest.raises(Epoch):
        await partition.withhold(2, ID, wallet=WALLET, amount=5)
