"""A budget's new limit reaches the window under way, exactly, whatever is spent or held of it."""

from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledger.admission import Cap
from ledger.bases import push_bases
from ledger.book import Organization
from ledger.caps import set_limit, tell_limit
from ledger.money import Nanos
from tests.ledger.deployment import Deployment, new_call_id

START = 0  # of a window that never ends
CAP = "member:m"


@pytest.fixture
async def acme(deployment: Deployment) -> Organization:
    return await deployment.active(10_000_000_000)


def caps(limit: int, cap: str = CAP) -> tuple[Cap, ...]:
    return (Cap(cap, Nanos(limit), (START,)),)


async def limited(
    deployment: Deployment,
    acme: Organization,
    limit: int,
    *,
    told: bool,
    cap: str = CAP,
    start: int = START,
) -> int:
    """The cap has this limit from now on; `told`: Redis is told at once."""
    async with deployment.connected() as connection, connection.transaction():
        version = await set_limit(
            connection, cap, Nanos(limit), partition=acme.partition, starts_ms=[start]
        )
    if told:
        assert await tell_limit(
            deployment.pool, deployment.redis, partition=acme.partition, version=version
        )
    return version


async def free_of(deployment: Deployment, acme: Organization, cap: str = CAP) -> int | None:
    """What Redis has left of the window; None: it has no such window."""
    generation = await deployment.generation(acme)
    image = await deployment.partition(acme).snap(generation, [f"{cap}@{START}"])
    return image.wallets[0].free if image.wallets else None


@pytest.mark.parametrize("flushed_first", [True, False])
async def test_a_new_limit_holds_in_the_window_under_way(
    deployment: Deployment, acme: Organization, *, flushed_first: bool
) -> None:
    await deployment.call(acme, 300, caps(1_500))
    open_call = await deployment.hold(acme, 100, caps(1_500))
    if flushed_first:
        await deployment.flush(acme)

    await limited(deployment, acme, 900, told=True)

    assert await free_of(deployment, acme) == 900 - 300 - 100
    assert await deployment.settle(acme, open_call, 60) == "settled"
    assert await free_of(deployment, acme) == 900 - 360
    await deployment.flush(acme)
    assert await deployment.differences() == []


async def test_a_limit_below_what_is_spent_leaves_nothing(
    deployment: Deployment, acme: Organization
) -> None:
    await deployment.call(acme, 300, caps(2_000))
    await limited(deployment, acme, 0, told=True)

    assert await free_of(deployment, acme) == -300
    with pytest.raises(AssertionError):
        await deployment.hold(acme, 1, caps(2_000))


async def test_what_redis_was_not_told_the_flusher_tells_it(
    deployment: Deployment, acme: Organization
) -> None:
    await deployment.call(acme, 300, caps(2_000))
    version = await limited(deployment, acme, 500, told=False)
    assert await free_of(deployment, acme) == 1_700

    generation = await deployment.generation(acme)
    async with deployment.connected() as connection:
        for _ in range(2):
            partition = deployment.partition(acme)
            await push_bases(connection, partition, generation=generation, above=version - 1)

    assert await free_of(deployment, acme) == 200


async def test_a_lost_redis_comes_back_with_the_new_limit(
    deployment: Deployment, acme: Organization
) -> None:
    await deployment.call(acme, 300, caps(2_000))
    await deployment.flush(acme)
    await limited(deployment, acme, 500, told=False)
    await deployment.redis.flushall()

    assert await deployment.recover(acme) is not None

    assert await free_of(deployment, acme) == 200


async def test_a_period_that_comes_back_has_its_window_still(
    deployment: Deployment, acme: Organization
) -> None:
    later = (Cap(CAP, Nanos(2_000), (5,)),)  # of a day, as it were, within the window of START
    await deployment.call(acme, 300, caps(2_000))
    await limited(deployment, acme, 2_000, told=True, start=5)
    for _ in range(2):
        await deployment.call(acme, 50, later)
    await deployment.flush(acme)

    await limited(deployment, acme, 500, told=True)
    assert await free_of(deployment, acme) == 200

    await deployment.redis.flushall()
    assert await deployment.recover(acme) is not None
    assert await free_of(deployment, acme) == 200
    assert await deployment.differences() == []


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("call"), st.integers(0, 1_000)),
        st.tuples(st.just("late"), st.integers(0, 1_000)),
        st.tuples(st.just("limit"), st.integers(0, 20_000)),
        st.tuples(st.just("quiet limit"), st.integers(0, 20_000)),
        st.tuples(st.just("flush"), st.just(0)),
    ),
    max_size=12,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[*HealthCheck])
@given(steps=STEPS)
async def test_limit_less_spent_is_what_is_left_whatever_happens_in_between(
    deployment: Deployment, acme: Organization, steps: list[tuple[str, int]]
) -> None:
    cap, limit, spent = f"member:{uuid4()}", 100_000, 0
    known = limit  # to Redis, at least; what it was not told of yet it cannot let anybody have
    for step, amount in steps:
        match step:
            case "call" if min(limit, known) - spent >= 1_000:  # what a call holds
                await deployment.call(acme, amount, caps(limit, cap))
                spent += amount
            case "late":  # nobody knows its hold
                await deployment.late(acme, new_call_id(), amount, caps(limit, cap))
                spent += amount
            case "flush":
                await deployment.flush(acme)
            case "limit" | "quiet limit":
                limit = amount
                known = limit if step == "limit" else known
                await limited(deployment, acme, limit, told=step == "limit", cap=cap)
            case _:
                pass  # no room for a call
    await deployment.flush(acme)
    generation = await deployment.generation(acme)
    async with deployment.connected() as connection:
        await push_bases(connection, deployment.partition(acme), generation=generation, above=0)

    left = await deployment.pool.fetchval(
        "SELECT base - spent FROM cap_window WHERE cap_id = $1", cap
    )
    if left is not None:
        assert left == limit - spent
        assert await free_of(deployment, acme, cap) == limit - spent
    assert await deployment.differences() == []
