"""What the ends of holds, their sweeping and the bases of wallets promise, on a real server."""

import pytest
from redis.asyncio import Redis

from ledger import functions
from ledger.admission import Held, Rate, Refused, Slot
from ledger.fcall import end_arguments, hold_arguments, key_names
from ledger.functions import Base, Partition, Renewal
from ledger.record import EndKind
from tests.ledger.partitions import NUMBER, WALLET, call, cap, end_of, held, hold, images


class TestSettle:
    async def test_gives_back_the_hold_and_takes_the_charge(self, partition: Partition) -> None:
        one = await held(partition, 300, caps=(cap("c", 500),))

        ended = await partition.settle(1, end_of(one, 120))

        there = await images(partition)
        assert ended.outcome == "settled"
        assert [(i.free, i.held, i.spent) for i in there.values()] == [(880, 0, 120), (380, 0, 120)]

    async def test_logs_the_end_in_the_same_step(self, partition: Partition) -> None:
        one = await held(partition, 300, caps=(cap("c", 500),))
        ended = await partition.settle(1, end_of(one, 120))

        (entry,) = await partition.peek(1, "0", 10)

        assert entry.id == ended.stream_id
        assert entry.fields == {
            b"k": b"settled",
            b"m": b"1",
            b"i": one.call_id,
            b"w": WALLET.encode(),
            b"c": b"120",
            b"x": b"\x91\x93\xa1c\x00\xcd\x01\xf4",
            b"r": b"\xferecord",
        }

    async def test_a_charge_above_the_hold_is_taken_in_full(self, partition: Partition) -> None:
        await partition.settle(1, end_of(await held(partition, 10), 5_000))

        assert (await images(partition))[WALLET].free == -4_000

    async def test_a_second_end_is_told_where_the_first_is(self, partition: Partition) -> None:
        one = await held(partition, 300)
        first = await partition.settle(1, end_of(one, 120))

        second = await partition.settle(1, end_of(one, 250))

        assert second == functions.Ended("duplicate", first.stream_id)
        assert (await images(partition))[WALLET].spent == 120

    async def test_without_a_hold_is_unknown_and_logs_nothing(self, partition: Partition) -> None:
        assert (await partition.settle(1, end_of(hold(1), 1))).outcome == "unknown"
        assert await partition.peek(1, "0", 10) == []

    async def test_charges_the_window_of_its_end_and_frees_the_window_of_its_hold(
        self, partition: Partition
    ) -> None:
        one = await held(partition, 300, caps=(cap("c", 500),))
        later = end_of(one, 120)._replace(caps=(cap("c", 500, 0, 1),))

        await partition.settle(1, later)

        there = await images(partition)
        assert (there["c@0"].held, there["c@0"].spent) == (0, 0)
        assert (there["c@1"].free, there["c@1"].spent) == (380, 120)

    @pytest.mark.parametrize(("known", "charged"), [(70, 70), (10, 40)])
    async def test_of_a_lost_call_charges_its_progress_where_that_is_more(
        self, partition: Partition, known: int, charged: int
    ) -> None:
        one = await held(partition, 300, caps=(cap("c", 500),))
        await partition.renew(1, [Renewal(one.call_id, 60_000, known, b"so far")])

        await partition.settle(1, end_of(one, 40, EndKind.LOST))

        (entry,) = await partition.peek(1, "0", 9)
        there = await images(partition)
        assert [(i.held, i.spent) for i in there.values()] == [(0, charged)] * 2
        assert entry.fields[b"r"] == (b"so far" if charged == known else b"\xferecord")

    async def test_that_tells_no_caps_charges_those_that_were_held(
        self, partition: Partition
    ) -> None:
        one = await held(partition, 300, caps=(cap("c", 500),))

        await partition.settle(1, end_of(one, 120)._replace(caps=()))

        assert (await images(partition))["c@0"].spent == 120

    async def test_a_flawed_end_refuses_itself_and_no_other(
        self, client: Redis, partition: Partition
    ) -> None:
        one = await held(partition, 300)
        flawed = end_of(one, 5, EndKind.RELEASED)

        answers = await call(
            client, "tg_settle", *end_arguments(flawed), *end_arguments(end_of(one, 120))
        )

        assert [bytes(answer[:1]) for answer in answers] == [b"E", b"S"]

    async def test_amounts_up_to_the_largest_are_counted_exactly(
        self, client: Redis, partition: Partition
    ) -> None:
        most = 2**53 - 1
        calls = [hold(most), hold(2), hold(most)]
        await call(client, "tg_rehold", *(p for one in calls for p in hold_arguments(one)))
        assert (await images(partition))[WALLET].held == 2 * most + 2

        ends = [end_of(one, most) for one in calls]
        await call(client, "tg_settle", *(p for end in ends for p in end_arguments(end)))

        there = (await images(partition))[WALLET]
        assert (there.held, there.spent) == (0, 3 * most)


class TestLate:
    async def test_is_logged_and_moves_nothing(self, partition: Partition) -> None:
        end = end_of(hold(1, caps=(cap("c", 500),)), 120)

        logged = await partition.late(1, end)

        (entry,) = await partition.peek(1, "0", 10)
        assert (logged.outcome, logged.stream_id) == ("late", entry.id)
        assert (entry.fields[b"m"], entry.fields[b"c"]) == (b"0", b"120")
        assert (await images(partition))[WALLET].spent == 0

    async def test_is_logged_once(self, partition: Partition) -> None:
        end = end_of(hold(1), 120)
        first = await partition.late(1, end)

        assert await partition.late(1, end) == functions.Ended("duplicate", first.stream_id)
        assert await partition.settle(1, end) == functions.Ended("duplicate", first.stream_id)
        assert len(await partition.peek(1, "0", 10)) == 1

    async def test_of_a_call_that_is_open_asks_for_settle(self, partition: Partition) -> None:
        one = await held(partition, 300)

        assert (await partition.late(1, end_of(one, 1))).outcome == "open"

    async def test_of_a_lost_call_whose_hold_survived_tells_its_progress(
        self, partition: Partition
    ) -> None:
        one = await held(partition, 300, caps=(cap("c", 500),))
        await partition.renew(1, [Renewal(one.call_id, 60_000, 70, b"so far")])
        await partition.freeze(2)

        assert (await partition.late(2, end_of(one, 40, EndKind.LOST))).outcome == "late"

        (entry,) = await partition.peek(2, "0", 9)
        assert (entry.fields[b"c"], entry.fields[b"r"]) == (b"70", b"so far")

    async def test_of_a_swept_call_is_logged_beside_what_the_sweep_said(
        self, partition: Partition
    ) -> None:
        one = await held(partition, 300, lease_ms=0)
        await partition.sweep(1, 10)

        assert (await partition.settle(1, end_of(one, 120))).outcome == "unknown"
        assert (await partition.late(1, end_of(one, 120))).outcome == "late"
        assert (await partition.settle(1, end_of(one, 120))).outcome == "duplicate"
        kinds = [(e.fields[b"k"], e.fields[b"m"]) for e in await partition.peek(1, "0", 10)]
        assert kinds == [(b"expired", b"1"), (b"settled", b"0")]

    async def test_that_knows_less_than_the_end_before_is_a_duplicate(
        self, partition: Partition
    ) -> None:
        one = await held(partition, 300)
        await partition.settle(1, end_of(one, 120))

        lost = await partition.late(1, end_of(one, 80, EndKind.LOST))

        assert lost.outcome == "duplicate"


class TestRates:
    async def test_a_bucket_starts_full_and_says_when_it_has_enough(
        self, partition: Partition
    ) -> None:
        rates = (Rate("rpm:k", 6, 4),)

        assert await partition.hold(1, hold(0, rates=rates)) == Held(1, 1_000, (2,))
        refused = await partition.hold(1, hold(0, rates=rates))
        assert isinstance(refused, Refused)
        assert (refused.code, refused.scope, refused.free) == ("rate", "rpm:k", 2)
        assert 19_000 < refused.retry_after_ms <= 20_000  # two more at six a minute

    async def test_more_than_the_bucket_holds_never_passes(self, partition: Partition) -> None:
        refused = await partition.hold(1, hold(0, rates=(Rate("tpm:k", 100, 101),)))

        assert refused == Refused("rate", "tpm:k", 100, 0, 0)

    async def test_the_end_corrects_tokens_to_what_was_used(
        self, client: Redis, partition: Partition
    ) -> None:
        rates = (Rate("rpm:k", 10, 1), Rate("tpm:k", 1_000, 400))
        for used, left in ((100, 900), (1_500, -600)):
            one = hold(0, rates=rates)
            await partition.hold(1, one)
            await partition.settle(1, end_of(one, 0, tokens=used))
            assert int(float(await level(client, "tpm:k"))) in {left, left + 1}
        assert int(float(await level(client, "rpm:k"))) == 8

    async def test_a_released_call_gives_its_tokens_back(
        self, client: Redis, partition: Partition
    ) -> None:
        one = hold(0, rates=(Rate("tpm:k", 1_000, 400),))
        await partition.hold(1, one)
        await partition.settle(1, end_of(one, 0, EndKind.RELEASED))

        assert float(await level(client, "tpm:k")) == 1_000

    async def test_a_repeated_hold_takes_no_more_of_the_bucket(self, partition: Partition) -> None:
        one = hold(0, rates=(Rate("rpm:k", 10, 1),))

        assert await partition.hold(1, one) == Held(1, 1_000, (9,))
        assert await partition.hold(1, one) == Held(1, 1_000, (9,))

    async def test_a_bucket_that_is_full_again_is_forgotten(
        self, client: Redis, partition: Partition
    ) -> None:
        rates = key_names(NUMBER, 1)[8]
        now_ms = (await partition.state()).now_ms
        await client.hset(rates, "old", f"3.000|{now_ms - 60_001}")
        await client.hset(rates, "owing", f"-3.000|{now_ms - 60_001}")
        await client.hset(rates, "young", f"5.000|{now_ms}")

        await partition.sweep(1, 10)

        assert set(await client.hkeys(rates)) == {b"owing", b"young"}


class TestSweep:
    async def test_ends_what_is_overdue_and_nothing_else(self, partition: Partition) -> None:
        await held(partition, 100)
        overdue = await held(partition, 200, lease_ms=0, slots=(Slot("k", 1),))

        assert await partition.sweep(1, 10) == 1

        (entry,) = await partition.peek(1, "0", 10)
        assert entry.fields[b"i"] == overdue.call_id
        assert (entry.fields[b"k"], entry.fields[b"c"]) == (b"expired", b"0")
        assert entry.fields[b"r"] == overdue.ticket
        assert (await images(partition))[WALLET].held == 100

    async def test_charges_what_is_known_of_a_lost_call(self, partition: Partition) -> None:
        one = await held(partition, 200, lease_ms=0, caps=(cap("c", 500),))
        await partition.renew(1, [Renewal(one.call_id, 0, 70, b"\xffso far")])

        await partition.sweep(1, 10)

        (entry,) = await partition.peek(1, "0", 10)
        assert (entry.fields[b"k"], entry.fields[b"c"]) == (b"lost", b"70")
        assert entry.fields[b"r"] == b"\xffso far"
        assert [i.spent for i in (await images(partition)).values()] == [70, 70]

    async def test_keeps_what_its_adopter_knows_better_once(self, partition: Partition) -> None:
        one = await held(partition, 200, lease_ms=0)
        await partition.renew(1, [Renewal(one.call_id, 0, 10, b"so far")])
        await partition.sweep(1, 10)
        adopted = end_of(one, 50, EndKind.LOST)

        assert (await partition.settle(1, adopted)).outcome == "unknown"
        assert (await partition.late(1, adopted)).outcome == "late"

        for again in (adopted, end_of(one, 10, EndKind.LOST), end_of(one, 49, EndKind.LOST)):
            assert (await partition.settle(1, again)).outcome == "duplicate"
            assert (await partition.late(1, again)).outcome == "duplicate"
        entries = await partition.peek(1, "0", 10)
        assert [(e.fields[b"c"], e.fields[b"m"]) for e in entries] == [(b"10", b"1"), (b"50", b"0")]
        assert (await partition.late(1, end_of(one, 7))).outcome == "late", "its own end knows best"

    async def test_ends_no_more_than_it_is_told(self, partition: Partition) -> None:
        for _ in range(5):
            await held(partition, 1, lease_ms=0)

        assert [await partition.sweep(1, 3), await partition.sweep(1, 3)] == [3, 2]


class TestRenew:
    async def test_a_renewed_call_is_not_swept(self, partition: Partition) -> None:
        one = await held(partition, 100, lease_ms=0)

        assert await partition.renew(1, [Renewal(one.call_id), Renewal(b"?" * 16)]) == [True, False]
        assert await partition.sweep(1, 10) == 0

    async def test_a_deadline_never_moves_back(self, partition: Partition) -> None:
        one = await held(partition, 100)
        await partition.renew(1, [Renewal(one.call_id, 0)])

        assert await partition.sweep(1, 10) == 0


class TestAck:
    async def test_forgets_ended_calls_and_keeps_open_ones(self, partition: Partition) -> None:
        ended, open_one = await held(partition, 1), await held(partition, 2)
        await partition.settle(1, end_of(ended, 1))

        assert await partition.ack(1, [ended.call_id, open_one.call_id, b"?" * 16]) == 1

        assert (await partition.settle(1, end_of(ended, 1))).outcome == "unknown"
        assert (await partition.settle(1, end_of(open_one, 1))).outcome == "settled"


class TestSetBase:
    async def test_moves_free_by_the_difference(self, partition: Partition) -> None:
        await held(partition, 300)

        taken = await partition.set_base(1, WALLET, base=10**18, version=2, cause="grant")

        assert taken
        assert (await images(partition))[WALLET].free == 10**18 - 300
        assert (await partition.state()).version == 2

    @pytest.mark.parametrize("version", [0, 1])
    async def test_a_version_that_is_not_newer_changes_nothing(
        self, partition: Partition, version: int
    ) -> None:
        taken = await partition.set_base(1, WALLET, base=5, version=version, cause="grant")

        assert not taken
        assert (await images(partition))[WALLET].base == 1_000
        assert await partition.peek(1, "0", 10) == []

    async def test_makes_a_wallet_that_is_missing(self, partition: Partition) -> None:
        await partition.set_base(1, "new", base=50, version=1, cause="grant", spent=20)

        assert (await images(partition))["new"].free == 30

    async def test_logs_what_it_was_told(self, partition: Partition) -> None:
        await partition.set_base(1, WALLET, base=-5, version=7, cause="refund")

        (entry,) = await partition.peek(1, "0", 10)
        assert entry.fields == {
            b"k": b"base",
            b"w": WALLET.encode(),
            b"b": b"-5",
            b"v": b"7",
            b"a": b"refund",
        }

    async def test_lowers_a_window_that_calls_have_made(self, partition: Partition) -> None:
        await held(partition, 300, caps=(cap("c", 500),))

        await partition.set_bases(1, [Base("c@0", 450, 1, "late"), Base("c@0", 450, 1, "late")])

        assert (await images(partition))["c@0"].free == 150

    @pytest.mark.parametrize("base", [2**63, -(2**63)])
    async def test_what_is_no_64_bit_integer_is_an_error(
        self, partition: Partition, base: int
    ) -> None:
        with pytest.raises(ValueError, match="not a base"):
            await partition.set_base(1, WALLET, base=base, version=2, cause="grant")
        assert (await partition.state()).is_active()


class TestForget:
    async def test_drops_windows_in_which_nothing_is_held(self, partition: Partition) -> None:
        one = await held(partition, 1, caps=(cap("a", 5), cap("b", 5)))
        await held(partition, 1, caps=(cap("b", 5),))
        await partition.settle(1, end_of(one, 1))

        assert await partition.forget(1, ["a@0", "b@0", WALLET]) == 1
        assert set(await images(partition)) == {"b@0", WALLET}


async def level(client: Redis, rate: str) -> str:
    stored = await client.hget(key_names(NUMBER, 1)[8], rate)
    assert isinstance(stored, bytes)
    return stored.decode().partition("|")[0]
