"""Rules of telling Redis what Postgres decided."""

import asyncpg
import pytest

from ledger.admission import LedgerUnavailable
from ledger.bases import Loading, ensure_loaded, push_bases, tell
from ledger.book import Organization
from ledger.fcall import Epoch
from ledger.record import EndKind
from ledger.stream import Window
from tests.ledger.deployment import Deployment, Line, new_call_id

WINDOWS = (Window("key-1", 3_600_000, 500), Window("key-1", 7_200_000, 500))


async def test_a_credit_is_usable_once_it_is_pushed_and_pushing_is_repeatable(
    deployment: Deployment,
) -> None:
    acme = await deployment.active(credit=100)
    await deployment.credit(acme, 50)
    generation = await deployment.generation(acme)
    async with deployment.connected() as connection:
        version = 0
        for _ in range(2):
            version = await push_bases(
                connection, deployment.partition(acme), generation=generation, above=0
            )
            assert await deployment.free(acme) == 150
        again = await push_bases(
            connection, deployment.partition(acme), generation=generation, above=version
        )
    assert again == version


async def test_a_late_debit_reaches_the_window_that_is_open_and_no_other(
    deployment: Deployment,
) -> None:
    acme = await deployment.active()
    await deployment.write(
        acme,
        [
            Line(new_call_id(), acme, EndKind.SETTLED, 5, moved=False, windows=(window,))
            for window in WINDOWS
        ],
    )
    generation = await deployment.generation(acme)
    async with deployment.connected() as connection:
        await push_bases(connection, deployment.partition(acme), generation=generation, above=0)
    image = await deployment.partition(acme).snap(generation, [w.id for w in WINDOWS])
    assert [(one.wallet, one.free) for one in image.wallets] == [(WINDOWS[1].id, 495)]


async def test_a_new_wallet_is_loaded_when_a_call_asks_for_it(deployment: Deployment) -> None:
    first = await deployment.active()
    acme = await _neighbour(deployment, first.partition)
    async with deployment.connected() as connection:
        partition = deployment.partition(acme)
        assert await ensure_loaded(connection, partition, acme.id) is Loading.LOADED
        assert await deployment.free(acme) == 70
        assert await ensure_loaded(connection, partition, acme.id) is Loading.LOADED
        assert await ensure_loaded(connection, partition, str(new_call_id().hex())) is (
            Loading.UNKNOWN
        )


@pytest.mark.parametrize("was_pushed", [True, False], ids=["pushed", "loaded"])
async def test_a_wallet_that_redis_lost_has_its_partition_recovered(
    deployment: Deployment, *, was_pushed: bool
) -> None:
    acme = await deployment.active()
    if was_pushed:
        acme = await _neighbour(deployment, acme.partition)
    partition = deployment.partition(acme)
    async with deployment.connected() as connection:
        if was_pushed:
            await ensure_loaded(connection, partition, acme.id)
        for name in ("free", "base", "spent", "held", "ver"):
            await deployment.redis.hdel(f"tg:{{p{acme.partition:02d}}}:{name}", acme.id)
        assert await ensure_loaded(connection, partition, acme.id) is Loading.LOST
    recovered = await deployment.recover(acme)
    assert recovered is not None
    assert recovered.cause == "redis lost a wallet"
    assert await deployment.free(acme) == (70 if was_pushed else 1_000_000)


async def test_nothing_is_pushed_into_another_generation(deployment: Deployment) -> None:
    acme = await deployment.active()
    await deployment.credit(acme, 5)
    async with deployment.connected() as connection:
        with pytest.raises(Epoch):
            await push_bases(connection, deployment.partition(acme), generation=999, above=0)


async def _neighbour(deployment: Deployment, partition: int) -> Organization:
    while True:
        made = await deployment.organization(credit=70)
        if made.partition == partition:
            return made


_KILL = """
    CREATE FUNCTION killed() RETURNS trigger LANGUAGE plpgsql AS
        $$BEGIN RAISE 'killed before it told Postgres'; END$$;
    CREATE TRIGGER killed BEFORE UPDATE ON part FOR EACH ROW
        WHEN (OLD.state = 'recovering' AND NEW.state = 'active') EXECUTE FUNCTION killed();
"""


async def _active_in_redis_alone(deployment: Deployment) -> Organization:
    """Its partition's recovery was killed after it activated Redis, and before Postgres."""
    acme = await deployment.active(credit=500)
    await deployment.redis.hset(f"tg:{{p{acme.partition:02d}}}:meta", "seq", "5")
    await deployment.pool.execute(_KILL)
    with pytest.raises(asyncpg.RaiseError):
        await deployment.recover(acme)
    await deployment.pool.execute("DROP FUNCTION killed CASCADE")
    assert (await deployment.partition(acme).state()).is_active()
    return acme


async def _assert_that_nothing_went_back(deployment: Deployment, acme: Organization) -> None:
    assert await deployment.recover(acme) is not None
    letters = await deployment.pool.fetch("SELECT error FROM dead_letter")
    assert letters == []
    assert await deployment.differences() == []


async def test_a_credit_waits_for_postgres_to_say_that_the_partition_is_active(
    deployment: Deployment,
) -> None:
    acme = await _active_in_redis_alone(deployment)
    await deployment.credit(acme, 50)
    wallet = await deployment.book.wallet(acme.id)
    assert wallet is not None

    assert not await tell(deployment.pool, deployment.redis, wallet)

    await _assert_that_nothing_went_back(deployment, acme)
    assert await deployment.free(acme) == await deployment.balance(acme) == 550
    assert await tell(deployment.pool, deployment.redis, wallet)


async def test_a_new_wallet_waits_for_postgres_to_say_that_the_partition_is_active(
    deployment: Deployment,
) -> None:
    first = await _active_in_redis_alone(deployment)
    acme = await _neighbour(deployment, first.partition)
    async with deployment.connected() as connection:
        with pytest.raises(Epoch):
            await ensure_loaded(connection, deployment.partition(acme), acme.id)

    await _assert_that_nothing_went_back(deployment, acme)
    assert await deployment.free(acme) == 70


async def test_what_is_withheld_waits_for_postgres_to_say_that_the_partition_is_active(
    deployment: Deployment,
) -> None:
    acme = await _active_in_redis_alone(deployment)
    await deployment.credit(acme, 50)
    with pytest.raises(LedgerUnavailable, match="recovered"):
        await deployment.withdrawals.withdraw(deployment.wanted(acme, 20))

    await _assert_that_nothing_went_back(deployment, acme)
    assert await deployment.free(acme) == await deployment.balance(acme) == 550
