"""Rules of the online audit: nothing to say about a true ledger, to the nano-USD."""

import asyncio

import pytest

from ledger.admission import Cap
from ledger.audit import Audit, Drift
from ledger.book import Organization
from ledger.money import Nanos
from tests.ledger.deployment import Deployment, new_call_id, until

CAP = Cap("key-1", Nanos(50_000), (0,))


class Auditor:
    """An audit, and the drifts it told of."""

    def __init__(self, deployment: Deployment, acme: Organization) -> None:
        self.deployment, self.acme = deployment, acme
        self.told: list[Drift] = []
        self.audit = Audit(
            deployment.url,
            deployment.redis,
            partitions=[acme.partition],
            on_drift=self.told.append,
            every_s=0.01,
        )

    async def look(self) -> list[Drift] | None:
        async with self.deployment.connected() as connection:
            return await self.audit.audit(connection, self.deployment.partition(self.acme))

    def key(self, name: str) -> str:
        return f"tg:{{p{self.acme.partition:02d}}}:{name}"


async def test_open_unflushed_and_late_calls_are_no_drift(deployment: Deployment) -> None:
    acme = await deployment.active()
    auditor = Auditor(deployment, acme)
    await deployment.call(acme, 10, (CAP,))
    await deployment.flush(acme)
    await deployment.call(acme, 20, (CAP,))
    await deployment.hold(acme, caps=(CAP,))
    await deployment.late(acme, new_call_id(), 5, (CAP,))
    assert await auditor.look() == []
    await deployment.flush(acme)
    assert await auditor.look() == []
    assert auditor.audit.tallies.wallets == 4


async def test_a_push_that_was_lost_is_made_up_for(deployment: Deployment) -> None:
    acme = await deployment.active(credit=100)
    await deployment.credit(acme, 50)
    assert await Auditor(deployment, acme).look() == []
    assert await deployment.free(acme) == 150


@pytest.mark.parametrize(("name", "cause"), [("free", "redis"), ("held", "redis")])
async def test_one_nano_too_much_in_redis_is_told(
    deployment: Deployment, name: str, cause: str
) -> None:
    acme = await deployment.active()
    auditor = Auditor(deployment, acme)
    await deployment.redis.hincrby(auditor.key(name), acme.id, 1)
    assert await auditor.look() == [Drift(acme.partition, acme.id, 1, cause)]
    assert auditor.told == [Drift(acme.partition, acme.id, 1, cause)]
    assert auditor.audit.tallies.drift_nanos == {acme.partition: 1}


async def test_a_nano_missing_in_postgres_is_told(deployment: Deployment) -> None:
    acme = await deployment.active()
    await deployment.pool.execute("UPDATE wallet SET spent = spent + 1")
    (drift,) = await Auditor(deployment, acme).look() or []
    assert (drift.wallet, drift.nanos, drift.cause) == (acme.id, 1, "spent")


async def test_a_base_that_postgres_does_not_have_is_told(deployment: Deployment) -> None:
    acme = await deployment.active()
    generation = await deployment.generation(acme)
    partition = deployment.partition(acme)
    await partition.set_base(generation, acme.id, base=1_000_007, version=99, cause="forged")
    (drift,) = await Auditor(deployment, acme).look() or []
    assert (drift.nanos, drift.cause) == (7, "ahead")
    assert await deployment.recover(acme) is not None
    assert await deployment.free(acme) == 1_000_000


async def test_a_wallet_that_redis_lost_makes_the_partition_damaged(
    deployment: Deployment,
) -> None:
    acme = await deployment.active()
    auditor = Auditor(deployment, acme)
    for name in ("free", "base", "spent", "held", "ver"):
        await deployment.redis.hdel(auditor.key(name), acme.id)
    (drift,) = await auditor.look() or []
    assert (drift.wallet, drift.cause) == (acme.id, "missing")
    recovered = await deployment.recover(acme)
    assert recovered is not None
    assert await auditor.look() == []
    assert await deployment.free(acme) == 1_000_000


async def test_a_cap_window_long_over_is_forgotten_by_redis(deployment: Deployment) -> None:
    acme = await deployment.active()
    old = Cap("key-9", Nanos(5_000), (86_400_000,))
    await deployment.call(acme, 10, (old,))
    await deployment.flush(acme)
    auditor = Auditor(deployment, acme)
    assert await auditor.look() == []
    assert not await deployment.redis.hexists(auditor.key("free"), "key-9@86400000")
    assert await auditor.look() == []


async def test_a_partition_that_is_not_active_is_left_for_later(deployment: Deployment) -> None:
    acme = await deployment.organization()
    assert await Auditor(deployment, acme).look() is None
    await deployment.recover(acme)
    await deployment.redis.flushall()
    assert await Auditor(deployment, acme).look() is None


async def test_it_audits_while_calls_are_made_and_survives_a_cut(deployment: Deployment) -> None:
    acme = await deployment.active()
    auditor = Auditor(deployment, acme)

    async def audited(times: int) -> bool:
        return auditor.audit.tallies.audits >= times

    async with asyncio.TaskGroup() as group, deployment.connected() as killer:
        task = group.create_task(auditor.audit.run(), name="audit")
        for _ in range(10):
            await deployment.call(acme, 3)
            await deployment.flush(acme)
        await until(lambda: audited(3))
        await killer.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'tollgate audit'"
        )
        seen = auditor.audit.tallies.audits
        await until(lambda: audited(seen + 2))
        task.cancel()
    assert auditor.told == []
