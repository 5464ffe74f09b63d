"""The stand-in for the server answers the conveyor's words as the server does."""

import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from ledger.admission import End, Hold
from ledger.fcall import (
    KEY_COUNT,
    Renewal,
    Word,
    end_arguments,
    hold_arguments,
    key_names,
    renewal_arguments,
)
from ledger.functions import Partition, WalletState, install
from ledger.money import Nanos
from ledger.record import EndKind
from tests.ledger.model import Wallet
from tests.scenarios.scale import LONG, SEED
from tests.simulation.store import Store

COMMANDS = 5_000 if LONG else 400
WALLET = "0190a5b4-0000-7000-8000-000000000001"
CALL_IDS = [bytes([number]) * 16 for number in range(8)]
HOLDS, ENDS = ("tg_hold", "tg_extend", "tg_rehold"), ("tg_settle", "tg_late")


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as made:
        await install(made)
        yield made


def drawn(chance: random.Random, generation: int) -> list[Word]:
    """A function and some items."""
    function = chance.choice([*HOLDS, *ENDS, "tg_renew"])
    words: list[bytes] = []
    for call_id in chance.sample(CALL_IDS, chance.randrange(1, 4)):
        amount = Nanos(chance.randrange(200))
        if function in HOLDS:
            words += hold_arguments(Hold(call_id, 0, WALLET, amount, ticket=b"ticket"))
        elif function in ENDS:
            kind = chance.choice(list(EndKind))
            charged = kind in (EndKind.SETTLED, EndKind.LOST)
            charge = amount if charged else Nanos(0)
            words += end_arguments(End(call_id, 0, WALLET, kind, charge, b"record"))
        else:
            words += renewal_arguments(Renewal(call_id, 60_000, -1))
    keys = key_names(0, generation)
    return ["FCALL", function, KEY_COUNT, *keys, generation, *words]


async def really(client: Redis, words: list[Word]) -> Any:
    """What the server answers; a refusal by its words."""
    try:
        return await client.execute_command(*words)  # type: ignore[no-untyped-call]  # redis-py's
    except ResponseError as error:
        return str(error)


def comparable(function: str, answer: Any) -> Any:
    """Without places: they are the server's own."""
    if not isinstance(answer, list):
        return str(answer)
    return [one[:1] for one in answer] if function in ENDS else answer


async def test_the_store_answers_as_the_server_does(client: Redis) -> None:
    chance = random.Random(SEED)  # noqa: S311 - a test that can be repeated
    store, real = Store(lambda: 1_000.0), Partition(client, 0)
    generation = 0
    for number in range(COMMANDS):
        if number % 100 == 0:
            generation += 1
            await real.freeze(generation)
            store.freeze(generation)
        if number % 100 == 10:  # before that it recovers, and most is refused
            await real.load(generation, [WalletState(WALLET, 1_000, 0, 1)])
            store.model.load(WALLET, Wallet(1_000, 0, 1))
            await real.activate(generation, 1)
            store.model.activate()
        asked = generation - (chance.random() < 0.05)
        words = drawn(chance, asked)
        told = [w if isinstance(w, bytes) else str(w).encode() for w in words]
        function = str(words[1])
        expected = comparable(function, await really(client, words))
        answered = comparable(function, store.answer(told))
        assert answered == expected, f"seed {SEED}, command {number}: {words}"
