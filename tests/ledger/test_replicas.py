"""Which servers can keep what mode `replica` promises."""

import pytest

from ledger.clients import open_redis
from ledger.replicas import contradictions
from tests.ledger.cluster import Cluster, Node, followed

STRICT = {"appendfsync": "always", "min-replicas-to-write": "1"}


async def _said_of(node: Node) -> list[str]:
    async with open_redis(f"redis://{node.host}") as client:
        return await contradictions(client, range(2))


async def test_a_server_whose_replica_has_every_write_on_its_disk_will_do() -> None:
    async with followed(*(f"{name} {value}" for name, value in STRICT.items())) as (master, _):
        assert await _said_of(master) == []


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("appendfsync", "everysec", "has appendfsync everysec, it must be always"),
        ("appendonly", "no", "has appendonly no, it must be yes"),
        ("maxmemory-policy", "allkeys-lru", "it must be noeviction"),
        ("min-replicas-to-write", "0", "has min-replicas-to-write 0"),
    ],
)
async def test_a_setting_that_contradicts_is_named(setting: str, value: str, said: str) -> None:
    settings = {**STRICT, setting: value}
    async with followed(*(f"{name} {one}" for name, one in settings.items())) as (master, _):
        (told,) = await _said_of(master)

    assert told.startswith(master.host)
    assert said in told


async def test_a_server_without_a_replica_is_named() -> None:
    async with followed("appendfsync always", "min-replicas-to-write 1") as (master, replica):
        replica.kill()

        (told,) = await _said_of(master)

    assert "no replica" in told


async def test_a_replica_that_keeps_nothing_on_its_disk_does_not_count() -> None:
    async with followed("appendfsync always", "min-replicas-to-write 1") as (master, replica):
        await replica.ask("CONFIG SET", "appendonly", "no")

        (told,) = await _said_of(master)

    assert "none has appendonly yes" in told


async def test_of_a_cluster_every_primary_is_looked_at(cluster: Cluster) -> None:
    async with open_redis(cluster.url) as client:
        told = await contradictions(client, range(16))

    assert len([one for one in told if "appendfsync" not in one]) == 2  # min-replicas-to-write
