"""Which node has which slot, whatever the nodes say."""

import pytest

from ledger.location import Location
from ledger.topology import Claim, Topology, owners, read_nodes
from ledger.wire import WireError
from tests.ledger.cluster import Cluster

TOLD = """\
a 10.0.0.1:7000@17000,one.example master - 0 1 3 connected 0-99 200 [5->-b]
b :7001@17001 myself,master - 0 0 5 connected 100-199
c 10.0.0.3:7002@17002 slave a 0 1 3 connected
d 10.0.0.4:0@0 master,noaddr - 0 1 9 disconnected 300
"""


def test_the_nodes_and_their_claims_are_read() -> None:
    assert read_nodes(TOLD, asked="10.0.0.2:7001", by_name=False) == [
        Claim(3, "10.0.0.1:7000", ((0, 99), (200, 200))),
        Claim(5, "10.0.0.2:7001", ((100, 199),)),
        Claim(3, "10.0.0.3:7002", ()),
    ]


def test_with_tls_nodes_go_by_the_names_in_their_certificates() -> None:
    named, unnamed, _ = read_nodes(TOLD, asked="two:7001", by_name=True)

    assert (named.host, unnamed.host) == ("one.example:7000", "two:7001")


def test_of_two_claims_the_newer_one_holds_whoever_tells_it() -> None:
    old, new = Claim(3, "old:1", ((0, 9),)), Claim(4, "new:1", ((5, 9),))

    for told in ([old, new], [new, old]):
        held = owners(told)
        assert (held[4], held[5], held[10]) == ("old:1", "new:1", "")


async def test_a_promoted_replica_is_found_while_the_old_primary_is_dead(cluster: Cluster) -> None:
    topology = Topology(Location.parse(cluster.url))
    await topology.look()
    primary = await cluster.owner(0)
    replica = await cluster.replica_of(primary)
    assert topology.owner(0) == primary.host

    primary.kill()
    await replica.ask("CLUSTER", "FAILOVER", "TAKEOVER")
    await topology.look()

    assert topology.owner(0) == replica.host


async def test_a_cluster_of_which_nobody_answers_is_away() -> None:
    with pytest.raises(WireError, match="no node"):
        await Topology(Location.parse("redis+cluster://127.0.0.1:1")).look()
