"""One of several processes that ask for the same money at the same time."""

import asyncio
import random
from typing import NamedTuple

import uvloop

from ledger.admission import Cap, Held, Rate, Slot
from ledger.conveyor import Conveyor
from tests.ledger.partitions import hold

IN_FLIGHT = 500


class Race(NamedTuple):
    """What each process does."""

    url: str
    seed: int
    tries: int
    amounts: tuple[int, ...]
    caps: tuple[Cap, ...] = ()
    rates: tuple[Rate, ...] = ()
    slots: tuple[Slot, ...] = ()


class Try(NamedTuple):
    """One call, and what came of it."""

    amount: int
    is_held: bool


def run(race: Race) -> list[Try]:
    """Every try of one process."""
    return uvloop.run(_run(race))


async def _run(race: Race) -> list[Try]:
    conveyor = Conveyor(race.url, partitions=8)
    chance = random.Random(race.seed)  # noqa: S311 - a test that can be repeated
    amounts = [chance.choice(race.amounts) for _ in range(race.tries)]
    made: list[Try] = []

    async def ask() -> None:
        while amounts:
            amount = amounts.pop()
            asked = hold(amount, caps=race.caps, rates=race.rates, slots=race.slots)
            answer = await conveyor.hold(asked, deadline_s=30.0)
            made.append(Try(amount, isinstance(answer, Held)))

    async with asyncio.TaskGroup() as tasks:
        owner = tasks.create_task(conveyor.run())
        async with asyncio.TaskGroup() as callers:
            for _ in range(IN_FLIGHT):
                callers.create_task(ask())
        owner.cancel()
    return made
