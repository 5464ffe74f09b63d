"""What a recovery promises step by step, on a real server."""

import pytest

from ledger.admission import Refused, Slot
from ledger.functions import Epoch, Partition, WalletState
from tests.ledger.partitions import WALLET, cap, end_of, held, hold, images


class TestRecovery:
    async def test_takes_only_a_generation_above_every_one_seen(self, partition: Partition) -> None:
        await partition.freeze(5)

        for generation in (4, 5):
            with pytest.raises(Epoch) as refused:
                await partition.freeze(generation)
            assert refused.value.generation == 5

    async def test_of_another_deployments_data_is_refused(self, partition: Partition) -> None:
        await partition.freeze(2, install="ours")

        with pytest.raises(ValueError, match="deployment ours"):
            await partition.freeze(3, install="theirs")
        assert (await partition.state()).install == "ours"

    async def test_admits_nothing_until_it_is_over(self, partition: Partition) -> None:
        one = await held(partition, 5)
        await partition.freeze(2)

        for refused in (
            partition.hold(2, hold(1)),
            partition.settle(2, end_of(one, 1)),
            partition.set_base(2, WALLET, base=1, version=9, cause="grant"),
            partition.sweep(2, 1),
        ):
            with pytest.raises(Epoch):
                await refused

    async def test_keeps_holds_and_counts_them_once_it_is_over(self, partition: Partition) -> None:
        one = await held(partition, 300, caps=(cap("c", 500),), slots=(Slot("k", 1),))

        await partition.freeze(2)
        assert [there.call_id for there in await partition.open_holds(2)] == [one.call_id]
        await partition.load(2, [WalletState(WALLET, 10**18, 10**18 - 800, 4)])
        assert await partition.activate(2, 4) == 1

        there = await images(partition, 2)
        assert (there[WALLET].free, there[WALLET].held, there["c@0"].free) == (500, 300, 200)
        assert await partition.hold(2, hold(0, slots=(Slot("k", 1),))) == Refused(
            "slots", "k", held=1
        )
        assert (await partition.state()).version == 4

    async def test_holds_again_what_was_under_way_without_asking(
        self, partition: Partition
    ) -> None:
        await partition.freeze(2)
        one = hold(5_000, caps=(cap("c", 500),), slots=(Slot("k", 1),))
        assert [await partition.rehold(2, one) for _ in range(2)] == [True, True]
        await partition.load(2, [WalletState(WALLET, 1_000, 0, 1)])
        await partition.activate(2, 1)
        late_one = hold(7, slots=(Slot("k", 1),))
        assert await partition.rehold(2, late_one)
        refused = await partition.hold(2, hold(0, slots=(Slot("k", 2),)))

        there = await images(partition, 2)

        assert (there[WALLET].free, there[WALLET].held) == (-4_007, 5_007)
        assert there["c@0"].free == -4_500
        assert refused == Refused("slots", "k", held=2)

    async def test_an_end_that_comes_meanwhile_ends_the_hold_that_survived(
        self, partition: Partition
    ) -> None:
        one = await held(partition, 300)
        await partition.freeze(2)

        assert (await partition.late(2, end_of(one, 120))).outcome == "late"
        assert not await partition.rehold(2, one)
        await partition.load(2, [WalletState(WALLET, 1_000, 0, 1)])
        assert await partition.activate(2, 1) == 0

    async def test_what_ended_calls_owe_counts_before_they_are_told_and_once(
        self, partition: Partition
    ) -> None:
        caps = (cap("c", 500),)
        owed = hold(300, caps=caps, call_id=b"owed in this one")
        ends = [end_of(hold(1, caps=caps), charge) for charge in (120, 180)]
        await partition.freeze(2)
        assert [await partition.owe(2, owed) for _ in range(2)] == [True, True]
        await partition.load(2, [WalletState(WALLET, 1_000, 0, 1)])
        assert await partition.activate(2, 1) == 0

        frees = []
        for end in (*ends, ends[0]):
            there = await images(partition, 2)
            frees.append((there[WALLET].free, there["c@0"].free, there[WALLET].held))
            await partition.late(2, end, owed=owed.call_id)
        assert frees == [(700, 200, 300), (700, 200, 180), (700, 200, 0)]
        entries = await partition.peek(2, "0", 9)
        assert [(e.fields[b"m"], e.fields[b"c"]) for e in entries] == [
            (b"1", b"120"),
            (b"1", b"180"),
        ]
        assert await partition.acquit(2, owed.call_id) == 1
        assert (await images(partition, 2))[WALLET].free == 700
        assert await partition.open_holds(2) == []

    async def test_what_is_owed_and_not_told_is_given_back_and_leaves_no_entry(
        self, partition: Partition
    ) -> None:
        acquitted, lapsed = hold(300), hold(200, lease_ms=0)
        for owed in (acquitted, lapsed):
            assert await partition.owe(1, owed)
        assert (await images(partition))[WALLET].free == 500

        assert [await partition.acquit(1, acquitted.call_id) for _ in range(2)] == [1, 0]
        assert await partition.sweep(1, 9) == 1

        assert (await images(partition))[WALLET].free == 1_000
        assert await partition.peek(1, "0", 9) == []

    async def test_what_is_owed_counts_in_one_generation_only(self, partition: Partition) -> None:
        one, other = hold(300, call_id=b"owed in this one"), end_of(hold(1), 120)
        assert await partition.owe(1, one)
        await partition.freeze(2)
        await partition.load(2, [WalletState(WALLET, 1_000, 0, 1)])
        assert await partition.activate(2, 1) == 0

        await partition.late(2, other, owed=one.call_id)

        assert (await images(partition, 2))[WALLET].free == 1_000, "Postgres decides"
        with pytest.raises(Epoch):
            await partition.owe(1, one)
        with pytest.raises(ValueError, match="sum"):
            await partition.owe(2, hold(1, partition=9))

    async def test_it_keeps_how_far_postgres_was(self, partition: Partition) -> None:
        assert await partition.proven_before() is None
        await partition.freeze(2, proven=(1, "17-3"))
        assert await partition.proven_before() == (1, "17-3")

    async def test_what_an_older_generation_logged_is_not_a_duplicate(
        self, partition: Partition
    ) -> None:
        one = await held(partition, 300)
        await partition.settle(1, end_of(one, 120))
        await partition.freeze(2)

        assert (await partition.late(2, end_of(one, 120))).outcome == "late"
        assert len(await partition.peek(1, "0", 9)) == 1

    async def test_a_hold_whose_wallet_is_gone_expires(self, partition: Partition) -> None:
        await held(partition, 300)
        await partition.freeze(2)

        assert await partition.activate(2, 1) == 0
        (entry,) = await partition.peek(2, "0", 9)
        assert entry.fields[b"k"] == b"expired"

    async def test_a_load_after_the_next_freeze_is_refused(self, partition: Partition) -> None:
        await partition.freeze(2)
        await partition.freeze(3)

        with pytest.raises(Epoch):
            await partition.load(2, [WalletState(WALLET, 1_000, 0, 1)])
        with pytest.raises(Epoch):
            await partition.activate(2, 1)

    async def test_loading_and_activating_may_be_repeated(self, partition: Partition) -> None:
        await held(partition, 300)
        await partition.freeze(2)
        for _ in range(2):
            await partition.load(2, [WalletState(WALLET, 1_200, 200, 1)])
        for _ in range(2):
            assert await partition.activate(2, 1) == 1

        there = (await images(partition, 2))[WALLET]
        assert (there.base, there.spent, there.held, there.free) == (1_200, 200, 300, 700)

    async def test_a_flawed_load_loads_nothing(self, partition: Partition) -> None:
        await partition.freeze(2)

        with pytest.raises(ValueError, match="wallet"):
            await partition.load(
                2, [WalletState(WALLET, 1, 0, 1), WalletState("other", 2**70, 0, 1)]
            )
        assert await images(partition, 2) == {}
