"""What loading, holding, extending and reading promise, on a real server."""

from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from ledger import functions
from ledger.admission import Held, Rate, Refused, Slot
from ledger.fcall import execute, hold_arguments
from ledger.functions import Base, Partition, install
from tests.ledger.partitions import (
    FAR_MS,
    WALLET,
    call,
    cap,
    end_of,
    held,
    hold,
    images,
    total,
)

LIBRARY = (Path(functions.__file__).parent / "lua" / "tollgate.lua").read_text()


class TestHold:
    async def test_takes_the_amount_from_free(self, partition: Partition) -> None:
        answer = await partition.hold(1, hold(300))

        assert answer == Held(1, 700)
        assert (await images(partition))[WALLET].held == 300

    async def test_is_answered_again_and_held_once(self, partition: Partition) -> None:
        asked = hold(300)

        assert await partition.hold(1, asked) == await partition.hold(1, asked)
        assert (await images(partition))[WALLET].held == 300

    async def test_of_more_than_is_free_says_what_is_free_and_held(
        self, partition: Partition
    ) -> None:
        await partition.hold(1, hold(300))

        assert await partition.hold(1, hold(701)) == Refused("wallet", WALLET, 700, 300)

    async def test_of_all_that_is_free_is_admitted(self, partition: Partition) -> None:
        assert await partition.hold(1, hold(1_000)) == Held(1, 0)

    async def test_of_nothing_is_admitted_below_zero(self, partition: Partition) -> None:
        await partition.settle(1, end_of(await held(partition, 10), 5_000))

        assert await partition.hold(1, hold(0, caps=(cap("c", 0),))) == Held(1, -4_000)
        assert isinstance(await partition.hold(1, hold(1)), Refused)

    async def test_of_an_unknown_wallet_is_told_apart(self, partition: Partition) -> None:
        assert await partition.hold(1, hold(0, wallet="new")) == Refused("no_wallet", "new")

    async def test_that_one_cap_refuses_changes_nothing(self, partition: Partition) -> None:
        asked = hold(
            100,
            caps=(cap("wide", 900), cap("narrow", 99)),
            rates=(Rate("rpm:k", 10, 1),),
            slots=(Slot("k", 1),),
        )

        refused = await partition.hold(1, asked)

        assert isinstance(refused, Refused)
        assert refused[:4] == ("cap", "narrow", 99, 0)
        assert 0 < refused.retry_after_ms < FAR_MS  # its window ends
        assert list(await images(partition)) == [WALLET]
        assert (await partition.hold(1, asked._replace(caps=()))) == Held(1, 900, (9,))

    async def test_a_scope_that_cannot_pay_at_all_is_named_before_one_that_waits(
        self, partition: Partition
    ) -> None:
        await partition.hold(1, hold(990))  # the wallet has 10 free, and 990 may come back

        answer = await partition.hold(1, hold(100, caps=(cap("spent", 50),)))

        assert isinstance(answer, Refused)
        assert (answer.code, answer.scope, answer.free) == ("cap", "spent", 50)

    async def test_is_counted_in_the_window_that_the_servers_clock_is_in(
        self, partition: Partition
    ) -> None:
        await partition.hold(1, hold(10, caps=(cap("c", 50, 0, 1, FAR_MS),)))

        assert (await images(partition))["c@1"].held == 10

    async def test_a_cap_that_has_not_begun_counts_in_its_first_window(
        self, partition: Partition
    ) -> None:
        await partition.hold(1, hold(10, caps=(cap("c", 50, FAR_MS, FAR_MS + 1),)))

        assert (await images(partition))[f"c@{FAR_MS}"].held == 10

    async def test_takes_a_slot_until_its_end(self, partition: Partition) -> None:
        slots = (Slot("k", 1),)
        first = hold(0, slots=slots)
        await partition.hold(1, first)

        assert await partition.hold(1, hold(0, slots=slots)) == Refused("slots", "k", held=1)
        await partition.settle(1, end_of(first, 0))
        assert isinstance(await partition.hold(1, hold(0, slots=slots)), Held)

    async def test_with_an_id_that_was_used_is_an_error(self, partition: Partition) -> None:
        used = await held(partition, 1)
        await partition.settle(1, end_of(used, 1))

        with pytest.raises(ValueError, match="ended"):
            await partition.hold(1, used)

    async def test_a_flawed_item_refuses_itself_and_no_other(
        self, client: Redis, partition: Partition
    ) -> None:
        good = hold(10)
        flawed = [
            hold(-1),
            hold(2**53),
            hold(1, partition=8),
            hold(1, wallet=""),
            hold(1, caps=(cap("c", 5), cap("c", 5))),
            hold(1, caps=(cap("c", -5),)),
            hold(1, rates=(Rate("", 1, 1),)),
            hold(1, slots=(Slot("k", -1),)),
            hold(1, call_id=b"short"),
        ]
        items = [part for asked in (*flawed, good) for part in hold_arguments(asked)]
        items[1] = b"\xc1"  # no msgpack at all

        answers = await call(client, "tg_hold", *items)

        assert [answer[0] for answer in answers] == [-1] * len(flawed) + [1]
        assert (await images(partition))[WALLET].held == 10

    async def test_many_of_one_call_are_judged_one_after_the_other(
        self, client: Redis, partition: Partition
    ) -> None:
        caps = (cap("c", 700),)
        items = [part for _ in range(12) for part in hold_arguments(hold(100, caps=caps))]

        answers = await call(client, "tg_hold", *items)

        assert [answer[0] for answer in answers] == [1] * 7 + [0] * 5
        assert {w: i.free for w, i in (await images(partition)).items()} == {WALLET: 300, "c@0": 0}

    async def test_the_same_id_twice_in_one_call_is_held_once(
        self, client: Redis, partition: Partition
    ) -> None:
        await call(client, "tg_hold", *hold_arguments(one := hold(100)), *hold_arguments(one))

        assert (await images(partition))[WALLET].held == 100

    async def test_is_refused_when_memory_is_full_and_its_end_is_not(
        self, client: Redis, partition: Partition
    ) -> None:
        open_one = await held(partition, 100)
        await client.config_set("maxmemory", "1")
        try:
            with pytest.raises(ResponseError, match="memory"):
                await partition.hold(1, hold(1))
            ended = await partition.settle(1, end_of(open_one, 5))
        finally:
            await client.config_set("maxmemory", "0")

        assert ended.outcome == "settled"


class TestExtend:
    async def test_raises_the_hold_to_a_total(self, partition: Partition) -> None:
        one = await held(partition, 100, caps=(cap("c", 500),))

        for _ in range(2):
            assert await partition.extend(1, total(one, 400)) == Held(1, 600)
        assert (await images(partition))["c@0"].held == 400

    async def test_beyond_what_is_free_changes_nothing(self, partition: Partition) -> None:
        one = await held(partition, 100, caps=(cap("c", 500),))

        answer = await partition.extend(1, total(one, 501))

        assert isinstance(answer, Refused)
        assert (answer.code, answer.free) == ("cap", 400)
        assert (await images(partition))[WALLET].held == 100

    async def test_never_lowers_a_hold(self, partition: Partition) -> None:
        one = await held(partition, 100)

        assert await partition.extend(1, total(one, 1)) == Held(1, 900)

    async def test_without_a_hold_is_told(self, partition: Partition) -> None:
        assert await partition.extend(1, hold(5)) == Refused("no_hold", WALLET)


class TestReading:
    async def test_snap_leaves_out_what_is_missing(self, partition: Partition) -> None:
        image = await partition.snap(1, [WALLET, "nobody's"])

        assert [there.wallet for there in image.wallets] == [WALLET]
        assert (image.last_id, image.cursor) == ("0-0", "0")

    async def test_an_image_names_the_last_entry_even_when_it_was_trimmed(
        self, partition: Partition
    ) -> None:
        ended = await partition.settle(1, end_of(await held(partition, 5), 5))
        await partition.trim(1, "9999999999999-0")

        assert (await partition.snap(1, [])).last_id == ended.stream_id

    async def test_scan_comes_by_every_wallet(self, partition: Partition) -> None:
        bases = [Base(f"wallet-{n}", n, 1, "grant") for n in range(600)]
        await partition.set_bases(1, bases)
        seen, cursor = set[str](), "0"
        while True:
            image = await partition.scan(1, cursor=cursor, count=50)
            seen |= {there.wallet for there in image.wallets}
            cursor = image.cursor
            if cursor == "0":
                break

        assert seen == {WALLET, *(base.wallet for base in bases)}

    async def test_peek_goes_on_after_an_id(self, partition: Partition) -> None:
        ids = [
            (await partition.settle(1, end_of(await held(partition, 1), 1))).stream_id
            for _ in range(3)
        ]

        assert [entry.id for entry in await partition.peek(1, ids[0], 1)] == [ids[1]]
        assert await partition.peek(9, "0", 1) == []

    async def test_an_open_hold_is_told_whole(self, partition: Partition) -> None:
        one = await held(partition, 5, caps=(cap("c", 50, 0, 1, FAR_MS),))

        (told,) = await partition.open_holds(1)

        assert told[::2] == (one.call_id, WALLET, (("c", 1, 50),))
        assert (told.amount, told.ticket) == (5, one.ticket)

    async def test_a_log_is_measured_and_dropped(self, partition: Partition) -> None:
        await partition.late(1, end_of(hold(1), 1))
        assert (await partition.log_length(1), await partition.log_bytes(1) > 0) == (1, True)

        await partition.drop_log(1)

        assert (await partition.log_length(1), await partition.log_bytes(1)) == (0, 0)


class TestKeyCache:
    """The functions; who uses them is the gateway's."""

    async def test_an_older_fill_does_not_bring_a_key_back(self, client: Redis) -> None:
        await install(client)
        name = "tg:key:00ff"

        async def put(version: int) -> int:
            return int(await execute(client, "FCALL", "tg_key_put", 1, name, version, b"k", 9_000))

        assert [await put(2), await put(1), await put(2)] == [1, 0, 1]
        assert await execute(client, "FCALL", "tg_key_drop", 1, name, 1, 9_000) == 0
        assert await execute(client, "FCALL", "tg_key_drop", 1, name, 2, 9_000) == 1
        assert await put(2) == 0
        assert await client.get(name) == b"2|"
