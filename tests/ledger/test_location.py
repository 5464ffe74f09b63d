"""Where a URL says that Redis is."""

import pytest

from ledger.location import Kind, Location, host_and_port, joined


@pytest.mark.parametrize("url", ["redis://u:p@host:1/2", "rediss://host", "unix://u:p@/run/v.sock"])
def test_one_server_is_where_the_url_says(url: str) -> None:
    location = Location.parse(url)

    assert (location.kind, location.url) == (Kind.ONE, url)


def test_a_cluster_names_some_of_its_nodes() -> None:
    location = Location.parse("rediss+cluster://app:s%40@one,two:7000,[::1]:7001?ssl_ca_certs=/c")

    assert location.kind is Kind.CLUSTER
    assert location.hosts == ("one:6379", "two:7000", "[::1]:7001")
    assert location.node_url("two:7000") == "rediss://app:s%40@two:7000?ssl_ca_certs=%2Fc"
    assert location.is_tls


def test_sentinels_have_a_login_of_their_own() -> None:
    url = "redis+sentinel://app:s@one,two:7000/main?sentinel_username=u&sentinel_password=p/p"
    location = Location.parse(url)

    assert (location.kind, location.master) == (Kind.SENTINEL, "main")
    assert location.hosts == ("one:26379", "two:7000")
    assert location.sentinel_url("one:26379") == "redis://u:p%2Fp@one:26379"
    assert location.node_url("three:1") == "redis://app:s@three:1"


def test_a_database_is_chosen_at_servers_and_not_at_sentinels() -> None:
    location = Location.parse("redis+sentinel://one/main?db=2&ssl_ca_certs=/c")

    assert location.node_url("three:1") == "redis://three:1?db=2&ssl_ca_certs=%2Fc"
    assert location.sentinel_url("one:26379") == "redis://one:26379?ssl_ca_certs=%2Fc"


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("http://canary@host", "must begin with"),
        ("redis+sentinel://u:canary@host", "which master"),
        ("redis+cluster://u:canary@host/1", "only one database"),
        ("redis+cluster://u:canary@", "names no host"),
        ("redis+cluster://u:canary@host:none", "no port"),
    ],
)
def test_what_is_wrong_is_said_without_the_password(url: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong) as raised:
        Location.parse(url)
    assert "canary" not in str(raised.value)


@pytest.mark.parametrize("host", ["one:1", "[::1]:70"])
def test_hosts_and_ports_are_told_apart_and_joined(host: str) -> None:
    assert joined(*host_and_port(host)) == host


def test_a_place_is_never_shown_with_its_password() -> None:
    assert "canary" not in repr(Location.parse("redis+cluster://u:canary@host"))
