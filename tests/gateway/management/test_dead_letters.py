"""Dead letters as the management sees them."""

from collections.abc import AsyncIterator

import msgspec
import pytest

from gateway.errors import BadRequest, Conflict, NotFound
from gateway.management import dead_letters
from gateway.management.dead_letters import Resolving
from ledger.letters import Resolution
from ledger.record import EndKind
from tests.ledger.deployment import Deployment, Line, deployed, new_call_id


@pytest.fixture
async def deployment(postgres_url: str, redis_url: str) -> AsyncIterator[Deployment]:
    async with deployed(postgres_url, redis_url) as made:
        yield made


async def resolve(
    deployment: Deployment, letter: int, resolution: Resolution, reason: str = "r"
) -> dead_letters.Resolved:
    wanted = Resolving(letter, resolution, "operator", reason)
    return await dead_letters.resolve(deployment.pool, deployment.redis, wanted)


async def test_a_replayed_debit_is_told_to_redis(deployment: Deployment) -> None:
    acme = await deployment.active(1_000)
    end = Line(new_call_id(), acme, EndKind.SETTLED, 60, moved=False).fields()
    await deployment.write(acme, [{**end, b"i": b""}])
    (letter,) = await dead_letters.listed(deployment.pool)
    with pytest.raises(Conflict, match="no call id"):
        await resolve(deployment, letter.id, Resolution.REPLAYED)
    # As if a later release could read it.
    packed = msgspec.msgpack.encode(end)
    await deployment.pool.execute("UPDATE dead_letter SET fields = $1", packed)
    done = await resolve(deployment, letter.id, Resolution.REPLAYED)
    assert (done.is_new, done.is_told) == (True, True)
    assert await deployment.free(acme) == 940
    assert await dead_letters.listed(deployment.pool) == []


async def test_an_unknown_letter_and_an_empty_reason_are_refused(deployment: Deployment) -> None:
    with pytest.raises(NotFound):
        await resolve(deployment, 7, Resolution.WRITTEN_OFF)
    with pytest.raises(NotFound):
        await dead_letters.one(deployment.pool, 7)
    with pytest.raises(BadRequest):
        await resolve(deployment, 7, Resolution.WRITTEN_OFF, " ")
