"""Who asks is told once."""

import asyncio

import pytest

from ledger.admission import Held, LedgerUnavailable, Refused
from ledger.step import Asked
from tests.ledger.partitions import hold


def asked() -> Asked:
    future: asyncio.Future[Held | Refused] = asyncio.get_running_loop().create_future()
    return Asked(hold(1), future, 0.0, 0.3)


async def test_who_asks_is_told_why_nothing_was_admitted() -> None:
    one = asked()

    one.fail("Redis does not answer")

    with pytest.raises(LedgerUnavailable, match="Redis does not answer"):
        await one.future


async def test_who_has_an_answer_keeps_it() -> None:
    one = asked()
    one.future.set_result(Held(1, 5))

    one.fail("too late")

    assert await one.future == Held(1, 5)


async def test_who_has_left_is_not_told() -> None:
    one = asked()
    one.future.cancel()

    one.fail("too late")

    assert one.future.cancelled()
