"""Where a request comes from, and whether that is where it may come from. Pure.

An IPv4 address in IPv6's clothes (::ffff:192.0.2.1) is the IPv4 address: which of the two a socket
says depends on how it listens, and a range would mean two things.
"""

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

_MAPPED = IPv6Network("::ffff:0:0/96")

Ranges = tuple[str, ...]
"""Address ranges as `range_in` writes them."""


def address_of(peer: str, forwarded: str | None, *, proxies: int) -> str:
    """Where a request comes from: what the outermost of our own proxies saw.

    `forwarded` is X-Forwarded-For, all lines of it. Each proxy adds the address of its peer at the
    end; what stands before theirs, anybody may have made up. Without a header the peer is a proxy's
    own, or somebody who went round it.
    """
    if not proxies or not forwarded:
        return peer
    seen = [each.strip() for each in forwarded.split(",")]
    return seen[-proxies] if len(seen) >= proxies else seen[0]


def range_in(text: str) -> str:
    """A range as it is kept: "10.0.0.0/8", "2001:db8::/32"; of one address, "192.0.2.1/32".

    `ValueError` says what is wrong with it.
    """
    unfit = f"{text!r} is no range like 10.0.0.0/8 or 2001:db8::/32"
    if "%" in text:  # a zone means something on one machine only
        raise ValueError(unfit)
    try:
        found = ip_network(text.strip())
    except ValueError as error:
        if "host bits" in str(error):
            meant = ip_network(text.strip(), strict=False)
            raise ValueError(
                f"{text!r} is an address within a range; did you mean {meant}?"
            ) from error
        raise ValueError(unfit) from error
    if isinstance(found, IPv6Network) and found.subnet_of(_MAPPED):
        address = IPv4Address(int(found.network_address) & 0xFFFF_FFFF)
        found = IPv4Network((address, found.prefixlen - 96))
    return str(found)


@lru_cache(maxsize=8_192)  # callers come from few places; a parse costs 10 us, a hit 0.1
def is_within(address: str, every: tuple[Ranges, ...]) -> bool:
    """Whether the address lies in one range of each list. What is no address lies nowhere."""
    try:
        found = _plain(ip_address(address.partition("%")[0]))
    except ValueError:
        return False
    return all(any(found in ip_network(one) for one in ranges) for ranges in every)


def _plain(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
