"""However many processes race, exactly what there is is admitted."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from redis.asyncio import Redis

from ledger.admission import Rate, Slot
from ledger.functions import Partition, WalletImage
from tests.ledger.partitions import NUMBER, WALLET, cap, images, ready
from tests.ledger.racing import Race, Try, run
from tests.scenarios.scale import LONG

PROCESSES = 4
TRIES = 25_000 if LONG else 5_000  # of each process


@pytest.fixture(scope="module")
def racers() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        yield pool


def prepare(url: str, base: int) -> None:
    """A wallet with this much."""

    async def make() -> None:
        client = Redis.from_url(url)
        await ready(client, base=base)
        await client.aclose()

    asyncio.run(make())


def raced(pool: ProcessPoolExecutor, race: Race) -> list[Try]:
    """Every try of every process."""
    races = [race._replace(seed=seed) for seed in range(PROCESSES)]
    return [one for made in pool.map(run, races) for one in made]


def wallets(url: str) -> dict[str, WalletImage]:
    """What is left."""

    async def look() -> dict[str, WalletImage]:
        client = Redis.from_url(url)
        there = await images(Partition(client, NUMBER))
        await client.aclose()
        return there

    return asyncio.run(look())


def held(tries: list[Try]) -> list[int]:
    return [one.amount for one in tries if one.is_held]


def test_of_equal_calls_exactly_as_many_are_admitted_as_the_wallet_pays(
    redis_url: str, racers: ProcessPoolExecutor
) -> None:
    prepare(redis_url, base=1_234 * 7 + 6)

    tries = raced(racers, Race(redis_url, 0, TRIES, (7,)))

    assert len(tries) == PROCESSES * TRIES
    assert len(held(tries)) == 1_234
    assert wallets(redis_url)[WALLET].free == 6


def test_with_two_caps_the_tighter_one_decides(redis_url: str, racers: ProcessPoolExecutor) -> None:
    prepare(redis_url, base=10**9)
    caps = (cap("key", 5_000 * 7), cap("project", 777 * 7 + 3))

    tries = raced(racers, Race(redis_url, 0, TRIES, (7,), caps))

    there = wallets(redis_url)
    assert len(held(tries)) == 777
    assert [there[name].held for name in (WALLET, "key@0", "project@0")] == [777 * 7] * 3


def test_of_mixed_amounts_none_is_refused_that_would_have_fitted(
    redis_url: str, racers: ProcessPoolExecutor
) -> None:
    prepare(redis_url, base=30_011)
    caps = (cap("key", 29_000), cap("project", 40_000))

    tries = raced(racers, Race(redis_url, 0, TRIES, (1, 5, 40, 900), caps))

    there = wallets(redis_url)
    left = there["key@0"].free
    assert sum(held(tries)) == 29_000 - left
    assert there[WALLET].free == 30_011 - sum(held(tries))
    # Money only goes here: what is left at the end was there at the turn of each that was refused.
    assert all(one.amount > left for one in tries if not one.is_held)
    assert left >= 0


def test_slots_and_rates_admit_exactly_their_number(
    redis_url: str, racers: ProcessPoolExecutor
) -> None:
    prepare(redis_url, base=0)
    by_slots = raced(racers, Race(redis_url, 0, 300, (0,), slots=(Slot("k", 41),)))
    # So slow a bucket gives nothing back in the time of a race.
    by_rates = raced(racers, Race(redis_url, 0, 300, (0,), rates=(Rate("tpm:k", 59, 3),)))

    assert len(held(by_slots)) == 41
    assert len(held(by_rates)) in {19, 20}
