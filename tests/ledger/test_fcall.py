"""Arguments and answers, and a client that obeys."""

import asyncio
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.exceptions import RedisError

from ledger.admission import Cap, End, Held, Hold, Rate, Refused, Slot
from ledger.fcall import (
    Ended,
    Epoch,
    PartitionState,
    Renewal,
    end_answer,
    end_arguments,
    heard,
    highest_place,
    hold_answer,
    hold_arguments,
    key_names,
    refusal,
    renewal_arguments,
    state_answer,
)
from ledger.money import Nanos
from ledger.record import EndKind
from tests.ledger.own_valkey import OwnValkey

CAPS = (Cap("c", Nanos(9), (1, 2)),)
decode = msgspec.msgpack.decode


def test_all_keys_of_a_partition_share_its_hash_tag() -> None:
    names = key_names(7, 3)

    assert {name[: len("tg:{p07}:")] for name in names} == {"tg:{p07}:"}
    assert names[-1] == "tg:{p07}:log:3"
    assert len(set(names)) == 11


def test_a_hold_goes_as_id_head_and_ticket() -> None:
    hold = Hold(b"i" * 16, 7, "w", Nanos(5), CAPS, (Rate("r", 6, 1),), (Slot("s", 2),), 60, b"\xff")

    call_id, head, ticket = hold_arguments(hold)

    assert (call_id, ticket) == (b"i" * 16, b"\xff")
    assert decode(head) == [7, "w", 5, [["c", 9, [1, 2]]], [["r", 6, 1]], [["s", 2]], 60]


def test_an_end_goes_as_id_head_and_record() -> None:
    end = End(b"i" * 16, 7, "w", EndKind.LOST, Nanos(5), b"\xff", CAPS, tokens=3)

    call_id, head, record = end_arguments(end)

    assert (call_id, record) == (b"i" * 16, b"\xff")
    assert decode(head) == [7, "w", "lost", 5, [["c", 9, [1, 2]]], 3]


def test_a_renewal_goes_as_id_head_and_record() -> None:
    call_id, head, record = renewal_arguments(Renewal(b"i" * 16, 60, 5, b"\xff"))

    assert (call_id, decode(head), record) == (b"i" * 16, [60, 5], b"\xff")


def test_answers_to_a_hold_are_told_apart() -> None:
    assert hold_answer([1, 70, 5, 6], 3) == Held(3, 70, (5, 6))
    assert hold_answer([0, b"cap", b"c", 1, 2, 3], 3) == Refused("cap", "c", 1, 2, 3)
    with pytest.raises(ValueError, match="amount"):
        hold_answer([-1, b"amount"], 3)


@pytest.mark.parametrize(
    ("answer", "ended"),
    [
        (b"S1-0", Ended("settled", "1-0")),
        (b"L1-0", Ended("late", "1-0")),
        (b"D1-0", Ended("duplicate", "1-0")),
        (b"U", Ended("unknown")),
        (b"O", Ended("open")),
    ],
)
def test_answers_to_an_end_are_told_apart(answer: bytes, ended: Ended) -> None:
    assert end_answer(answer) == ended


def test_a_flawed_end_is_an_error() -> None:
    with pytest.raises(ValueError, match="kind"):
        end_answer(b"Ekind")


def test_a_partition_is_active_only_with_its_fence_closed() -> None:
    state = state_answer([b"3", b"9", b"A", b"4", b"us", 1, 77])

    assert state == PartitionState(3, True, "A", 4, "us", 77)
    assert state.is_active()
    assert not state._replace(sequence_matches=False).is_active()
    assert not state._replace(state="R").is_active()


@pytest.mark.parametrize(
    ("message", "seen"),
    [
        ("EPOCH 4 R", (4, "R")),
        ("EPOCH 0 -", (0, "")),
        ("STATE 4 R", (4, "R")),
        ("ERR Function not found", (0, "")),
        ("Function not found", (0, "")),
    ],
)
def test_refusals_of_the_fence_say_what_is_there(message: str, seen: tuple[int, str]) -> None:
    refused = refusal(message, 7)

    assert isinstance(refused, Epoch)
    assert (refused.generation, refused.state) == seen


def test_other_errors_are_the_callers_or_the_servers() -> None:
    assert isinstance(refusal("ARGS a limit", 7), ValueError)
    assert refusal("OOM command not allowed", 7) is None


@given(st.integers(0, 20), st.lists(st.booleans(), min_size=1, max_size=6), st.randoms())
def test_the_highest_place_is_that_of_the_newest_end_or_of_any_logged_before(
    first: int, news: list[bool], random: Random
) -> None:
    """As Redis answers: what is new gets the next id, what was logged has any lower one."""
    answers, places, at = [], [], 98 + first
    for is_new in news:
        at += is_new
        place = at if is_new else random.randint(0, at)
        places.append(place)
        answers.append(b"%b%d-0" % (random.choice([b"S", b"L"]) if is_new else b"D", place))
    assert highest_place(answers) == f"{max(places)}-0"


async def test_a_server_that_says_nothing_more_is_given_up(server: OwnValkey) -> None:
    redis = Redis.from_url(server.url)
    async with redis, redis.pubsub(ignore_subscribe_messages=True) as subscription:
        await subscription.subscribe("news")
        first = asyncio.ensure_future(anext(heard(subscription)))
        server.pause()

        with pytest.raises(RedisError):
            async with asyncio.timeout(10):
                await first
        server.resume()


async def test_what_a_channel_brings_is_heard_after_a_silence(redis_url: str) -> None:
    redis = Redis.from_url(redis_url)
    async with redis, redis.pubsub(ignore_subscribe_messages=True) as subscription:
        await subscription.subscribe("news")
        listener = heard(subscription)
        first = asyncio.ensure_future(anext(listener))
        await asyncio.sleep(1.2)  # longer than one look
        await redis.publish("news", b"there is some")

        assert (await first)["data"] == b"there is some"
