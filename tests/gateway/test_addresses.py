"""Where requests come from, and ranges of addresses."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.addresses import address_of, is_within, range_in


@pytest.mark.parametrize(
    ("forwarded", "proxies", "address"),
    [
        ("203.0.113.7", 0, "10.0.0.1"),  # anybody may send the header
        (None, 1, "10.0.0.1"),
        ("203.0.113.7", 1, "203.0.113.7"),
        ("198.51.100.1, 203.0.113.7", 1, "203.0.113.7"),
        ("198.51.100.1,203.0.113.7, 10.0.0.9", 2, "203.0.113.7"),
        ("203.0.113.7", 2, "203.0.113.7"),
    ],
)
def test_an_address_is_what_ones_own_proxies_saw(
    forwarded: str | None, proxies: int, address: str
) -> None:
    assert address_of("10.0.0.1", forwarded, proxies=proxies) == address


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        (" 192.0.2.1 ", "192.0.2.1/32"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("::1", "::1/128"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
    ],
)
def test_a_range_is_kept_in_one_form(said: str, kept: str) -> None:
    assert range_in(said) == range_in(kept) == kept


@pytest.mark.parametrize("said", ["", "localhost", "10.0.0.0/33", "10.0.0", "fe80::1%eth0/64", "1"])
def test_what_is_no_range_is_said_to_be_none(said: str) -> None:
    with pytest.raises(ValueError, match="no range like"):
        range_in(said)


def test_an_address_within_a_range_is_told_which_range_is_meant() -> None:
    with pytest.raises(ValueError, match=r"did you mean 10\.0\.0\.0/8\?"):
        range_in("10.0.0.1/8")


@given(st.ip_addresses(), st.integers(0, 32), st.ip_addresses(v=4))
def test_an_address_is_within_what_contains_it(
    address: IPv4Address | IPv6Address, bits: int, base: IPv4Address
) -> None:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    network = IPv4Network((base, bits), strict=False)
    other = ip_network("2001:db8::/32")

    found = is_within(str(address), ((str(network), str(other)),))

    assert found == any((mapped or address) in one for one in (network, other))


@given(st.ip_addresses(v=4), st.integers(0, 32))
def test_an_ipv4_address_is_the_same_in_ipv6s_clothes(address: IPv4Address, bits: int) -> None:
    ranges = ((str(IPv4Network((address, bits), strict=False)),),)

    assert is_within(str(address), ranges)
    assert is_within(f"::ffff:{address}", ranges)


def test_an_address_must_be_within_one_range_of_every_list() -> None:
    company, server = ("10.0.0.0/8", "2001:db8::/32"), ("10.1.0.0/16",)

    assert is_within("10.1.2.3", (server, company))
    assert not is_within("10.2.2.3", (server, company))
    assert is_within("10.2.2.3", (company,))


@pytest.mark.parametrize("address", ["", "unknown", "10.0.0.1:80", "10.0.0.256", "_hidden"])
def test_what_is_no_address_is_within_no_range(address: str) -> None:
    assert not is_within(address, (("0.0.0.0/0", "::/0"),))


def test_a_zone_of_a_link_is_no_part_of_the_address() -> None:
    assert is_within("fe80::1%eth0", (("fe80::/10",),))
